"""Show results as offline HTML pages, notebook views, figures and exports. Nothing here runs a model."""

from sae_lens_crosscoder.report.explorer import Exploration, LatentRecord, write_explorer
from sae_lens_crosscoder.report.export.neuronpedia import write_neuronpedia
from sae_lens_crosscoder.report.figures.delta_norm_and_nu import delta_norm_histogram, nu_scatter
from sae_lens_crosscoder.report.figures.effects import effects_bars
from sae_lens_crosscoder.report.figures.first_look import hook_curves
from sae_lens_crosscoder.report.figures.images import write_images
from sae_lens_crosscoder.report.notebook import Comparison, LatentView, latent
from sae_lens_crosscoder.report.pages.audit import write_audit
from sae_lens_crosscoder.report.pages.effects import write_effects
from sae_lens_crosscoder.report.pages.first_look import write_first_look
from sae_lens_crosscoder.report.pages.report import write_report
from sae_lens_crosscoder.report.pages.weights import write_weights

__all__ = [
    "Comparison",
    "Exploration",
    "LatentRecord",
    "LatentView",
    "delta_norm_histogram",
    "effects_bars",
    "hook_curves",
    "latent",
    "nu_scatter",
    "write_audit",
    "write_effects",
    "write_explorer",
    "write_first_look",
    "write_images",
    "write_neuronpedia",
    "write_report",
    "write_weights",
]
