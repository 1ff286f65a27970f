"""Crosscoders as SAELens architectures, for training and for inference."""

from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.crosscoders.jumprelu import JumpReLUCrosscoderTrainingConfig, JumpReLUTrainingCrosscoder
from sae_lens_crosscoder.crosscoders.matryoshka import (
    MatryoshkaBatchTopKCrosscoderTrainingConfig,
    MatryoshkaBatchTopKTrainingCrosscoder,
)
from sae_lens_crosscoder.crosscoders.registration import register_architectures
from sae_lens_crosscoder.crosscoders.topk import TopKCrosscoderTrainingConfig, TopKTrainingCrosscoder

__all__ = [
    "InferenceCrosscoder",
    "JumpReLUCrosscoderTrainingConfig",
    "JumpReLUTrainingCrosscoder",
    "MatryoshkaBatchTopKCrosscoderTrainingConfig",
    "MatryoshkaBatchTopKTrainingCrosscoder",
    "TopKCrosscoderTrainingConfig",
    "TopKTrainingCrosscoder",
    "register_architectures",
]
