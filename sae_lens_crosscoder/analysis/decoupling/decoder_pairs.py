"""Pairs of latents that write the same direction into different models: Latent Decoupling in the decoders."""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize
from tqdm.auto import tqdm

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.compared import compared_of
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, validate_inference
from sae_lens_crosscoder.crosscoders.sparse_step.kernels import indices_of

# Cosines that are in memory at a time: they stay in a core's cache, because comparing them costs more than the product.
_MAX_COSINES = 2**20


@validate_arguments
def decoupled_pairs(
    crosscoder: InferenceCrosscoder,
    latents: pd.DataFrame,
    min_cosine: float = 0.9,
    *,
    models: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Find all pairs of a chat-only and a base-only latent that write the same direction.

    Args:
        latents: `latents` of this crosscoder's diagnosis. Dead latents are in no pair.
        min_cosine: threshold in (0, 1) for the cosine of the chat-only latent's chat decoder and the base-only
            latent's base decoder.
        models: names of the two models to compare, as in `diagnose`; needed for more than two.

    Returns:
        One row per pair: `chat_latent`, `base_latent`, `cosine`, and `isolated`: True if the two decoders form a
        component of the graph whose nodes are decoders (of either model) and whose edges connect the decoders of
        one-sided latents, each in its model, to all decoders with a cosine above `min_cosine`.
        The paper counts isolated pairs (109 in its L1 crosscoder); all pairs are the authors' earlier count (167).

    Raises:
        ValueError: for a training crosscoder, one that does not read two models of the same width, or the table of
            another crosscoder.
    """
    crosscoder = validate_inference(crosscoder, "decoupled_pairs")
    compared = compared_of(crosscoder, models, "decoupled_pairs")
    crosscoder = crosscoder if compared is None else compared.crosscoder
    _validate_comparable(crosscoder)
    if not 0 < min_cosine < 1:
        raise ValueError(f"min_cosine={min_cosine} must lie in (0, 1). The paper's is 0.9.")
    if len(latents) != crosscoder.cfg.d_sae:
        raise ValueError(
            f"The table has {len(latents)} latents, but the crosscoder has {crosscoder.cfg.d_sae}. Pass the complete "
            "table of this crosscoder's diagnosis."
        )
    precision = torch.promote_types(crosscoder.dtype, torch.float32)
    decoders = [normalize(decoder.detach().to(precision), dim=-1) for decoder in crosscoder.decoders]
    chat_only, base_only, live = (
        torch.tensor(mask.to_numpy(), device=decoders[0].device)
        for mask in (latents.label == "chat_only", latents.label == "base_only", ~latents.dead)
    )
    # A one-sided latent's decoder in the other model is almost zero, so its direction is meaningless.
    ends = [live & ~chat_only, live & ~base_only]
    chat_latents, base_latents = indices_of(chat_only & live), indices_of(base_only & live)
    base, chat = decoders
    with tqdm(total=len(chat_latents), desc="Comparing decoders", unit="latent", unit_scale=True, leave=False) as bar:
        first, second, cosine = _close_pairs(chat[chat_latents], base[base_latents], min_cosine, bar)
        # All edges of one-sided decoders are counted, so two that have only each other are a component.
        isolated = torch.ones_like(first, dtype=torch.bool)
        for ids, own, place in ((chat_latents, chat, first), (base_latents, base, second)):
            paired, pair_of = torch.unique(place, return_inverse=True)
            isolated &= (_n_neighbours(ids[paired], own, decoders, ends, min_cosine, bar) == 1)[pair_of]
    columns = {
        "chat_latent": chat_latents[first],
        "base_latent": base_latents[second],
        "cosine": cosine,
        "isolated": isolated,
    }
    return pd.DataFrame({name: column.cpu().numpy() for name, column in columns.items()})


def _blocks(
    rows: Float[Tensor, "rows d_model"], columns: Float[Tensor, "columns d_model"], bar: Any
) -> Iterator[tuple[int, int, Float[Tensor, "_ _"]]]:
    """Cosines of all rows and columns in blocks, with the place of each block's first row and column.

    Each block lies in the memory of the one before.
    """
    n_rows = max(1, min(512, int(_MAX_COSINES**0.5)))
    n_columns = max(1, _MAX_COSINES // n_rows)
    memory = rows.new_empty(n_rows * n_columns)  # fresh memory for every block takes a third of the time
    for row in range(0, len(rows), n_rows):
        part = rows[row : row + n_rows]
        for column in range(0, len(columns), n_columns):
            others = columns[column : column + n_columns]
            cosines = memory[: len(part) * len(others)].view(len(part), len(others))
            yield row, column, torch.mm(part, others.T, out=cosines)
        bar.update(len(part))


def _close_pairs(
    rows: Float[Tensor, "rows d_model"], columns: Float[Tensor, "columns d_model"], min_cosine: float, bar: Any
) -> tuple[Int[Tensor, " found"], Int[Tensor, " found"], Float[Tensor, " found"]]:
    """Row, column and cosine of all pairs above `min_cosine`, by row and then by column."""
    pairs: list[tuple[Tensor, ...]] = [(*rows.new_zeros(2, 0, dtype=torch.int64), rows.new_zeros(0))]
    for first_row, first_column, cosines in _blocks(rows, columns, bar):
        near = indices_of(cosines.amax(dim=-1) > min_cosine)
        row, column = (cosines[near] > min_cosine).nonzero(as_tuple=True)
        row = near[row]
        pairs.append((first_row + row, first_column + column, cosines[row, column]))
    row, column, cosine = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    order = (row * len(columns) + column).argsort()
    return row[order], column[order], cosine[order]


def _n_neighbours(
    latents: Int[Tensor, " chosen"],
    own: Float[Tensor, "d_sae d_model"],
    decoders: list[Float[Tensor, "d_sae d_model"]],
    ends: list[Bool[Tensor, " d_sae"]],
    min_cosine: float,
    bar: Any,
) -> Int[Tensor, " chosen"]:
    """Number of other latents' decoders, in either model, above `min_cosine` with each latent's decoder."""
    n_close = torch.zeros_like(latents)
    bar.total += len(decoders) * len(latents)
    for decoder, may_end in zip(decoders, ends, strict=True):
        others = indices_of(may_end)
        place = torch.searchsorted(others, latents)
        place[~may_end[latents]] = -1  # where a latent is among the others, if it is
        for row, column, cosines in _blocks(own[latents], decoder[others], bar):
            inside = place[row : row + len(cosines)] - column
            itself = indices_of((inside >= 0) & (inside < cosines.shape[1]))
            cosines[itself, inside[itself]] = -1.0
            near = indices_of(cosines.amax(dim=-1) > min_cosine)
            n_close[row + near] += (cosines[near] > min_cosine).sum(dim=-1)
    return n_close


def _validate_comparable(crosscoder: InferenceCrosscoder) -> None:
    layout = crosscoder.layout
    if not layout.is_pair or not layout.same_width:
        raise ValueError(
            f"Decoders of models of widths {layout.d_models} have no cosine, so latents cannot be paired by it: this "
            "needs two models of the same width."
        )
