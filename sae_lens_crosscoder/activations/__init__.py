"""Paired activations: harvested from models, streamed in shuffled batches, and cached on disk."""

from sae_lens_crosscoder.activations.cache import ActivationCache, cache_activations
from sae_lens_crosscoder.activations.contrast_rows import ContrastRows, contrast_rows
from sae_lens_crosscoder.activations.drawn_batches import DrawnBatches
from sae_lens_crosscoder.activations.eval_data import EvalData
from sae_lens_crosscoder.activations.harvest import NonFiniteError, harvest
from sae_lens_crosscoder.activations.scales import MeanNorms
from sae_lens_crosscoder.activations.store import PairActivationsStore

__all__ = [
    "ActivationCache",
    "ContrastRows",
    "DrawnBatches",
    "EvalData",
    "MeanNorms",
    "NonFiniteError",
    "PairActivationsStore",
    "cache_activations",
    "contrast_rows",
    "harvest",
]
