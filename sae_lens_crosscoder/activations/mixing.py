"""Shuffled training batches from a stream of activations, out of one buffer that is refilled in place."""

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor


def mixed_batches(
    chunks: Iterable[Float[Tensor, "_ d_in"]],
    *,
    batch_size: int,
    buffer_size: int,
    mix_fraction: float = 0.5,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Iterator[Float[Tensor, "batch d_in"]]:
    """Every activation once, in shuffled batches; a remainder smaller than a batch is left out.

    SAELens's `mixing_buffer` without its copies of the buffer: whenever the buffer is full, its rows are put in a new
    order, batches are served until `mix_fraction` of the buffer is left, and new activations take the places of those
    served. The batches depend on the seed and on the activations, but not on how these were cut into chunks.

    Args:
        chunks: activations as they are made, of any numbers of tokens.
        buffer_size: tokens in the buffer, which is all the memory this takes beside one chunk and one batch.
        mix_fraction: share of a full buffer that stays in it; 0 keeps the activations in order.
        dtype, device: of the buffer and the batches; None for those of the first chunk.

    Raises:
        ValueError: at once, for a buffer smaller than a batch or a share outside [0, 1].

    >>> [batch.flatten().tolist() for batch in mixed_batches([torch.eye(3)], batch_size=1, buffer_size=2, seed=1)]
    [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    if not 1 <= batch_size <= buffer_size:
        raise ValueError(
            f"A buffer of {buffer_size} tokens does not fill one batch of {batch_size}: enlarge n_batches_in_buffer "
            "(contexts), or train on smaller batches of at least one token."
        )
    if not 0 <= mix_fraction <= 1:
        raise ValueError(f"mix_fraction={mix_fraction} is the share of the buffer that stays in it: from 0 to 1.")
    n_kept = int(buffer_size * mix_fraction)
    n_served = max(1, (buffer_size - n_kept) // batch_size) * batch_size
    generator = torch.Generator().manual_seed(seed) if mix_fraction > 0 else None
    return _mixed(iter(chunks), batch_size, buffer_size, n_served, generator, dtype, device)


@torch.no_grad()
def _mixed(
    chunks: Iterator[Float[Tensor, "_ d_in"]],
    batch_size: int,
    buffer_size: int,
    n_served: int,
    generator: torch.Generator | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> Iterator[Float[Tensor, "batch d_in"]]:
    """Rows never move: `slots` says where the logical rows lie, of which the first `n_filled` hold activations."""
    slots, n_filled = torch.arange(buffer_size), 0
    buffer: Tensor | None = None
    for chunk in chunks:
        if buffer is None:
            buffer = torch.empty(buffer_size, chunk.shape[1], dtype=dtype or chunk.dtype, device=device or chunk.device)
            slots = slots.to(buffer.device)
        n_taken = 0
        while n_taken < len(chunk):
            part = chunk[n_taken : n_taken + buffer_size - n_filled]
            buffer.index_copy_(0, slots[n_filled : n_filled + len(part)], part.to(buffer))
            n_taken, n_filled = n_taken + len(part), n_filled + len(part)
            if n_filled == buffer_size:
                slots = _shuffled(slots, generator)
                for rows in slots[:n_served].split(batch_size):
                    yield buffer.index_select(0, rows)
                slots, n_filled = slots.roll(-n_served), buffer_size - n_served
            del part
        del chunk  # while the next one is made
    if buffer is not None:
        for rows in _shuffled(slots[:n_filled], generator).split(batch_size):
            if len(rows) == batch_size:
                yield buffer.index_select(0, rows)


def _shuffled(slots: Tensor, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        return slots
    return slots[torch.randperm(len(slots), generator=generator).to(slots.device)]
