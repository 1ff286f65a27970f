"""The public names at the top level; importing this module registers the architectures with SAELens."""

from sae_lens_crosscoder import activations as activations
from sae_lens_crosscoder import analysis as analysis
from sae_lens_crosscoder import causal as causal
from sae_lens_crosscoder import crosscoders as crosscoders
from sae_lens_crosscoder import data as data
from sae_lens_crosscoder import interpretation as interpretation
from sae_lens_crosscoder import loading as loading
from sae_lens_crosscoder import models as models
from sae_lens_crosscoder import planning as planning
from sae_lens_crosscoder import report as report
from sae_lens_crosscoder import serving as serving
from sae_lens_crosscoder import stacking as stacking
from sae_lens_crosscoder import synthetic as synthetic
from sae_lens_crosscoder import training as training
from sae_lens_crosscoder import workflows as workflows
from sae_lens_crosscoder.activations import ActivationCache, cache_activations
from sae_lens_crosscoder.activations.eval_data import EvalData
from sae_lens_crosscoder.analysis import Diagnosis, compare_dictionaries, delta_norm, diagnose, latent_use
from sae_lens_crosscoder.causal import patched
from sae_lens_crosscoder.crosscoders.batchtopk import BatchTopKTrainingCrosscoder
from sae_lens_crosscoder.crosscoders.batchtopk_config import BatchTopKCrosscoderTrainingConfig
from sae_lens_crosscoder.crosscoders.inference import (
    JumpReLUCrosscoder,
    JumpReLUCrosscoderConfig,
    ReLUCrosscoder,
    ReLUCrosscoderConfig,
)
from sae_lens_crosscoder.crosscoders.l1 import L1CrosscoderTrainingConfig, L1TrainingCrosscoder
from sae_lens_crosscoder.crosscoders.registration import register_architectures
from sae_lens_crosscoder.data import DataMix, MixSource
from sae_lens_crosscoder.loading import formats, load
from sae_lens_crosscoder.models import HookedModelPair
from sae_lens_crosscoder.report import latent, write_explorer
from sae_lens_crosscoder.training import (
    CrosscoderRunnerConfig,
    CrosscoderTrainer,
    CrosscoderTrainerConfig,
    CrosscoderTrainingRunner,
)
from sae_lens_crosscoder.workflows import audit, changed, compare, explore, first_look, paper_report, push_to_hub

register_architectures()

convert = formats
"""Published layouts of crosscoders and of latent tables."""
paper = paper_report
"""The paper's tables, figures and report."""

__all__ = [
    "ActivationCache",
    "BatchTopKCrosscoderTrainingConfig",
    "BatchTopKTrainingCrosscoder",
    "CrosscoderRunnerConfig",
    "CrosscoderTrainer",
    "CrosscoderTrainerConfig",
    "CrosscoderTrainingRunner",
    "DataMix",
    "Diagnosis",
    "EvalData",
    "HookedModelPair",
    "JumpReLUCrosscoder",
    "JumpReLUCrosscoderConfig",
    "L1CrosscoderTrainingConfig",
    "L1TrainingCrosscoder",
    "MixSource",
    "ReLUCrosscoder",
    "ReLUCrosscoderConfig",
    "audit",
    "cache_activations",
    "changed",
    "compare",
    "compare_dictionaries",
    "delta_norm",
    "diagnose",
    "explore",
    "first_look",
    "latent",
    "latent_use",
    "load",
    "patched",
    "push_to_hub",
    "write_explorer",
]
