"""Makes crosscoders known to SAELens."""

from collections.abc import Mapping
from typing import Any

from sae_lens.registry import (
    SAE_CLASS_REGISTRY,
    SAE_TRAINING_CLASS_REGISTRY,
    register_sae_class,
    register_sae_training_class,
)

from sae_lens_crosscoder.crosscoders.batchtopk import BatchTopKTrainingCrosscoder
from sae_lens_crosscoder.crosscoders.batchtopk_config import BatchTopKCrosscoderTrainingConfig
from sae_lens_crosscoder.crosscoders.inference import (
    JumpReLUCrosscoder,
    JumpReLUCrosscoderConfig,
    ReLUCrosscoder,
    ReLUCrosscoderConfig,
)
from sae_lens_crosscoder.crosscoders.jumprelu import JumpReLUCrosscoderTrainingConfig, JumpReLUTrainingCrosscoder
from sae_lens_crosscoder.crosscoders.l1 import L1CrosscoderTrainingConfig, L1TrainingCrosscoder
from sae_lens_crosscoder.crosscoders.matryoshka import (
    MatryoshkaBatchTopKCrosscoderTrainingConfig,
    MatryoshkaBatchTopKTrainingCrosscoder,
)
from sae_lens_crosscoder.crosscoders.topk import TopKCrosscoderTrainingConfig, TopKTrainingCrosscoder


def register_architectures() -> None:
    """Register `crosscoder` and `jumprelu_crosscoder` with SAELens, for training and for inference.

    For training only, also `batchtopk_crosscoder`, `topk_crosscoder` and `matryoshka_batchtopk_crosscoder`, which are
    saved as a `jumprelu_crosscoder`.

    Importing the package calls this. Calling it again, or reloading the modules in a notebook, replaces our own
    entries; an entry of somebody else's is left alone and reported by SAELens.
    """
    for sae_class, cfg_class in (
        (ReLUCrosscoder, ReLUCrosscoderConfig),
        (JumpReLUCrosscoder, JumpReLUCrosscoderConfig),
    ):
        _forget_ours(SAE_CLASS_REGISTRY, cfg_class.architecture())
        register_sae_class(cfg_class.architecture(), sae_class, cfg_class)
    for sae_class, cfg_class in (
        (L1TrainingCrosscoder, L1CrosscoderTrainingConfig),
        (BatchTopKTrainingCrosscoder, BatchTopKCrosscoderTrainingConfig),
        (TopKTrainingCrosscoder, TopKCrosscoderTrainingConfig),
        (MatryoshkaBatchTopKTrainingCrosscoder, MatryoshkaBatchTopKCrosscoderTrainingConfig),
        (JumpReLUTrainingCrosscoder, JumpReLUCrosscoderTrainingConfig),
    ):
        _forget_ours(SAE_TRAINING_CLASS_REGISTRY, cfg_class.architecture())
        register_sae_training_class(cfg_class.architecture(), sae_class, cfg_class)


def _forget_ours(registry: Mapping[str, tuple[type[Any], type[Any]]], architecture: str) -> None:
    registered = registry.get(architecture)
    if registered is not None and registered[0].__module__.startswith("sae_lens_crosscoder."):
        assert isinstance(registry, dict)
        del registry[architecture]
