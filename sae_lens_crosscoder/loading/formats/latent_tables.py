"""Latent tables of the paper's authors, with our columns and in our direction."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sae_lens_crosscoder.storage.checksums import blaming
from sae_lens_crosscoder.storage.tables import load_table

# Ours -> theirs: the paper's `feature_df.csv`, then the later toolkit's; the first one present is taken.
_COLUMNS = {
    "dec_norm_base": ("dec_base_norm",),
    "dec_norm_chat": ("dec_instruct_norm", "dec_ft_norm"),
    "cos_sim": ("dec_cos_sim",),
    "label": ("tag",),
    "nu_error": ("beta_ratio_error",),
    "nu_reconstruction": ("beta_ratio_reconstruction",),
    "frequency": ("freq", "freq_val"),
    "max_activation": ("max_act_val", "max_act_validation"),
    "dead": ("dead", "lmsys_dead"),
    "frac_template": ("lmsys_ctrl_%",),
    **{f"beta_{target}_chat": (f"beta_{target}_ft",) for target in ("error", "reconstruction", "activation")},
}
_LABELS = {
    "base only": "base_only",
    "chat only": "chat_only",
    "it only": "chat_only",
    "ft only": "chat_only",
    "shared": "shared",
    "other": "other",
}


def read_foreign_latents(path: str | Path) -> pd.DataFrame:
    """A latent table of the paper (`feature_df.csv`) or of its authors' toolkit, with the columns of `diagnose`.

    Their `dec_norm_diff` is 0 for chat-only latents; `delta_norm` is 1 minus it. Columns that have no counterpart keep
    their names. The index is the latent.

    Raises:
        ValueError: for a table without `dec_norm_diff`, one whose direction its own norms contradict, values that
            are no numbers or outside their range, tags that are not known, or an index that does not count latents.
    """
    path = Path(path)
    theirs = load_table(path)
    with blaming(path):
        return _with_our_columns(theirs, path)


def _with_our_columns(theirs: pd.DataFrame, path: Path) -> pd.DataFrame:
    if "dec_norm_diff" not in theirs:
        raise ValueError(f"{path} is no latent table of the paper's authors: it has no column dec_norm_diff.")
    if not pd.api.types.is_integer_dtype(theirs.index) or not theirs.index.is_unique:
        raise ValueError(f"The first column of {path} must hold every latent's number, each once.")
    differences = theirs["dec_norm_diff"]
    if not pd.api.types.is_numeric_dtype(differences) or not differences.dropna().between(0, 1).all():
        raise ValueError("dec_norm_diff must hold numbers between 0 and 1, or nothing for a latent without norms.")
    present = {name: next((c for c in candidates if c in theirs), None) for name, candidates in _COLUMNS.items()}
    table = theirs.rename(columns={column: name for name, column in present.items() if column is not None})
    table.insert(0, "delta_norm", 1 - table.pop("dec_norm_diff"))
    table.index.name = "latent"
    _require_direction(table, path)
    if "label" in table:
        table["label"] = [_label(tag, path) for tag in table["label"]]
    return table


def _label(tag: Any, path: Path) -> str:
    known = "undefined" if pd.isna(tag) else _LABELS.get(str(tag).lower().replace("_", " "))
    if known is None:
        raise ValueError(f"{path} has the tag {tag!r}; known are {', '.join(sorted(_LABELS))}.")
    return known


def _require_direction(table: pd.DataFrame, path: Path) -> None:
    """The norms beside it say which end of delta_norm is chat-only."""
    if not {"dec_norm_base", "dec_norm_chat"} <= set(table):
        return
    base, chat = table["dec_norm_base"], table["dec_norm_chat"]
    from_norms = ((chat - base) / np.maximum(base, chat) + 1) / 2
    if ((table["delta_norm"] - from_norms).abs() > 0.01).any():
        raise ValueError(
            f"In {path}, dec_norm_diff is not what the decoder norms beside it give ((base - chat) / max + 1) / 2: it "
            "would be read in the wrong direction."
        )
