"""Notebook views of a latent and of a prompt: static HTML without scripts, or plain text."""

from sae_lens_crosscoder.report.notebook.comparison import Comparison
from sae_lens_crosscoder.report.notebook.latent_view import LatentView, latent

__all__ = ["Comparison", "LatentView", "latent"]
