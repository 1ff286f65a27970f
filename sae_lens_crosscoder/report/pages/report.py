"""The report on a diagnosis: one HTML file that shows what fine-tuning changed."""

from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from sae_lens_crosscoder.activations.dominant_tokens import describe_dominant_tokens
from sae_lens_crosscoder.analysis.diagnosis.classes import CLASS_BORDERS
from sae_lens_crosscoder.analysis.diagnosis.diagnosis import Diagnosis, validate_one_pair
from sae_lens_crosscoder.analysis.diagnosis.own_probe import with_own_probe
from sae_lens_crosscoder.analysis.diagnosis.verdict import BASIS_FREE, nu_kind_of
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.partition import BY_CONSTRUCTION
from sae_lens_crosscoder.report.figures.delta_norm_and_nu import REGIONS, delta_norm_histogram, nu_scatter
from sae_lens_crosscoder.report.figures.panels import validate_tables
from sae_lens_crosscoder.report.html.document import render_figure_page, write_document

N_LATENTS_SHOWN = 30
_CONCEPTS = (
    "Each concept's carrier: the latent that writes the largest share of the difference between prompts with and "
    "without it, chosen on other prompts than those measured here. A dash: no latent writes more than a tenth."
)
_CONCEPT_COLUMNS = {
    "coverage": "the share that all latents together write",
    "delta_contrast": "Delta_norm of what they write, 0 for base only, 1 for chat only",
    "auroc": "how well the carrier's activation tells the two groups of prompts apart",
    "on_positive": "the share of prompts with the concept on which it is active",
    "on_negative": "the same for prompts without",
    "probe": "the model whose decoder probed the nu",
}
_COLUMNS = (
    *("delta_norm", "label", "verdict", "n_active", "max_activation", "dead"),
    *("nu_error", "nu_error_low", "nu_error_high"),
    *("nu_reconstruction", "nu_reconstruction_low", "nu_reconstruction_high"),
    *("nu_free", "q_value"),
)


@validate_arguments
def write_report(
    diagnoses: Mapping[str, Diagnosis],
    path: str | Path,
    comparison: pd.DataFrame,
    concepts: pd.DataFrame | None = None,
    title: str = "Crosscoder report",
    notes: Sequence[str] = (),
) -> Path:
    """Write one HTML file (about 5 MB, mostly plotly.js) that opens anywhere, offline, and can be printed.

    All names are escaped. The Content-Security-Policy forbids requests and all scripts but the page's own two.

    Args:
        diagnoses: by crosscoder name.
        comparison: formatted texts, a column per crosscoder and a row per quantity.
        concepts: a table of `analysis.concepts`. The index is shown unless it is a plain count.
        notes: sentences for the end of the page. One per crosscoder on the tokens that dominate follows them.

    Raises:
        ValueError: if `diagnoses` is empty, or a table lacks a column that is shown.
    """
    for diagnosis in diagnoses.values():
        validate_one_pair(diagnosis, "write_report")
    tables = {name: diagnosis.latents for name, diagnosis in diagnoses.items()}
    validate_tables(tables, _COLUMNS)
    if concepts is not None and not isinstance(concepts.index, pd.RangeIndex):
        concepts = concepts.reset_index()
    stops = (0, *CLASS_BORDERS, 1)
    page = render_figure_page(
        "pages/report.html",
        title,
        manifests={name: diagnosis.manifest for name, diagnosis in diagnoses.items()},
        comparison=comparison,
        concepts=concepts,
        concepts_caption=_caption(concepts) if concepts is not None else "",
        turned={name: _named(table) for name, table in tables.items() if "named" in table},
        used={name: _used_differently(table) for name, table in tables.items() if "use" in table},
        most_chat_only={name: _most_chat_only(table) for name, table in tables.items()},
        histogram=delta_norm_histogram(diagnoses),
        scatter=nu_scatter(diagnoses),
        regions=REGIONS,
        region_columns=" ".join(f"minmax(0,{high - low:.2f}fr)" for low, high in pairwise(stops)),
        n_latents_shown=N_LATENTS_SHOWN,
        by_construction=BY_CONSTRUCTION if any("exclusive" in table for table in tables.values()) else "",
        basis_free=[name for name, table in tables.items() if nu_kind_of(table) == "basis_free"],
        basis_free_sentence=BASIS_FREE,
        nus={name: each.nu_columns for name, each in diagnoses.items()},
        notes=[*notes, *(note for name, each in diagnoses.items() for note in _dominant_tokens(name, each.manifest))],
    )
    return write_document(page, path)


def _caption(concepts: pd.DataFrame) -> str:
    """What the table of concepts shows, with a word on each of its columns that needs one."""
    said = [f"{name}: {meaning}." for name, meaning in _CONCEPT_COLUMNS.items() if name in concepts]
    return " ".join([_CONCEPTS, *said])


def _dominant_tokens(name: str, manifest: Mapping[str, Any]) -> list[str]:
    """The tokens that a diagnosis left out, and the FVE with them; nothing if it kept all tokens."""
    summary = manifest.get("dominant_tokens")
    if summary is None:
        return []
    text = f"{name}: {describe_dominant_tokens(summary, manifest['max_norms'])}"
    if summary["n_left_out"] == 0:
        return [text]
    both = [f"{value:.3f} ({model})" for model, value in manifest["fve_all_tokens"].items()]
    return [f"{text} FVE with them: {', '.join(both)}."]


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """Latents that `changed` named, the one that writes most first."""
    named = table[table["named"].astype(bool)].sort_values("written", ascending=False, kind="stable")
    return named[["class", "delta_norm", "rho", "q_rho", "written", "q_written", "n_active"]].head(N_LATENTS_SHOWN)


def _used_differently(table: pd.DataFrame) -> pd.DataFrame:
    """Latents that one model uses more, the largest ratio first."""
    rows = table[table["use"].str.startswith("more_in")]
    rows = rows.sort_values("log_use_ratio", key=abs, ascending=False, kind="stable")
    rates = [str(name) for name in table if str(name).startswith(("rate_", "magnitude_"))]
    intervals = [f"log_use_ratio{end}" for end in ("", "_low", "_high")]
    return rows[["use", *intervals, *rates, "q_use", "n_active"]].head(N_LATENTS_SHOWN)


def _most_chat_only(table: pd.DataFrame) -> list[dict[Hashable, Any]]:
    """Rows of the live latents with the highest Delta_norm; ties are broken by n_active."""
    table = with_own_probe(table)
    alive = table[~table["dead"].astype(bool)].rename_axis("latent").reset_index()
    top = alive.sort_values(["delta_norm", "n_active"], ascending=False, kind="stable").head(N_LATENTS_SHOWN)
    return top.to_dict("records")
