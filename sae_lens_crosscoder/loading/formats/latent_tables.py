"""Load latent tables of the paper's authors with the columns and directions of `diagnose`."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.storage.tables import load_table

# Our column -> theirs, in the paper's `feature_df.csv` and in the later toolkit's table; the first one present is
# taken.
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


@validate_arguments
def load_latent_table(path: str | Path) -> pd.DataFrame:
    """Load a latent table of the paper (`feature_df.csv`) or of its authors' toolkit, with the columns of `diagnose`.

    Their `dec_norm_diff` is 0 for chat-only latents; `delta_norm` is 1 minus it. Columns without a counterpart keep
    their names. The index is the latent id.

    Raises:
        ValueError: for a table without `dec_norm_diff`, or one whose norms contradict its direction, for values that
            are not numbers or out of range, for unknown tags, and for an index that is not one of latent ids.
    """
    path = Path(path)
    theirs = load_table(path)
    if "dec_norm_diff" not in theirs:
        raise ValueError(f"{path} has no column dec_norm_diff, as latent tables of the paper's authors have.")
    if not pd.api.types.is_integer_dtype(theirs.index) or not theirs.index.is_unique:
        raise ValueError(f"{path}: the first column must contain latent ids, each once.")
    differences = theirs["dec_norm_diff"]
    if not _is_numeric(differences) or not differences.dropna().between(0, 1).all():
        raise ValueError(f"{path}: dec_norm_diff must contain numbers between 0 and 1, or nothing for undefined.")
    for column in ("dec_norm_base", "dec_norm_chat"):
        if any(name in theirs and not _is_numeric(theirs[name]) for name in _COLUMNS[column]):
            raise ValueError(f"{path}: the decoder norms ({', '.join(_COLUMNS[column])}) must be numbers.")
    present = {name: next((c for c in candidates if c in theirs), None) for name, candidates in _COLUMNS.items()}
    table = theirs.rename(columns={column: name for name, column in present.items() if column is not None})
    table.insert(0, "delta_norm", 1 - table.pop("dec_norm_diff"))
    table.index.name = "latent"
    _validate_direction(table, path)
    if "label" in table:
        table["label"] = [_label(tag, path) for tag in table["label"]]
    return table


def _is_numeric(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_complex_dtype(column)


def _label(tag: Any, path: Path) -> str:
    known = "undefined" if pd.isna(tag) else _LABELS.get(str(tag).lower().replace("_", " "))
    if known is None:
        raise ValueError(f"{path}: unknown tag {tag!r:.80}, expected one of {', '.join(sorted(_LABELS))}.")
    return known


def _validate_direction(table: pd.DataFrame, path: Path) -> None:
    """Check with the decoder norms that the chat-only end of delta_norm is where it should be."""
    if not {"dec_norm_base", "dec_norm_chat"} <= set(table):
        return
    base, chat = table["dec_norm_base"], table["dec_norm_chat"]
    from_norms = ((chat - base) / np.maximum(base, chat) + 1) / 2
    if ((table["delta_norm"] - from_norms).abs() > 0.01).any():
        raise ValueError(
            f"{path}: dec_norm_diff disagrees with the decoder norms, which give ((base - chat) / max + 1) / 2. Its "
            "direction may be reversed."
        )
