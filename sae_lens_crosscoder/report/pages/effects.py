"""The page of the causal experiment: the paper's bar chart and the tables behind it."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.report.figures.effects import effects_bars
from sae_lens_crosscoder.report.html.document import render_figure_page, write_document

_HIDDEN = [f"{quantity}_{end}" for quantity in ("loss_nats", "frac_agree") for end in ("low", "high")]


@validate_arguments
def write_effects(
    effects: Mapping[str, pd.DataFrame],
    path: str | Path,
    contrasts: Mapping[str, pd.DataFrame] | None = None,
    title: str = "What the latents carry",
) -> Path:
    """Write the bar chart and the tables behind it as one HTML file that opens anywhere, offline.

    Args:
        effects: tables of `causal_effects` by crosscoder name.
        contrasts: `CausalEffects.contrasts` by crosscoder name.

    Raises:
        ValueError: as `effects_bars`.
    """
    page = render_figure_page(
        "pages/effects.html",
        title,
        bars=effects_bars(effects),
        effects={name: _shown(table) for name, table in effects.items()},
        contrasts={name: _tested(table) for name, table in (contrasts or {}).items()},
    )
    return write_document(page, path)


def _shown(effects: pd.DataFrame) -> pd.DataFrame:
    return effects.loc[effects["n_tokens"] > 0, [column for column in effects if column not in _HIDDEN]]


def _tested(contrasts: pd.DataFrame) -> pd.DataFrame:
    tested = contrasts.dropna(subset="kl_nats_difference")
    return tested.assign(p_value=[f"{p:.3f}" for p in tested["p_value"]])
