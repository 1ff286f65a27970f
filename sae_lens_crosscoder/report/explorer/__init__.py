"""The explorer: everything about every latent, gathered, and as one HTML file."""

from sae_lens_crosscoder.report.explorer.gather import explore
from sae_lens_crosscoder.report.explorer.page import write_explorer
from sae_lens_crosscoder.report.explorer.records import Exploration, LatentRecord

__all__ = ["Exploration", "LatentRecord", "explore", "write_explorer"]
