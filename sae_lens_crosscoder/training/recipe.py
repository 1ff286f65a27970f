"""TrainingRecipe: a crosscoder's config and schedule, to train more crosscoders in the same way."""

import copy
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from jaxtyping import Float
from sae_lens import SAE
from sae_lens.registry import get_sae_training_class
from sae_lens.util import temporary_seed
from torch import Tensor

from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.crosscoders.training_config import CrosscoderTrainingConfigBase
from sae_lens_crosscoder.training.loop import CrosscoderTrainer
from sae_lens_crosscoder.training.saved_run import load_runner_config
from sae_lens_crosscoder.training.trainer_config import CrosscoderTrainerConfig

# Fields of a run that say where it ran and what it logged, but not how it trained.
_NOT_RECORDED = (
    *("device", "autocast", "logger", "log_frequency", "metrics_path", "feature_sampling_window"),
    *("n_checkpoints", "n_checkpoints_kept", "checkpoint_path", "save_final_checkpoint", "resume_from_checkpoint"),
)


@dataclass(frozen=True)
class TrainingRecipe:
    """Everything about the training of a crosscoder but the activations."""

    crosscoder: CrosscoderTrainingConfigBase
    trainer: CrosscoderTrainerConfig

    def train(self, batches: Iterator[Float[Tensor, "batch d_in"]], *, seed: int = 0) -> InferenceCrosscoder:
        """Train a crosscoder and return its inference form, whose metadata holds the recipe.

        Args:
            batches: raw stacked activations, such as `activations.DrawnBatches` yields.
        """
        cfg: Any = copy.deepcopy(self.crosscoder)  # training writes into it
        sae_class, _ = get_sae_training_class(cfg.architecture())
        with temporary_seed(seed):
            crosscoder: Any = sae_class(cfg)
            crosscoder.cfg.metadata.recipe = self.to_dict()
            crosscoder.cfg.metadata.seed = seed
            CrosscoderTrainer(copy.deepcopy(self.trainer), crosscoder, batches).fit()
        with tempfile.TemporaryDirectory() as folder:
            crosscoder.save_inference_model(folder)
            trained: Any = SAE.load_from_disk(folder, device=self.trainer.device)
        return trained

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON can hold it."""
        crosscoder = {name: value for name, value in self.crosscoder.to_dict().items() if name != "metadata"}
        trainer = {name: value for name, value in asdict(self.trainer).items() if name not in _NOT_RECORDED}
        return {"crosscoder": crosscoder, "trainer": trainer}

    @classmethod
    def of(cls, crosscoder: InferenceCrosscoder, device: str = "cpu") -> "TrainingRecipe":
        """The recipe of a crosscoder that `train` returned, from its metadata.

        Raises:
            ValueError: for another crosscoder.
        """
        recipe = getattr(crosscoder.cfg.metadata, "recipe", None)
        if not isinstance(recipe, dict):
            raise ValueError(
                "The crosscoder's metadata has no training recipe. Pass recipe=TrainingRecipe.load(folder) for one "
                "that the runner trained, or TrainingRecipe(crosscoder=..., trainer=...)."
            )
        _, cfg_class = get_sae_training_class(recipe["crosscoder"]["architecture"])
        cfg: Any = cfg_class.from_dict(dict(recipe["crosscoder"]))
        return cls(cfg, CrosscoderTrainerConfig(**recipe["trainer"], device=device))

    @classmethod
    def load(cls, folder: str | Path, name: str = "") -> "TrainingRecipe":
        """The recipe of a crosscoder that the training runner saved in a folder.

        Args:
            name: the crosscoder's name, if the run trained several.
        """
        cfg = load_runner_config(str(folder))
        if name not in cfg.crosscoder_configs:
            raise ValueError(f"{folder} has no crosscoder {name!r}. Pass one of {sorted(cfg.crosscoder_configs)}.")
        crosscoder: Any = cfg.crosscoder_configs[name]
        trainer: Any = cfg.to_sae_trainer_config()
        known = {field.name for field in fields(CrosscoderTrainerConfig)} - set(_NOT_RECORDED)
        return cls(
            crosscoder,
            CrosscoderTrainerConfig(**{field: getattr(trainer, field) for field in known}, device=trainer.device),
        )
