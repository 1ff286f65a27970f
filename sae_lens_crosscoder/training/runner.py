"""From a config to saved crosscoders: load the pair, stream its activations, train, save."""

import copy
import json
import random
import tempfile
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from sae_lens import SAE
from sae_lens.config import HfDataset
from sae_lens.constants import RUNNER_CFG_FILENAME
from sae_lens.llm_sae_training_runner import LLMSaeEvaluator
from sae_lens.registry import get_sae_training_class
from sae_lens.training.prefetch import PrefetchingIterator
from sae_lens.util import temporary_seed
from torch import Tensor

from sae_lens_crosscoder.activations.datasets import every_nth, hold_out, load_rows
from sae_lens_crosscoder.activations.store import PairActivationsStore
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.crosscoders.training import TrainingCrosscoder
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.training import wandb_log
from sae_lens_crosscoder.training.checkpoints import (
    find_checkpoint,
    read_training_crosscoder,
    refuse_missing_device,
    refuse_unwritable,
    signals_interrupt,
)
from sae_lens_crosscoder.training.config import CrosscoderTrainerConfig
from sae_lens_crosscoder.training.distributed import connect
from sae_lens_crosscoder.training.latent_shards import ShardedTrainer, is_checkpoint, load_checkpoint
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
        self.ranks = connect(cfg.latent_shards, cfg.device)
        """The processes of this run."""
        cfg.checkpoint_path = self.ranks.agreed(cfg.checkpoint_path)  # to which each appended another random id
        share = cfg.share_of_stream(self.ranks.n)
        for folder in (cfg.output_path, cfg.checkpoint_path):
            refuse_unwritable(folder)
        for device in (cfg.device, cfg.llm_device, cfg.chat_device, cfg.act_store_device):
            refuse_missing_device(device)
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
        training_rows, self._held_out_rows = hold_out(rows, cfg.n_held_out_rows)
        own_rows = every_nth(training_rows, self.ranks.n, first=self.ranks.rank)
        self.activations_store = PairActivationsStore.from_config(self.pair, share, override_dataset=own_rows)
        self.activations_store.n_processes = self.ranks.n
        self.training_crosscoders = {name: self._new_crosscoder(name) for name in cfg.crosscoder_configs}
        """The crosscoders in training form, by name; `run` returns their inference form."""
        self.trainers: dict[str, CrosscoderTrainer] = {}
        _seed_everything(cfg.seed)

    def run(self) -> Any:
        """Train, save, and return the inference crosscoder; with `cfg.saes`, a dict of them by name.

        Each is saved as a folder (cfg.json, sae_weights.safetensors, metrics.jsonl, runner_cfg.json): `cfg.output_path`
        itself, or a folder per name below it. Of several processes only the first writes; the others return None.
        """
        cfg, is_lead = self.cfg, self.ranks.is_lead
        self.trainers = {name: self._new_trainer(name) for name in self.training_crosscoders}
        if cfg.resume_from_checkpoint is not None:
            self._resume(self.ranks.agreed(find_checkpoint(cfg.resume_from_checkpoint, cfg.checkpoint_path)))
        elif is_lead:
            for trainer in self.trainers.values():
                trainer.metrics_log.start_anew()
        if cfg.logger.log_to_wandb and is_lead:
            wandb_log.start(cfg.logger, cfg.to_dict())
        with signals_interrupt(self.ranks.on_signal), self._activations() as activations:
            train_on_one_stream(self.trainers, activations)
        for name, part in self.training_crosscoders.items():
            whole = self.ranks.whole_of(part)
            self.training_crosscoders[name] = part if whole is None else whole
        if not is_lead:
            return None
        crosscoders = {name: self._save(name) for name in self.trainers}
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
        return self.ranks.part_of(crosscoder.to(self.cfg.device))

    def _new_trainer(self, name: str) -> CrosscoderTrainer:
        several = self.ranks.n > 1
        trainer_cfg: CrosscoderTrainerConfig = self.cfg.to_sae_trainer_config()
        if not self.ranks.is_lead:
            trainer_cfg.logger = replace(trainer_cfg.logger, log_to_wandb=False)
        elif self.cfg.output_path is not None:
            trainer_cfg.metrics_path = str(Path(self.cfg.output_path, name, METRICS_FILENAME))
        evaluator: Any = LLMSaeEvaluator(
            model=self.pair,
            activations_store=self._held_out_store,
            eval_batch_size_prompts=self.cfg.eval_batch_size_prompts,
            n_eval_batches=self.cfg.n_eval_batches,
            model_kwargs=self.cfg.model_kwargs,
        )
        return (ShardedTrainer if several else CrosscoderTrainer)(
            trainer_cfg,
            self.training_crosscoders[name],
            self.activations_store,
            evaluator=None if several else evaluator,  # which runs a whole crosscoder in one process
            save_checkpoint_fn=self._save_run_state,
            name=name,
        )

    @contextmanager
    def _activations(self) -> Generator[Iterator[Any]]:
        """The stream of batches, made in a background thread when the config asks for it."""
        n_ahead = int(self.cfg.prefetch_llm_batches or 0)
        if n_ahead == 0:
            yield self.activations_store
            return
        with closing(PrefetchingIterator(iter(self.activations_store), prefetch=n_ahead)) as batches:
            for trainer in self.trainers.values():
                # SAELens's evaluator pauses the thread it is handed, so that its hooks reach no training activations.
                trainer.data_provider = batches
            yield batches

    def _save_run_state(self, checkpoint_path: Path | None) -> None:
        """What a checkpoint needs beside the crosscoder: the place in the data, and the config."""
        if checkpoint_path is not None and self.ranks.is_lead:
            self.activations_store.save_to_checkpoint(checkpoint_path)
            self._write_config(checkpoint_path)

    def _write_config(self, folder: Path) -> None:
        (folder / RUNNER_CFG_FILENAME).write_text(json.dumps(self.cfg.to_dict(), indent=1))

    def _resume(self, checkpoint: Path) -> None:
        for name, trainer in self.trainers.items():
            folder = checkpoint / name
            if not is_checkpoint(folder):
                raise ValueError(
                    f"Checkpoint {checkpoint} has no crosscoder {name!r}: resume with the config it is of."
                )
            load_checkpoint(trainer, folder)
            past = trainer.n_training_samples
            trainer.checkpoint_thresholds = [n for n in trainer.checkpoint_thresholds if n > past]
            self.activations_store.load_from_checkpoint(folder)

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
