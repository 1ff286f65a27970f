"""Load saved crosscoders, this package's and published ones."""

from sae_lens_crosscoder.loading.estimate import estimate_theta
from sae_lens_crosscoder.loading.load import crosscoder_huggingface_loader, load

__all__ = ["crosscoder_huggingface_loader", "estimate_theta", "load"]
