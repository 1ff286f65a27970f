"""The norm of a latent, s_j: what makes a stacked SAE a crosscoder."""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.stacking import StackedLayout

Score = Literal["sum", "l2", "max", "mixed", "none"]
SCORES: tuple[str, ...] = get_args(Score)


def score_norms(W_dec: Float[Tensor, "d_sae d_in"], layout: StackedLayout, score: str) -> Float[Tensor, " d_sae"]:
    """The joint decoder norm s_j of every latent; its score on a token is `f_j * s_j`.

    `score` names the norm: `sum` is the crosscoder's n_base + n_chat (the paper's), `l2` the norm
    of the whole stacked row (a stacked SAE), `max` the larger of the models' norms, `mixed` is l2 + 0.1 sum (an
    ablation of the paper's authors), `none` is 1 for every latent.

    >>> rows = torch.tensor([[3.0, 4.0]])
    >>> {name: round(score_norms(rows, StackedLayout((1, 1)), name).item(), 2) for name in SCORES}
    {'sum': 7.0, 'l2': 5.0, 'max': 4.0, 'mixed': 5.7, 'none': 1.0}
    """
    norms = layout.norms(W_dec)
    match score:
        case "sum":
            return norms.sum(dim=-1)
        case "l2":
            return torch.linalg.vector_norm(norms, dim=-1)
        case "max":
            return norms.amax(dim=-1)
        case "mixed":
            return torch.linalg.vector_norm(norms, dim=-1) + 0.1 * norms.sum(dim=-1)
        case "none":
            return torch.ones_like(norms[..., 0])
        case _:
            raise ValueError(f"score={score!r} is not one of {SCORES}; the paper's crosscoder uses 'sum'.")
