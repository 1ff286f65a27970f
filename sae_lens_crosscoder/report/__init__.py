"""What an analysis or the causal experiment found, as HTML files that need no network, and their figures alone."""

from sae_lens_crosscoder.report.effects import effects_bars, write_effects
from sae_lens_crosscoder.report.explorer import Exploration, LatentRecord, explore, write_explorer
from sae_lens_crosscoder.report.figures import delta_norm_histogram, nu_scatter
from sae_lens_crosscoder.report.html import write_report
from sae_lens_crosscoder.report.images import write_images
from sae_lens_crosscoder.report.neuronpedia import write_neuronpedia
from sae_lens_crosscoder.report.notebook import Comparison, LatentView, compare, latent
from sae_lens_crosscoder.report.paper import paper_report

__all__ = [
    "Comparison",
    "Exploration",
    "LatentRecord",
    "LatentView",
    "compare",
    "delta_norm_histogram",
    "effects_bars",
    "explore",
    "latent",
    "nu_scatter",
    "paper_report",
    "write_effects",
    "write_explorer",
    "write_images",
    "write_neuronpedia",
    "write_report",
]
