"""From a config to saved crosscoders: load the pair, stream its activations, train, save."""

import copy
import json
import random
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from jaxtyping import Int
from sae_lens import SAE
from sae_lens.config import HfDataset
from sae_lens.constants import RUNNER_CFG_FILENAME
from sae_lens.llm_sae_training_runner import LLMSaeEvaluator
from sae_lens.registry import get_sae_training_class
from sae_lens.util import temporary_seed
from safetensors import SafetensorError
from torch import Tensor

from sae_lens_crosscoder.activations.datasets import hold_out, load_rows
from sae_lens_crosscoder.activations.store import PairActivationsStore
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.crosscoders.training import TrainingCrosscoder
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.training import wandb_log
from sae_lens_crosscoder.training.checkpoints import find_checkpoint, read_training_crosscoder
from sae_lens_crosscoder.training.config import CrosscoderTrainerConfig
from sae_lens_crosscoder.training.interruption import interruptible
from sae_lens_crosscoder.training.refusals import refuse_missing_device, refuse_unwritable
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig
from sae_lens_crosscoder.training.stream import train_on_one_stream
from sae_lens_crosscoder.training.trainer import CrosscoderTrainer

METRICS_FILENAME = "metrics.jsonl"


class CrosscoderTrainingRunner:
    """SAELens's `LanguageModelSAETrainingRunner` for a pair of models.

    Everything is checked, and everything random is seeded from `cfg.seed`, before any long work starts.

    Args:
        cfg: see `CrosscoderRunnerConfig`.
        override_dataset: rows to use in place of `cfg.dataset_path`.
        override_model: a pair that is already loaded.

    Raises:
        ValueError: for a device or folder that cannot be used, a hook that the models do not have, widths that are
            not the models', an empty dataset.
    """

    def __init__(
        self,
        cfg: CrosscoderRunnerConfig,
        override_dataset: HfDataset | None = None,
        override_model: HookedModelPair | None = None,
    ) -> None:
        self.cfg = cfg
        for folder in (cfg.output_path, cfg.checkpoint_path):
            refuse_unwritable(folder)
        for device in (cfg.device, cfg.llm_device, cfg.chat_device, cfg.act_store_device):
            refuse_missing_device(device)
        if cfg.resume_from_checkpoint is not None:
            self._go_on_from(cfg.resume_from_checkpoint)
        _seed_everything(cfg.seed)
        self.pair = override_model or HookedModelPair.from_pretrained(
            cfg.model_name,
            cfg.chat_model_name,
            device=cfg.llm_device or cfg.device,
            chat_device=cfg.chat_device,
            dtype=cfg.model_dtype,
            model_class_name=cfg.model_class_name,
            **(cfg.model_from_pretrained_kwargs or {}),
        )
        self._refuse_wrong_widths()
        rows: Any = override_dataset
        if rows is None:
            rows = load_rows(
                cfg.dataset_path,
                streaming=cfg.streaming,
                # The shuffling buffer is filled before the first batch leaves it.
                n_tokens=cfg.training_tokens + 2 * cfg.n_batches_in_buffer * cfg.context_size,
                n_held_out_rows=cfg.n_held_out_rows,
                seed=cfg.seed,
            )
        training_rows, held_out_rows = hold_out(rows, cfg.n_held_out_rows)
        # In memory, because reading them again would move the place in the rows that are trained on.
        self._held_out_rows = Dataset.from_list(list(held_out_rows)).to_iterable_dataset()
        self.activations_store = PairActivationsStore.from_config(self.pair, cfg, override_dataset=training_rows)
        self.training_crosscoders = {name: self._new_crosscoder(name) for name in cfg.crosscoder_configs}
        """The crosscoders in training form, by name; `run` returns their inference form."""
        self.trainers: dict[str, CrosscoderTrainer] = {}
        _seed_everything(cfg.seed)

    def run(self) -> Any:
        """Train, save, and return the inference crosscoder; with `cfg.saes`, a dict of them by name.

        Each is saved as a folder (cfg.json, sae_weights.safetensors, metrics.jsonl, runner_cfg.json): `cfg.output_path`
        itself, or a folder per name below it.
        """
        cfg = self.cfg
        self.trainers = {name: self._new_trainer(name) for name in self.training_crosscoders}
        for trainer in self.trainers.values():
            trainer.metrics_log.start_from([])
        if cfg.logger.log_to_wandb:
            wandb_log.start(cfg.logger, cfg.to_dict())
        n_ahead = int(cfg.prefetch_llm_batches or 0)
        checkpoints = train_on_one_stream(
            self.trainers, self.activations_store, settings=cfg.to_dict(), n_ahead=n_ahead
        )
        try:
            with interruptible():  # what is trained is saved before anything else
                crosscoders = {name: self._save(name) for name in self.trainers}
        except (OSError, SafetensorError) as error:
            checkpoints.save_because_of(error)
            raise
        if cfg.logger.log_to_wandb:
            wandb_log.finish()
        return crosscoders if cfg.saes is not None else crosscoders[""]

    @property
    def training_crosscoder(self) -> TrainingCrosscoder:
        """The (first) crosscoder in training form."""
        return next(iter(self.training_crosscoders.values()))

    @property
    def summary(self) -> pd.DataFrame:
        """The last metrics of every crosscoder, a row each."""
        rows = {name or "crosscoder": trainer.history.iloc[-1] for name, trainer in self.trainers.items()}
        return pd.DataFrame(rows).T

    @cached_property
    def held_out_tokens(self) -> Int[Tensor, "batch pos"]:
        """The held-out rows as SAELens packs them: contexts that training never saw."""
        return torch.stack(list(self._held_out_store.iterable_sequences))

    @property
    def _held_out_store(self) -> PairActivationsStore:
        return PairActivationsStore.from_config(self.pair, self.cfg, override_dataset=self._held_out_rows)

    def _go_on_from(self, requested: str) -> None:
        """Find the checkpoint, refused before any model is loaded; training goes on in the folder of its run.

        `latest` is that of any run of this config: SAELens appends a new random id to `checkpoint_path` every time.
        """
        cfg = self.cfg
        runs = None if cfg.checkpoint_path is None else list(Path(cfg.checkpoint_path).parent.glob("*"))
        folder = find_checkpoint(requested, runs, cfg.to_dict())
        cfg.resume_from_checkpoint = str(folder)
        if requested == "latest":
            cfg.checkpoint_path = str(folder.parent)

    def _refuse_wrong_widths(self) -> None:
        found = self.pair.layout_at(self.cfg.hook_name).d_models
        for name, cfg in self.cfg.crosscoder_configs.items():
            if cfg.layout.d_models != found:  # pyright: ignore[reportAttributeAccessIssue]
                raise ValueError(
                    f"Crosscoder {name!r} is configured for models of widths {cfg.layout.d_models}, "  # pyright: ignore[reportAttributeAccessIssue]
                    f"but at {self.cfg.hook_name} these models are {found} wide: set d_models={found}."
                )

    def _new_crosscoder(self, name: str) -> TrainingCrosscoder:
        cfg = copy.deepcopy(self.cfg.crosscoder_configs[name])  # training writes into it
        sae_class, _ = get_sae_training_class(cfg.architecture())
        crosscoder: Any
        if self.cfg.from_pretrained_path is not None:
            crosscoder = read_training_crosscoder(Path(self.cfg.from_pretrained_path, name), cfg)
        else:
            with temporary_seed(self.cfg.seed):  # so that a crosscoder does not depend on its neighbours
                crosscoder = sae_class(cfg)
        metadata = crosscoder.cfg.metadata
        metadata.model_name, metadata.chat_model_name = self.pair.model_names or (None, None)
        for key in (
            "hook_name",
            "hook_head_index",
            "model_class_name",
            "dataset_path",
            "context_size",
            "seqpos_slice",
            "prepend_bos",
            "exclude_special_tokens",
            "sequence_separator_token",
            "disable_concat_sequences",
            "seed",
        ):
            setattr(metadata, key, getattr(self.cfg, key))
        return crosscoder.to(self.cfg.device)

    def _new_trainer(self, name: str) -> CrosscoderTrainer:
        trainer_cfg: CrosscoderTrainerConfig = self.cfg.to_sae_trainer_config()
        if self.cfg.output_path is not None:
            trainer_cfg.metrics_path = str(Path(self.cfg.output_path, name, METRICS_FILENAME))
        evaluator: Any = LLMSaeEvaluator(
            model=self.pair,
            activations_store=self._held_out_store,
            eval_batch_size_prompts=self.cfg.eval_batch_size_prompts,
            n_eval_batches=self.cfg.n_eval_batches,
            model_kwargs=self.cfg.model_kwargs,
        )
        return CrosscoderTrainer(
            trainer_cfg,
            self.training_crosscoders[name],
            self.activations_store,
            evaluator=evaluator,
            save_checkpoint_fn=self._write_config,
            name=name,
        )

    def _write_config(self, checkpoint_path: Path | None) -> None:
        assert checkpoint_path is not None  # SAELens has no checkpoint without a path, and we call it for no other
        (checkpoint_path / RUNNER_CFG_FILENAME).write_text(json.dumps(self.cfg.to_dict(), indent=1))

    def _save(self, name: str) -> InferenceCrosscoder:
        crosscoder = self.training_crosscoders[name]
        if self.cfg.output_path is None:
            with tempfile.TemporaryDirectory() as folder:
                crosscoder.save_inference_model(folder)
                saved: Any = SAE.load_from_disk(folder, device=self.cfg.device)
                return saved
        path = Path(self.cfg.output_path, name)
        crosscoder.save_inference_model(path)
        (path / "latents.parquet").unlink(missing_ok=True)  # that of an earlier crosscoder, if any
        self._write_config(path)
        saved = SAE.load_from_disk(path, device=self.cfg.device)
        return saved


def _seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (the hosts use the global generator)
    torch.manual_seed(seed)
