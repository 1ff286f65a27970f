"""Streams of stacked activations: shuffled batches of a tensor, and null pairs in which nothing differs."""

from collections.abc import Iterable, Iterator
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.stacking import StackedLayout

NullKind = Literal["identical", "jittered", "shuffled"]


@validate_arguments
def shuffled_batches(
    activations: Float[Tensor, "token d_in"], batch_size: int, seed: int
) -> Iterator[Float[Tensor, "batch d_in"]]:
    """Yield shuffled batches without end, reshuffling every epoch and dropping the last partial batch.

    >>> batches = shuffled_batches(torch.arange(6.0)[:, None], batch_size=3, seed=0)
    >>> sorted(torch.cat([next(batches), next(batches)]).squeeze().tolist())
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    """
    if len(activations) < batch_size:
        raise ValueError(
            f"activations has {len(activations)} tokens, fewer than batch_size={batch_size}: pass more tokens or a "
            f"smaller batch_size."
        )
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(activations), generator=generator)
        for rows in order.split(batch_size):
            if len(rows) == batch_size:
                yield activations[rows]


@validate_arguments
def null_activations(
    activations: Iterable[Float[Tensor, "_ d_in"]],
    layout: StackedLayout,
    kind: NullKind,
    jitter: float = 0.1,
    seed: int = 0,
) -> Iterator[Float[Tensor, "_ d_in"]]:
    """Yield stacked activations of a null pair: the base model's activations, twice.

    Train a crosscoder on them in the same way as on the real ones. Every one-sided latent it finds is due to chance,
    and `diagnose(..., null=...)` turns their number into q-values.

    Args:
        activations: stacked activations of the real pair. Only the base model's half is used.
        kind: `jittered` adds independent Gaussian noise to both copies. `identical` adds nothing; it is a check rather
            than a null, because latents that start paired stay exactly equal. `shuffled` takes the second copy from
            other tokens, so that a perfect crosscoder has one-sided latents only.
        jitter: standard deviation of the noise, as a share of each coordinate's standard deviation in the batch.

    Raises:
        ValueError: if the models have different widths.
    """
    if kind not in get_args(NullKind):
        raise ValueError(f"kind={kind!r} is invalid: choose one of {get_args(NullKind)}.")
    if not layout.same_width:
        raise ValueError(f"A null pair needs models of equal width, but d_models={layout.d_models}.")
    generator = torch.Generator().manual_seed(seed)
    for batch in activations:
        base = layout.split(batch)[0].cpu()
        copies = [base] * layout.n_sources
        if kind == "jittered":
            spread = jitter * base.std(dim=0, correction=0)
            copies = [copy + spread * torch.randn(copy.shape, generator=generator).to(copy) for copy in copies]
        elif kind == "shuffled":
            copies[1:] = [copy[torch.randperm(len(copy), generator=generator)] for copy in copies[1:]]
        yield layout.stack(copies).to(batch)
