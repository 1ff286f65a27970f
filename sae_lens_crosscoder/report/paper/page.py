"""The page of the paper's figures and tables for any crosscoder, each beside what the paper has for Gemma 2 2B."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from sae_lens_crosscoder.analysis.paper.paper_tables import PaperTables
from sae_lens_crosscoder.report.figures.class_histograms import (
    cosine_histogram,
    frequency_histogram,
    template_histogram,
)
from sae_lens_crosscoder.report.figures.curves import rank_curves, threshold_curves
from sae_lens_crosscoder.report.figures.delta_norm_and_nu import delta_norm_histogram
from sae_lens_crosscoder.report.figures.nu_histograms import (
    mse_improvement_boxes,
    overlap_histogram,
    template_nu_histogram,
)
from sae_lens_crosscoder.report.figures.nu_marginals import nu_marginals
from sae_lens_crosscoder.report.html.cells import MISSING, html_table, manifest_list
from sae_lens_crosscoder.report.html.document import write_document
from sae_lens_crosscoder.report.html.inert import inert
from sae_lens_crosscoder.report.pages.report_page import figure_block, page
from sae_lens_crosscoder.report.paper.numbers import OURS, THEIRS, mse_quantiles, paper_correlations

if TYPE_CHECKING:
    import plotly.graph_objects

TITLE = "What the paper reports, for this crosscoder"
_MAX_PAIRS = 30


@dataclass(frozen=True)
class Section:
    """A heading, what to make of it, and what stands under it."""

    title: str
    text: str
    figures: tuple[str, ...] = ()
    numbers: str | None = None
    """The section of `paper_numbers` that is shown."""
    table: Callable[[PaperTables], pd.DataFrame] | None = None
    """A further table per crosscoder."""


def paper_figures(tables: Mapping[str, PaperTables]) -> dict[str, "plotly.graph_objects.Figure"]:
    """The paper's figures by file name, drawn from the tables of `paper_tables` by crosscoder name."""
    latents = {name: each.latents for name, each in tables.items()}
    return {
        "delta_norm": delta_norm_histogram(latents),
        "nu_chat_only": nu_marginals(latents, "chat_only"),
        "nu_shared": nu_marginals(latents, "shared"),
        "thresholds": threshold_curves(latents),
        "overlap": overlap_histogram(latents),
        "cosines": cosine_histogram(latents),
        "frequencies": frequency_histogram(latents),
        "template_shares": template_histogram(latents),
        "nu_by_template_share": template_nu_histogram(latents),
        "ranks": rank_curves(latents),
        "mse_improvement": mse_improvement_boxes(latents),
    }


def write_page(
    path: Path,
    tables: Mapping[str, PaperTables],
    numbers: pd.DataFrame,
    figures: Mapping[str, "plotly.graph_objects.Figure"],
) -> None:
    """Write one HTML file that opens anywhere, offline, with every number of ours beside the paper's."""
    parts = [
        f"<h1>{inert(TITLE)}</h1>",
        f"<p>{_INTRODUCTION}</p>",
        *(_section(section, tables, numbers, figures) for section in SECTIONS),
        "<h2>What this was made from</h2>",
        '<div class="manifests">',
        *(f"<div><h3>{inert(name)}</h3>{manifest_list(each.latents.attrs)}</div>" for name, each in tables.items()),
        "</div>",
    ]
    write_document(path, page(TITLE, "\n".join(parts)))


def _section(
    section: Section,
    tables: Mapping[str, PaperTables],
    numbers: pd.DataFrame,
    figures: Mapping[str, "plotly.graph_objects.Figure"],
) -> str:
    parts = [f"<h2>{inert(section.title)}</h2>", f"<p>{section.text}</p>"]
    parts += [figure_block(figures[name], "two" if len(tables) > 1 else "") for name in section.figures]
    if section.numbers is not None:
        parts.append(
            html_table(_shown(pd.DataFrame(numbers.loc[section.numbers])), corner="", css_class="comparison narrow")
        )
    if section.table is not None:
        for name, each in tables.items():
            frame = section.table(each)
            shown = html_table(frame, corner="", css_class="comparison narrow") if len(frame) else "<p>none</p>"
            parts.append(f"<h3>{inert(name)}</h3>{shown}")
    return "\n".join(parts)


def _shown(numbers: pd.DataFrame) -> pd.DataFrame:
    """Numbers as texts, under heads that tell ours from the paper's; of those, a column without any is left out."""
    shown = {
        f"{of}: {name}": [number(value) for value in numbers[of, name]]
        for of, name in numbers.columns
        if of == OURS or numbers[of, name].notna().any()
    }
    return pd.DataFrame(shown, index=numbers.index)


def number(value: Any) -> str:
    """A number as text: counts whole, others with three significant digits, an unknown one as a dash.

    >>> number(3176), number(0.04308), number(float("nan")), number("none")
    ('3,176', '0.0431', '–', 'none')
    """
    if isinstance(value, str):
        return value
    if value is None or value != value:
        return MISSING
    text = f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
    return text.replace("-", "\u2212")


def _correlations(tables: PaperTables) -> pd.DataFrame:
    found = paper_correlations(tables.latents)
    return _texts(found.set_axis([f"{nu} with {other}, {latents}" for latents, nu, other in found.index]))


def _pairs(tables: PaperTables) -> pd.DataFrame:
    pairs = tables.pairs.sort_values("cosine", ascending=False, kind="stable").head(_MAX_PAIRS)
    names = [f"{chat} and {base}" for chat, base in zip(pairs["chat_latent"], pairs["base_latent"], strict=True)]
    columns = ("cosine", "isolated", "divergence", "n_high", "n_only_chat", "n_only_base", "chat_max", "base_max")
    return _texts(pairs.set_axis(names).filter(columns))


def _mse(tables: PaperTables) -> pd.DataFrame:
    quantiles = mse_quantiles(tables.latents)
    targets = [f"{target}, {label}" for target, label in zip(quantiles["target"], quantiles["class"], strict=True)]
    return _texts(quantiles.set_axis(targets).drop(columns=["target", "class"]))


def _texts(frame: pd.DataFrame) -> pd.DataFrame:
    """A table whose small numbers, such as p-values, keep their digits."""
    floats = frame.select_dtypes("float").columns
    return frame.assign(**{column: [number(value) for value in frame[column]] for column in floats})


_INTRODUCTION = (
    f"Every table and figure that the paper on artifacts of crosscoders (arXiv 2504.02922) makes from activations. "
    f"Columns <b>{OURS}</b> are measured here; columns <b>{THEIRS}</b> are what is published for Gemma 2 2B and its "
    "chat-tuned version, layer 13, 73,728 latents (that of Kissane et al. has 16,384), and a dash is a number that is "
    "not known. The two are of different models: the paper's are for comparison, not a target."
)
SECTIONS = (
    Section(
        "Classes of latents",
        "On which model latents write, from the norms of their decoders. Classes count dead latents as well, as the "
        "paper's do; the figure does not draw them.",
        ("delta_norm",),
        "classes",
    ),
    Section(
        "What is reconstructed",
        "Fraction of variance explained (FVE) over the whole set of tokens, and latents that fire per token (L0).",
        (),
        "reconstruction",
    ),
    Section(
        "Two artifacts: nu of chat-only latents",
        "A high nu_error is Complete Shrinkage: base has the latent, and its decoder norm there was shrunk away. A "
        "high nu_reconstruction is Latent Decoupling: other latents write it into base. In the paper many chat-only "
        "latents of L1 have a high nu, and next to none of BatchTopK.",
        ("nu_chat_only",),
    ),
    Section(
        "The same for shared latents",
        "Both models have these, so their nu lie around 1.",
        ("nu_shared",),
    ),
    Section(
        "Chat-only latents under every threshold",
        "How many chat-only latents are left when both nu must be below pi. Dotted: the limits of nu_error and of "
        "nu_reconstruction that the verdicts use.",
        ("thresholds",),
        "thresholds",
    ),
    Section(
        "Overlap with the shared latents",
        "A chat-only latent with the nu_reconstruction of a shared one is decoupled. Shaded: where the central 95 % "
        "and 50 % of the shared latents lie. Latents that fire on few tokens have noisy nu and widen both.",
        ("overlap",),
        "overlap",
    ),
    Section(
        "Directions of decoder pairs",
        "Cosine of each latent's two decoders. A decoder that was shrunk to next to nothing has hardly a direction, so "
        "those of one-sided latents scatter.",
        ("cosines",),
        "cosines",
    ),
    Section(
        "How often latents fire",
        "The share of all tokens on which a latent is on.",
        ("frequencies",),
        "frequencies",
    ),
    Section(
        "Template tokens",
        "Of the chat tokens on which a latent is on, BOS left out, the share that the chat template added. Mostly: at "
        "least half.",
        ("template_shares",),
        "template",
    ),
    Section(
        "nu and template tokens",
        "Whether the chat-only latents without artifacts are those of the template.",
        ("nu_by_template_share",),
    ),
    Section(
        "Do nu and Delta_norm agree?",
        "The most chat-leaning latents, as large a share as the paper's 3,176, ranked by Delta_norm and by the two nu "
        "(lowest sum of ranks). Where Delta_norm has no meaning the curve is that of chance, as in the paper for L1.",
        ("ranks",),
    ),
    Section(
        "Correlations of nu",
        "With frequency and with Delta_norm; p-values take latents as independent. Which of the paper's two Pearson "
        "correlations belongs to which nu is not published.",
        (),
        "correlations",
        _correlations,
    ),
    Section(
        "Decoupled pairs",
        "Pairs of a chat-only and a base-only latent that write one direction, each into its own model; isolated: the "
        "two have no other neighbour. Divergence 0: they fire together, 1: never. Of the paper's 109 isolated pairs "
        f"60 % fire in different contexts. At most {_MAX_PAIRS} are shown.",
        (),
        "pairs",
        _pairs,
    ),
    Section(
        "Does Latent Scaling explain anything?",
        "The share by which a latent's scaled direction reduces the mean squared error of predicting each target as 0, "
        "with the factor fitted on one half of the batches and judged on the other. No figure is published for Gemma.",
        ("mse_improvement",),
        None,
        _mse,
    ),
)
