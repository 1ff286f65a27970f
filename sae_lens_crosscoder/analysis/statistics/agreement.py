"""Agreement of two crosscoders of one pair: latents that only one of them finds may be accidents of training."""

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.analysis.tables.rows import validate_rows
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, validate_inference

MIN_COSINE = 0.7

# Rows of the first crosscoder compared at a time, so that (d_sae, d_sae) cosines never stand in memory.
_CHUNK = 4096


def match_latents(first: InferenceCrosscoder, second: InferenceCrosscoder) -> pd.DataFrame:
    """Match every latent of `first` to the most similar one of `second`, by the cosine of their stacked decoders.

    Stacked, two latents are alike only if they write the same into both models. The decoders are those of the space in
    which each crosscoder was trained.

    Returns:
        `match` (-1 for a latent that writes nothing), `cosine`, and `mutual`: True if each is the other's best match.

    Raises:
        ValueError: for training crosscoders, or crosscoders that read other widths.
    """
    first, second = (validate_inference(crosscoder, "match_latents") for crosscoder in (first, second))
    if first.layout != second.layout:
        raise ValueError(
            f"The crosscoders read widths {first.layout.d_models} and {second.layout.d_models}. Compare crosscoders of "
            "one pair of models."
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


@validate_arguments
def agreement(
    first: InferenceCrosscoder, second: InferenceCrosscoder, first_latents: pd.DataFrame, second_latents: pd.DataFrame
) -> pd.DataFrame:
    """Share of the first crosscoder's latents that the second has as well, per class and per verdict.

    Args:
        first_latents, second_latents: `latents` of their diagnoses.

    Returns:
        One row per ("label", class) and ("verdict", verdict): `n` live latents; `frac_matched`, the share with a
        counterpart (cosine of at least 0.7, each the other's best match, and alive); `frac_agreed`, the share whose
        counterpart has the same class or verdict. Shares of no latents are nan.
    """
    matches = match_latents(first, second)
    validate_rows(first_latents, first, "first_latents")
    validate_rows(second_latents, second, "second_latents")
    counterparts = second_latents.loc[matches.match.clip(lower=0)].set_index(first_latents.index)
    matched = matches.mutual & (matches.cosine >= MIN_COSINE) & ~counterparts.dead
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for column in ("label", "verdict"):
        agreed = matched & (counterparts[column] == first_latents[column])
        for name in dict.fromkeys(first_latents[column]):
            members = (first_latents[column] == name) & ~first_latents.dead
            rows[column, str(name)] = {
                "n": int(members.sum()),
                "frac_matched": float(matched[members].mean()),
                "frac_agreed": float(agreed[members].mean()),
            }
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.index = pd.MultiIndex.from_tuples(frame.index, names=["column", "value"])
    return frame


def _unit_decoders(crosscoder: InferenceCrosscoder) -> Float[Tensor, "d_sae d_in"]:
    scaled = crosscoder.W_dec.detach().float() * crosscoder.layout.expand(crosscoder.activation_scales).float()
    return torch.nn.functional.normalize(scaled, dim=-1)


def _nearest(
    rows: Float[Tensor, "rows d_in"], columns: Float[Tensor, "columns d_in"]
) -> tuple[Float[Tensor, " rows"], Int[Tensor, " rows"]]:
    """Highest cosine of every row, and the column that has it."""
    best = [(part @ columns.T).max(dim=-1) for part in rows.split(_CHUNK)]
    return torch.cat([part.values for part in best]), torch.cat([part.indices for part in best])
