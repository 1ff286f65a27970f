"""The explorer: one HTML file about every latent of one or several crosscoders."""

from sae_lens_crosscoder.report.explorer.page import write_explorer
from sae_lens_crosscoder.report.explorer.records import Exploration, LatentRecord

__all__ = ["Exploration", "LatentRecord", "write_explorer"]
