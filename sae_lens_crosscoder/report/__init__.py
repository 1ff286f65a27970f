"""What an analysis found, as one HTML file that needs no network, and its two figures on their own."""

from sae_lens_crosscoder.report.figures import delta_norm_histogram, nu_scatter
from sae_lens_crosscoder.report.html import write_report

__all__ = ["delta_norm_histogram", "nu_scatter", "write_report"]
