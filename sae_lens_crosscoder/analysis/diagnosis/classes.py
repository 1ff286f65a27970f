"""Delta_norm, and the classes of latents that it defines."""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.compared import absent_from
from sae_lens_crosscoder.stacking import StackedLayout

CLASS_BORDERS = (0.1, 0.4, 0.6, 0.9)
"""On Delta_norm: base_only is below the first, shared between the middle two, chat_only above the last."""
LABELS = ("base_only", "shared", "chat_only", "other", "undefined")
ONE_SIDED = ("chat_only", "base_only")


@validate_arguments
def delta_norm(norms: Float[Tensor, "d_sae model"]) -> Float[Tensor, " d_sae"]:
    """`1/2 ((n_chat - n_base) / max(n_chat, n_base) + 1)`: 0 is base-only, 1/2 equal norms, 1 chat-only.

    nan for a latent that writes to neither model, and for every latent unless there are exactly two norms.

    >>> delta_norm(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0], [0.0, 0.0]]))
    tensor([0.0000, 0.5000, 1.0000,    nan])
    """
    if norms.shape[-1] != 2:
        return torch.full_like(norms[..., 0], float("nan"))
    base, chat = norms.unbind(dim=-1)
    return ((chat - base) / norms.amax(dim=-1) + 1) / 2  # 0 / 0 is nan, as it should be


def norms_of_pair(
    norms: Float[Tensor, "d_sae source"], layout: StackedLayout, absent: Bool[Tensor, " d_sae"] | None = None
) -> Float[Tensor, "d_sae source"]:
    """Decoder norms that Delta_norm compares, those of two models at one hook; nan for every other layout.

    Two layers of one model also have two norms, which are no base and chat.

    Args:
        absent: True for latents that count as writing to neither model, with nan for norms; None for no such latent.
    """
    if not layout.is_pair:
        return torch.full_like(norms, torch.nan)
    return norms if absent is None else norms.masked_fill(absent[:, None], torch.nan)


def pairs_by_name(layout: StackedLayout) -> dict[str, tuple[int, int]]:
    """Places of the sources that Delta_norm can compare: every model beside the first, hook by hook.

    >>> pairs_by_name(StackedLayout((2, 2, 2, 2), hook_names=("early", "late")))
    {'chat@early': (0, 2), 'chat@late': (1, 3)}
    >>> pairs_by_name(StackedLayout((2, 2), hook_names=("early", "late")))
    {}
    """
    n_hooks = max(1, len(layout.hook_names))
    return {layout.names[place]: (place % n_hooks, place) for place in range(n_hooks, layout.n_sources)}


def delta_norms(norms: Float[Tensor, "d_sae source"], layout: StackedLayout) -> dict[str, Float[Tensor, " d_sae"]]:
    """Delta_norm of every model beside the first, hook by hook, by the name of the second source.

    nan for a latent that is absent from both sources: below 0.2 times its largest decoder norm.
    """
    deltas: dict[str, Tensor] = {}
    for name, places in pairs_by_name(layout).items():
        absent = absent_from(norms, places)
        deltas[name] = delta_norm(norms[:, list(places)].masked_fill(absent[:, None], torch.nan))
    return deltas


def label(delta: float) -> str:
    """Class of a latent: base_only [0, 0.1), shared (0.4, 0.6), chat_only (0.9, 1], other, undefined for nan.

    >>> [label(x) for x in (0.05, 0.1, 0.5, 0.9, 0.95, float("nan"))]
    ['base_only', 'other', 'shared', 'other', 'chat_only', 'undefined']
    """
    return labels(torch.tensor([delta], dtype=torch.float64))[0]


def labels(deltas: Float[Tensor, " d_sae"]) -> list[str]:
    """Class of every latent, from Delta_norm: see `label`."""
    delta = deltas.cpu().numpy()
    base_only, shared_low, shared_high, chat_only = CLASS_BORDERS
    names = np.full(len(delta), "other", dtype=object)
    names[delta < base_only] = "base_only"
    names[(shared_low < delta) & (delta < shared_high)] = "shared"
    names[delta > chat_only] = "chat_only"
    names[np.isnan(delta)] = "undefined"
    return names.tolist()


def labels_of(norms: Float[Tensor, "d_sae model"]) -> list[str]:
    """Class of every latent, from its decoder norms.

    >>> labels_of(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    ['base_only', 'shared']
    """
    return labels(delta_norm(norms.detach().double()))
