"""Every table and figure of the paper for any crosscoder: one page, its numbers as files, and static images."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from sae_lens_crosscoder.analysis.inputs import Activations
from sae_lens_crosscoder.analysis.paper.paper_tables import PaperTables, paper_tables
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.data.token_groups import TokenGroups
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.report.figures.images import ImageFormat, require_formats, write_images
from sae_lens_crosscoder.report.paper.files import write_tables
from sae_lens_crosscoder.report.paper.numbers import paper_numbers
from sae_lens_crosscoder.report.paper.page import paper_figures, write_page

PAGE_FILENAME = "paper.html"
FIGURES_FOLDER = "figures"


def paper_report(
    crosscoders: InferenceCrosscoder | Mapping[str, InferenceCrosscoder],
    pair: HookedModelPair | None = None,
    tokens: Tensor | None = None,
    *,
    keep: Tensor | None = None,
    groups: TokenGroups | None = None,
    sources: Sequence[str] | TokenGroups | None = None,
    activations: Activations | None = None,
    output_path: str | Path = "paper",
    images: Sequence[ImageFormat] = ("png",),
    batch_size_prompts: int = 32,
) -> dict[str, PaperTables]:
    """Measure crosscoders and write everything that the paper reports of its own, each number beside the paper's.

    Written are `paper.html` (one page that opens offline), `paper.json` (all numbers and small tables),
    `latents.parquet` (everything about every latent) and `figures/`.

    Args:
        crosscoders: one, or several of one pair and hook by name.
        pair, tokens, keep, groups, sources, activations: held-out data, as `latent_statistics` takes it. Template
            shares are known only with groups.
        images: formats of the static images, `png` and `svg`. They need the extra `images` and a Chrome; without, all
            else is written, with a warning.

    Returns:
        What was measured, by crosscoder name.

    Raises:
        ValueError: for whatever `paper_tables` refuses, or an unknown image format, before anything runs.
    """
    if isinstance(crosscoders, InferenceCrosscoder):
        crosscoders = {"crosscoder": crosscoders}
    require_formats(images)
    folder = Path(output_path)
    folder.mkdir(parents=True, exist_ok=True)  # fails now rather than after the work
    tables = paper_tables(
        crosscoders,
        pair,
        tokens,
        keep=keep,
        groups=groups,
        sources=sources,
        activations=activations,
        batch_size_prompts=batch_size_prompts,
    )
    figures = paper_figures(tables)
    numbers = paper_numbers(tables)
    write_tables(folder, tables, numbers)
    write_page(folder / PAGE_FILENAME, tables, numbers, figures)
    try:
        if images:
            write_images(figures, folder / FIGURES_FOLDER, images)
    except ValueError as error:
        warnings.warn(f"{folder} has everything but static images. {error}", stacklevel=2)
    return tables
