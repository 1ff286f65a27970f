"""Do two crosscoders of one pair find the same latents? What only one of them finds may be an accident of training."""

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, require_inference

MIN_COSINE = 0.7

# Rows of the first crosscoder compared at a time, so that (d_sae, d_sae) cosines never stand in memory.
_CHUNK = 4096


def match_latents(first: InferenceCrosscoder, second: InferenceCrosscoder) -> pd.DataFrame:
    """For every latent of `first` the most similar one of `second`, by the cosine of their stacked decoders.

    Stacked, two latents are alike only if they write the same into both models. The decoders are those of the space in
    which each crosscoder was trained.

    Returns:
        `match` (-1 for a latent that writes nothing), `cosine`, and `mutual`: whether each is the other's best.

    Raises:
        ValueError: for training crosscoders, or crosscoders of models of other widths.
    """
    first, second = (require_inference(crosscoder, "match_latents") for crosscoder in (first, second))
    if first.layout != second.layout:
        raise ValueError(
            f"The crosscoders are of models of widths {first.layout.d_models} and {second.layout.d_models}: only those "
            "of the same pair can agree."
        )
    rows, columns = (_unit_decoders(crosscoder).to(first.W_dec.device) for crosscoder in (first, second))
    cosine, match = _nearest(rows, columns)
    _, back = _nearest(columns, rows)
    writes = rows.any(dim=-1)
    mutual = writes & (back[match] == torch.arange(len(rows), device=match.device))
    frame = pd.DataFrame(
        {
            "match": torch.where(writes, match, -1).cpu().numpy(),
            "cosine": torch.where(writes, cosine, torch.nan).cpu().numpy(),
            "mutual": mutual.cpu().numpy(),
        }
    )
    frame.index.name = "latent"
    return frame


def agreement(
    first: InferenceCrosscoder, second: InferenceCrosscoder, first_table: pd.DataFrame, second_table: pd.DataFrame
) -> pd.DataFrame:
    """Per class and per verdict of the first crosscoder's latents, what the second has of them.

    Args:
        first_table, second_table: what `diagnose` says about either.

    Returns:
        A row per ("label", class) and ("verdict", verdict): `n` latents that fire; `frac_matched`, the share with a
        counterpart (cosine of at least 0.7, each the other's best, and alive); `frac_agreed`, the share whose
        counterpart is said to be the same.
        Shares of no latents are nan.
    """
    matches = match_latents(first, second)
    there = second_table.loc[matches.match.clip(lower=0)].set_index(first_table.index)
    found = matches.mutual & (matches.cosine >= MIN_COSINE) & ~there.dead
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for column in ("label", "verdict"):
        agreed = found & (there[column] == first_table[column])
        for name in dict.fromkeys(first_table[column]):
            latents = (first_table[column] == name) & ~first_table.dead
            rows[column, str(name)] = {
                "n": int(latents.sum()),
                "frac_matched": float(found[latents].mean()),
                "frac_agreed": float(agreed[latents].mean()),
            }
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.index = pd.MultiIndex.from_tuples(frame.index, names=["column", "said"])
    return frame


def _unit_decoders(crosscoder: InferenceCrosscoder) -> Float[Tensor, "d_sae d_in"]:
    scaled = crosscoder.W_dec.detach().float() * crosscoder.layout.expand(crosscoder.activation_scales).float()
    return torch.nn.functional.normalize(scaled, dim=-1)


def _nearest(
    rows: Float[Tensor, "rows d_in"], columns: Float[Tensor, "columns d_in"]
) -> tuple[Float[Tensor, " rows"], Int[Tensor, " rows"]]:
    """The highest cosine of every row, and whose it is."""
    best = [(part @ columns.T).max(dim=-1) for part in rows.split(_CHUNK)]
    return torch.cat([part.values for part in best]), torch.cat([part.indices for part in best])
