"""Training crosscoders on a pair of models: configs, runner, trainer, checkpoints, several processes."""

from sae_lens_crosscoder.training.checkpoints.folder import CheckpointError
from sae_lens_crosscoder.training.data.run_cache import write_run_cache
from sae_lens_crosscoder.training.interruption import TrainingInterrupted
from sae_lens_crosscoder.training.loop import CrosscoderTrainer, train_together
from sae_lens_crosscoder.training.polishing.polish import PolishConfig, polish
from sae_lens_crosscoder.training.recipe import TrainingRecipe
from sae_lens_crosscoder.training.runner import CrosscoderTrainingRunner
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig
from sae_lens_crosscoder.training.trainer_config import CrosscoderTrainerConfig

__all__ = [
    "CheckpointError",
    "CrosscoderRunnerConfig",
    "CrosscoderTrainer",
    "CrosscoderTrainerConfig",
    "CrosscoderTrainingRunner",
    "PolishConfig",
    "TrainingInterrupted",
    "TrainingRecipe",
    "polish",
    "train_together",
    "write_run_cache",
]
