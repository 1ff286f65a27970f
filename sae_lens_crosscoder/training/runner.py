"""From a config to saved crosscoders: load the pair, stream its activations, train, save."""

import copy
import json
import random
import tempfile
import warnings
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sae_lens import SAE
from sae_lens.config import HfDataset
from sae_lens.constants import RUNNER_CFG_FILENAME, SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from sae_lens.llm_sae_training_runner import LLMSaeEvaluator
from sae_lens.registry import get_sae_training_class
from sae_lens.training.sae_trainer import Evaluator
from sae_lens.util import temporary_seed
from safetensors import SafetensorError

from sae_lens_crosscoder.crosscoders.folder import saving_crosscoder
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.crosscoders.training import TrainingCrosscoder
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.stacking import hook_of_model, split_hooks
from sae_lens_crosscoder.storage.checksums import CHECKSUMS_FILENAME, FolderChecksums
from sae_lens_crosscoder.storage.locks import only_writer
from sae_lens_crosscoder.storage.notes import write_note
from sae_lens_crosscoder.training import wandb_log
from sae_lens_crosscoder.training.checkpoints.run_checkpoints import find_checkpoint, load_training_crosscoder
from sae_lens_crosscoder.training.data.run_data import RunData
from sae_lens_crosscoder.training.distributed.process_group import StoppedElsewhereError, connect
from sae_lens_crosscoder.training.interruption import interruptible
from sae_lens_crosscoder.training.loop import CrosscoderTrainer, train_together
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig
from sae_lens_crosscoder.training.trainer_config import CrosscoderTrainerConfig
from sae_lens_crosscoder.training.validation import slow_precisions, validate_no_folder_at, validate_writable

METRICS_FILENAME = "metrics.jsonl"
_OTHER_FOLDER = "Wait until it ends, or give another output_path."
_WRITTEN_FILES = (
    *(SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, RUNNER_CFG_FILENAME),
    *(METRICS_FILENAME, CHECKSUMS_FILENAME, "latents.parquet"),
)


class CrosscoderTrainingRunner(RunData):
    """SAELens's `LanguageModelSAETrainingRunner` for a pair of models.

    Everything is checked, and everything random is seeded from `cfg.seed`, before any long work starts.

    Args:
        cfg: see `CrosscoderRunnerConfig`.
        override_dataset: rows to use in place of `cfg.dataset_path`.
        override_model: a pair that is already loaded.

    Raises:
        ValueError: for a device or folder that cannot be used, a hook that the models do not have, widths that are
            not the models', an empty dataset, two models that do not differ, or an `output_path` that another run is
            writing to.
    """

    def __init__(
        self,
        cfg: CrosscoderRunnerConfig,
        override_dataset: HfDataset | None = None,
        override_model: HookedModelPair | None = None,
    ) -> None:
        collectives = connect(cfg.latent_shards, cfg.device, _shared_settings(cfg))
        cfg.checkpoint_path = collectives.broadcast(cfg.checkpoint_path)  # to which each appended another random id
        for folder in (cfg.output_path, cfg.checkpoint_path):
            validate_writable(folder)
        if cfg.output_path is not None:
            for name in cfg.crosscoder_configs:
                validate_no_folder_at(*(Path(cfg.output_path, name, file) for file in _WRITTEN_FILES))
            with collectives.fail_together():
                if collectives.is_lead and Path(cfg.output_path).is_dir():
                    with only_writer(cfg.output_path, _OTHER_FOLDER):  # known before any model is loaded
                        pass
        for note in slow_precisions(cfg):
            warnings.warn(note, stacklevel=2)
        if cfg.resume_from_checkpoint is not None:
            _resume_from(cfg.resume_from_checkpoint, cfg)
        _seed_everything(cfg.seed)
        super().__init__(cfg, override_dataset, override_model, collectives)
        self.pair_check = self.inspect_pair()
        """How far the models differ on a few held-out contexts; also in the crosscoder's `cfg.metadata.pair_check`."""
        if collectives.is_lead:
            write_note(self.pair_check.lines())
        self.training_crosscoders = {name: self._new_crosscoder(name) for name in cfg.crosscoder_configs}
        """The crosscoders in training form, by name; `run` returns their inference form."""
        self.trainers: dict[str, CrosscoderTrainer] = {}
        _seed_everything(cfg.seed)

    def run(self) -> Any:
        """Train, save, and return the inference crosscoder; with `cfg.saes`, a dict of them by name.

        Each is saved as a folder (cfg.json, sae_weights.safetensors, metrics.jsonl, runner_cfg.json): `cfg.output_path`
        itself, or a folder per name below it. Of several processes only the first writes; the others return None.
        """
        with ExitStack() as held:
            with self.collectives.fail_together():
                if self.collectives.is_lead and self.cfg.output_path is not None:
                    held.enter_context(only_writer(self.cfg.output_path, _OTHER_FOLDER))
            return self._run()

    def _run(self) -> Any:
        cfg, is_lead = self.cfg, self.collectives.is_lead
        self.trainers = {name: self._new_trainer(name) for name in self.training_crosscoders}
        for trainer in self.trainers.values():
            trainer.metrics_log.start_from([])
        if cfg.logger.log_to_wandb and is_lead:
            wandb_log.start(cfg.logger, cfg.to_dict())
        n_ahead = int(cfg.prefetch_llm_batches or 0)
        checkpoints = train_together(self.trainers, self.activations_store, settings=cfg.to_dict(), n_ahead=n_ahead)
        for name, part in self.training_crosscoders.items():
            whole = self.collectives.unshard(part)
            self.training_crosscoders[name] = part if whole is None else whole
        try:
            # Signals wait until the crosscoders are saved.
            with interruptible(self.collectives), self.collectives.fail_together():
                crosscoders = {name: self._save(name) for name in self.trainers if is_lead}
        except (OSError, SafetensorError, StoppedElsewhereError) as error:
            if cfg.checkpoint_path is not None:
                checkpoints.save_because_of(error)
            elif is_lead:
                self._save_elsewhere(error)
            raise
        if not is_lead:
            return None
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

    def _new_crosscoder(self, name: str) -> TrainingCrosscoder:
        cfg = copy.deepcopy(self.cfg.crosscoder_configs[name])  # training writes into it
        sae_class, _ = get_sae_training_class(cfg.architecture())
        crosscoder: Any
        if self.cfg.from_pretrained_path is not None:
            crosscoder = load_training_crosscoder(Path(self.cfg.from_pretrained_path, name), cfg)
        else:
            with temporary_seed(self.cfg.seed):  # so that a crosscoder does not depend on its neighbours
                crosscoder = sae_class(cfg)
        metadata = crosscoder.cfg.metadata
        metadata.model_name, metadata.chat_model_name = (*self.model_names, None)[:2]
        named = [
            (name, hook)
            for m, name in enumerate(self.model_names)
            for hook in split_hooks(hook_of_model(self.cfg.hook_name, m))
        ]
        if len(named) > 2 or len({hook for _, hook in named}) > 1:
            metadata.sources = [{"model_name": name, "hook_name": hook} for name, hook in named]
        metadata.pair_check = self.pair_check.to_dict()
        settings = self.cfg.to_dict()
        for key in (
            "token_replacements",
            "align_tokens",
            "hook_name",
            "hook_head_index",
            "model_class_name",
            "dataset_path",
            "mix",
            "packing",
            "context_size",
            "seqpos_slice",
            "prepend_bos",
            "exclude_special_tokens",
            "sequence_separator_token",
            "disable_concat_sequences",
            "seed",
        ):
            setattr(metadata, key, settings[key])
        return self.collectives.shard(crosscoder.to(self.cfg.device))

    def _new_trainer(self, name: str) -> CrosscoderTrainer:
        trainer_cfg: CrosscoderTrainerConfig = self.cfg.to_sae_trainer_config()
        if not self.collectives.is_lead:
            trainer_cfg.logger = replace(trainer_cfg.logger, log_to_wandb=False)
        elif self.cfg.output_path is not None:
            trainer_cfg.metrics_path = str(Path(self.cfg.output_path, name, METRICS_FILENAME))
        # SAELens's evaluator runs a whole crosscoder in one process.
        # It also compares predictions token by token, which models with different tokenizers do not have.
        has_evaluator = self.collectives.n_processes == 1 and not self.reads_cache and not self.cfg.align_tokens
        evaluator = self._evaluator() if has_evaluator else None
        return CrosscoderTrainer(
            trainer_cfg,
            self.training_crosscoders[name],
            self.activations_store,
            evaluator=evaluator,
            save_checkpoint_fn=self._write_config,
            name=name,
        )

    def _evaluator(self) -> Evaluator[Any]:
        return LLMSaeEvaluator(
            model=self.pair,
            activations_store=self.held_out_store,
            eval_batch_size_prompts=self.cfg.eval_batch_size_prompts,
            n_eval_batches=self.cfg.n_eval_batches,
            model_kwargs=self.cfg.model_kwargs,
        )

    def _write_config(self, checkpoint_path: Path | None) -> None:
        assert checkpoint_path is not None  # SAELens has no checkpoint without a path, and we call it for no other
        (checkpoint_path / RUNNER_CFG_FILENAME).write_text(json.dumps(self.cfg.to_dict(), indent=1))

    def _save_elsewhere(self, error: BaseException) -> None:
        """Save the training crosscoders in a temporary folder, and add its name to the error's notes."""
        folder = tempfile.mkdtemp(prefix="crosscoders-")
        try:
            for name, crosscoder in self.training_crosscoders.items():
                crosscoder.save_model(Path(folder, name))
        except (OSError, SafetensorError) as unsaved:
            error.add_note(f"The crosscoders could not be saved in {folder} either: {unsaved}")
            return
        error.add_note(f"The trained crosscoders are saved in training form in {folder}: move them from there.")

    def _save(self, name: str) -> InferenceCrosscoder:
        crosscoder = self.training_crosscoders[name]
        if self.cfg.output_path is None:
            with tempfile.TemporaryDirectory() as folder:
                crosscoder.save_inference_model(folder)
                saved: Any = SAE.load_from_disk(folder, device=self.cfg.device)
                return saved
        path = Path(self.cfg.output_path, name)
        with saving_crosscoder(path) as partial:
            crosscoder.save_inference_model(partial)
            self._write_config(partial)
            checksums = FolderChecksums(partial)
            checksums.record(RUNNER_CFG_FILENAME)
            checksums.write()
        (path / "latents.parquet").unlink(missing_ok=True)  # that of an earlier crosscoder, if any
        saved = SAE.load_from_disk(path, device=self.cfg.device)
        return saved


def _shared_settings(cfg: CrosscoderRunnerConfig) -> dict[str, Any]:
    """Settings that all ranks must share: all but the checkpoint folder, to which each appends a random id."""
    return {name: value for name, value in cfg.to_dict().items() if name != "checkpoint_path"}


def _resume_from(requested: str, cfg: CrosscoderRunnerConfig) -> None:
    """Find the checkpoint, refused before any model is loaded; training continues in the folder of its run.

    `latest` is that of any run of this config: SAELens appends a new random id to `checkpoint_path` every time.
    """
    runs = None if cfg.checkpoint_path is None else list(Path(cfg.checkpoint_path).parent.glob("*"))
    folder = find_checkpoint(requested, runs, cfg.to_dict())
    cfg.resume_from_checkpoint = str(folder)
    if requested == "latest":
        cfg.checkpoint_path = str(folder.parent)


def _seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (the hosts use the global generator)
    torch.manual_seed(seed)
