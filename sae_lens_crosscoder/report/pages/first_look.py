"""The page of a first look: the recommended hook, where and on what the models differ, and the baseline directions."""

from pathlib import Path

import pandas as pd

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.causal.localisation.first_look import FirstLook
from sae_lens_crosscoder.causal.localisation.hooks import short_name
from sae_lens_crosscoder.report.figures.first_look import hook_curves
from sae_lens_crosscoder.report.html.cells import MISSING, significant
from sae_lens_crosscoder.report.html.document import render_figure_page, write_document
from sae_lens_crosscoder.report.html.inert import visible

N_PROMPTS_SHOWN = 12


@validate_arguments
def write_first_look(look: FirstLook, path: str | Path, title: str = "First look") -> Path:
    """Write the recommendation, figure and tables as one HTML file that opens anywhere, offline.

    Args:
        look: the result of `first_look`.
    """
    page = render_figure_page(
        "pages/first_look.html",
        title,
        recommendation=look.recommendation,
        manifest=look.manifest,
        curves=hook_curves(look),
        hooks=_hooks(look.hooks),
        groups=look.groups,
        positions=_in_one_line(look.positions),
        most=_in_one_line(look.prompts.head(N_PROMPTS_SHOWN)),
        least=_in_one_line(look.prompts.tail(max(0, min(N_PROMPTS_SHOWN, len(look.prompts) - N_PROMPTS_SHOWN)))),
        directions={
            str(hook): _in_one_line(table.drop(columns="hook_name"))
            for hook, table in look.directions.groupby("hook_name", sort=False)
        },
    )
    return write_document(page, path)


def _hooks(hooks: pd.DataFrame) -> pd.DataFrame:
    interval = [
        f"{low:.2f} to {high:.2f}" for low, high in zip(hooks.share_last_low, hooks.share_last_high, strict=True)
    ]
    columns: dict[str, object] = {"share_last": hooks["share_last"], "interval": interval}
    for name in ("share_all", "share_tokens", "difference_last", "difference_all"):
        columns[name] = hooks[name]
    for name in ("position_0", "special"):
        both = zip(hooks[f"{name}_base"], hooks[f"{name}_chat"], strict=True)
        columns[name] = [" and ".join(map(significant, pair)) if pair[0] == pair[0] else MISSING for pair in both]
    shown = pd.DataFrame({**columns, "n_left_out": hooks["n_left_out"]})
    return shown.set_axis([short_name(str(name)) for name in hooks.index])


def _in_one_line(table: pd.DataFrame) -> pd.DataFrame:
    """The table with line breaks in texts shown as a sign, and without what a column of texts cannot hold."""
    return pd.DataFrame({name: table[name].map(_one_line) for name in table})


def _one_line(value: object) -> object:
    return visible(value.replace("\n", "\u21b5")) if isinstance(value, str) else value
