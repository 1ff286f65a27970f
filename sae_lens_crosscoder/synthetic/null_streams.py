"""Streams of stacked activations made from activations in memory, and from another stream: the null pairs."""

from collections.abc import Iterable, Iterator
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.stacking import StackedLayout

NullKind = Literal["identical", "jittered", "shuffled"]


def shuffled_batches(
    activations: Float[Tensor, "token d_in"], batch_size: int, seed: int
) -> Iterator[Float[Tensor, "batch d_in"]]:
    """An endless stream of batches, each epoch in a new order; a remainder smaller than a batch is left out.

    >>> batches = shuffled_batches(torch.arange(6.0)[:, None], batch_size=3, seed=0)
    >>> sorted(torch.cat([next(batches), next(batches)]).squeeze().tolist())
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    """
    if len(activations) < batch_size:
        raise ValueError(
            f"{len(activations)} tokens do not fill one batch of {batch_size}: give more, or less a batch."
        )
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(activations), generator=generator)
        for rows in order.split(batch_size):
            if len(rows) == batch_size:
                yield activations[rows]


def null_activations(
    activations: Iterable[Float[Tensor, "_ d_in"]],
    layout: StackedLayout,
    kind: NullKind,
    jitter: float = 0.1,
    seed: int = 0,
) -> Iterator[Float[Tensor, "_ d_in"]]:
    """Stacked activations of a pair in which nothing differs: the base model's, twice.

    Train a crosscoder on them as on the real ones; what it finds is what chance finds, and `diagnose(..., null=...)`
    turns that into q-values.

    Args:
        activations: stacked activations of the real pair, of which only the base model's half is used.
        kind: `jittered`, with independent Gaussian noise on both copies; `identical`, a check rather than a null,
            because latents that start in pairs then stay exactly equal; or `shuffled`, in which the second copy comes
            from other tokens. The last is the opposite extreme: the copies have no token in common, so every latent of
            a perfect crosscoder belongs to one model.
        jitter: standard deviation of the noise, as a share of each coordinate's standard deviation in the batch.

    Raises:
        ValueError: for models of different width, which cannot be copies of each other.
    """
    if kind not in get_args(NullKind):
        raise ValueError(f"kind={kind!r} is not one of {get_args(NullKind)}.")
    if not layout.same_width:
        raise ValueError(f"Models of widths {layout.d_models} cannot be copies: a null pair needs equal widths.")
    generator = torch.Generator().manual_seed(seed)
    for batch in activations:
        base = layout.split(batch)[0].cpu()
        copies = [base] * layout.n_models
        if kind == "jittered":
            spread = jitter * base.std(dim=0, correction=0)
            copies = [copy + spread * torch.randn(copy.shape, generator=generator).to(copy) for copy in copies]
        elif kind == "shuffled":
            copies[1:] = [copy[torch.randperm(len(copy), generator=generator)] for copy in copies[1:]]
        yield layout.stack(copies).to(batch)
