"""Which latents account for what the models' activations on a token have apart."""

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, require_inference


@torch.no_grad()
def difference_shares(crosscoder: InferenceCrosscoder, stacked: Float[Tensor, " d_in"]) -> pd.DataFrame:
    """The latents that are on, by their share in the difference `h^chat - h^base` on one token, the largest first.

    A latent moves the reconstructions apart by `f_j (d_j^chat - d_j^base)`. Its share is how far that reaches along the
    difference, relative to the difference's length: 1 accounts for all of it, below 0 works against it.

    Args:
        stacked: both models' raw activations, base first.

    Returns:
        A row per latent, with its `score` f_j and its `share`. With `.attrs["share_of_biases"]` (the decoder biases')
        and `.attrs["share_of_error"]` (what is not reconstructed) the shares add up to 1. They are nan where
        the models do not differ.

    Raises:
        ValueError: unless the crosscoder is of two models of one width, whose difference there is.
    """
    crosscoder = require_inference(crosscoder, "difference_shares")
    layout = crosscoder.layout
    if layout.n_models != 2 or not layout.same_width:
        raise ValueError(
            f"Models of widths {layout.d_models} have no difference of activations: it takes two models of one width."
        )
    stacked = stacked.to(crosscoder.W_dec)
    scores = crosscoder.encode(stacked[None])[0]
    on = scores.nonzero()[:, 0]
    base, chat = layout.split(stacked.double())
    difference = chat - base
    along = difference / difference.square().sum()
    to_base, to_chat = layout.split(crosscoder.W_dec[on].double())
    shares = scores[on].double() * ((to_chat - to_base) @ along)
    base_bias, chat_bias = layout.split(crosscoder.b_dec.double())
    of_biases = float((chat_bias - base_bias) @ along)
    table = pd.DataFrame(
        {"score": scores[on].tolist(), "share": shares.tolist()}, index=pd.Index(on.tolist(), name="latent")
    )
    table = table.sort_values("share", ascending=False, kind="stable")
    table.attrs = {"share_of_biases": of_biases, "share_of_error": 1 - float(shares.sum()) - of_biases}
    return table
