"""Crosscoders as SAELens architectures, for training and for inference."""

from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.crosscoders.registration import register_architectures

__all__ = ["InferenceCrosscoder", "register_architectures"]
