"""What an analysis or the causal experiment found, as HTML files that need no network, and their figures alone."""

from sae_lens_crosscoder.report.explorer import Exploration, LatentRecord, explore, write_explorer
from sae_lens_crosscoder.report.export.neuronpedia import write_neuronpedia
from sae_lens_crosscoder.report.figures.delta_norm_and_nu import delta_norm_histogram, nu_scatter
from sae_lens_crosscoder.report.figures.images import write_images
from sae_lens_crosscoder.report.notebook import Comparison, LatentView, compare, latent
from sae_lens_crosscoder.report.pages.effects import effects_bars, write_effects
from sae_lens_crosscoder.report.pages.report_page import write_report
from sae_lens_crosscoder.report.paper.paper import paper_report

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
