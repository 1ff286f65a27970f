"""Shares of latents in the difference of two models' activations on one token."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, validate_inference
from sae_lens_crosscoder.crosscoders.two_models import TwoModels


@dataclass(frozen=True)
class DifferenceShares:
    """Shares in the difference of two models' activations: with those of biases and error they add up to 1.

    All are nan where the models do not differ.
    """

    latents: pd.DataFrame
    """One row per active latent, with its `score` f_j and its `share`, the largest first."""
    share_of_biases: float
    """Share of the decoder biases."""
    share_of_error: float
    """Share of the reconstruction error."""

    @property
    def share_of_latents(self) -> float:
        """Sum of the latents' shares."""
        return float(self.latents["share"].sum())


@validate_arguments
@torch.no_grad()
def difference_shares(
    crosscoder: InferenceCrosscoder, stacked: Float[Tensor, " d_in"], *, models: Sequence[str] | None = None
) -> DifferenceShares:
    """Attribute the difference `h^chat - h^base` on one token to the active latents.

    A latent moves the reconstructions apart by `f_j (d_j^chat - d_j^base)`. Its share is how far that reaches along the
    difference, relative to the difference's length: 1 accounts for all of it, below 0 works against it.

    Args:
        stacked: raw activations of all models side by side, base first.
        models: names of the two models to compare, as in `diagnose`; needed for more than two.

    Raises:
        ValueError: unless these are two models of the same width.
    """
    crosscoder = validate_inference(crosscoder, "difference_shares")
    layout = crosscoder.layout
    two = TwoModels.of(crosscoder, models, "difference_shares").validate_one_width("difference_shares")
    if len(stacked) != layout.d_in:
        raise ValueError(
            f"stacked is {len(stacked)} wide, but the crosscoder reads {layout.d_in}: widths {layout.d_models} side by "
            "side. Pass both models' activations at its hook."
        )
    stacked = stacked.to(crosscoder.W_dec)
    scores = crosscoder.encode(stacked[None])[0]
    active = scores.nonzero()[:, 0]
    base, chat = two.split(stacked.double())
    difference = chat - base
    along = difference / difference.square().sum()
    to_base, to_chat = two.split(crosscoder.W_dec[active].double())
    shares = scores[active].double() * ((to_chat - to_base) @ along)
    base_bias, chat_bias = (bias.double() for bias in two.decoder_biases)
    share_of_biases = float((chat_bias - base_bias) @ along)
    table = pd.DataFrame(
        {"score": scores[active].tolist(), "share": shares.tolist()}, index=pd.Index(active.tolist(), name="latent")
    )
    table = table.sort_values("share", ascending=False, kind="stable")
    return DifferenceShares(table, share_of_biases, 1 - float(shares.sum()) - share_of_biases)
