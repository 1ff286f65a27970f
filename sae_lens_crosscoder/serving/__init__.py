"""Serve the explorer of a saved crosscoder with its two models, to a browser and to programs."""

from sae_lens_crosscoder.serving.config import ServeConfig
from sae_lens_crosscoder.serving.serve import serve

__all__ = ["ServeConfig", "serve"]
