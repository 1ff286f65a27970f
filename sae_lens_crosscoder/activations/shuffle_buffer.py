"""Shuffle buffer: shuffled training batches from a stream of activations, in one buffer that is refilled in place."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from sae_lens_crosscoder.activations.resumable import fast_forward, resumable


def mixed_batches(
    chunks: Iterable[Float[Tensor, "_ d_in"]],
    *,
    batch_size: int,
    buffer_size: int,
    mix_fraction: float = 0.5,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> "MixedBatches":
    """Shuffled batches with every activation once; drops a remainder smaller than a batch.

    SAELens's `mixing_buffer` without its copies of the buffer: when the buffer is full, its rows are permuted, batches
    are served until `mix_fraction` of the buffer is left, and new activations replace those served. Batches depend on
    the seed and the activations, but not on the sizes of the chunks.

    Args:
        chunks: activations, of any numbers of tokens.
        batch_size: tokens per batch.
        buffer_size: tokens in the buffer, the only memory used besides one chunk and one batch.
        mix_fraction: fraction of a full buffer that stays in it, in [0, 1]; 0 keeps the activations in order.
        dtype, device: of the buffer and the batches; None for those of the first chunk.

    Raises:
        ValueError: at once, for a buffer smaller than a batch or a fraction outside [0, 1].

    >>> [batch.flatten().tolist() for batch in mixed_batches([torch.eye(3)], batch_size=1, buffer_size=2, seed=1)]
    [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    if not 1 <= batch_size <= buffer_size:
        raise ValueError(
            f"The buffer of {buffer_size} tokens is smaller than a batch of {batch_size}. Increase n_batches_in_buffer "
            "(contexts), or train on smaller batches of at least one token."
        )
    if not 0 <= mix_fraction <= 1:
        raise ValueError(f"mix_fraction={mix_fraction} must be in [0, 1]: the fraction of the buffer that stays in it.")
    return MixedBatches(chunks, batch_size, buffer_size, mix_fraction, seed, dtype, device)


class MixedBatches(Iterator[Float[Tensor, "batch d_in"]]):
    """The resumable iterator that `mixed_batches` returns; its state includes the buffer.

    Rows never move: `slots` maps logical rows to rows of the buffer. The first `n_filled` logical rows hold
    activations; the first `n_due` are served before the buffer is refilled.
    """

    def __init__(
        self,
        chunks: Iterable[Float[Tensor, "_ d_in"]],
        batch_size: int,
        buffer_size: int,
        mix_fraction: float,
        seed: int,
        dtype: torch.dtype | None,
        device: torch.device | str | None,
    ) -> None:
        self._chunks = resumable(chunks)
        self._batch_size, self._buffer_size = batch_size, buffer_size
        self._n_per_refill = max(1, (buffer_size - int(buffer_size * mix_fraction)) // batch_size) * batch_size
        self._generator = torch.Generator().manual_seed(seed) if mix_fraction > 0 else None
        self._dtype, self._device = dtype, device
        self._buffer: Tensor | None = None
        self._slots = torch.arange(buffer_size)
        self._n_filled = self._n_served = self._n_due = 0
        self._rest: Tensor | None = None
        """Rows of the last chunk that did not fit into the buffer."""

    @override
    @torch.no_grad()
    def __next__(self) -> Float[Tensor, "batch d_in"]:
        if self._n_served == self._n_due:
            self._refill()
        if self._buffer is None or self._n_due == 0:
            raise StopIteration
        rows = self._slots[self._n_served : self._n_served + self._batch_size]
        self._n_served += self._batch_size
        return self._buffer.index_select(0, rows)

    def _refill(self) -> None:
        """Replace the served rows by new activations and permute all rows.

        If making a chunk fails, the state allows another try.
        """
        self._slots = self._slots.roll(-self._n_served)
        self._n_filled -= self._n_served
        self._n_served = self._n_due = 0
        while self._n_filled < self._buffer_size:
            if self._rest is None:
                self._rest = next(self._chunks, None)
            if self._rest is None:
                break
            self._insert(self._rest)
        filled = self._slots[: self._n_filled]
        if self._generator is not None:
            order = torch.randperm(self._n_filled, generator=self._generator)
            self._slots[: self._n_filled] = filled[order.to(filled.device)]
        is_full = self._n_filled == self._buffer_size
        self._n_due = self._n_per_refill if is_full else self._n_filled // self._batch_size * self._batch_size

    def _insert(self, rows: Float[Tensor, "_ d_in"]) -> None:
        if self._buffer is None:
            dtype, device = self._dtype or rows.dtype, self._device or rows.device
            self._buffer = torch.empty(self._buffer_size, rows.shape[1], dtype=dtype, device=device)
            self._slots = self._slots.to(self._buffer.device)
        part = rows[: self._buffer_size - self._n_filled]
        slots = self._slots[self._n_filled : self._n_filled + len(part)]
        self._buffer.index_copy_(0, slots, part.to(self._buffer))
        self._n_filled += len(part)
        self._rest = rows[len(part) :] if len(part) < len(rows) else None  # frees the chunk before the next is made

    def state_dict(self) -> dict[str, Any]:
        """The state with the buffer itself, not a copy: save it before the next batch."""
        return {
            "buffer": self._buffer,
            "slots": self._slots,
            "n_filled": self._n_filled,
            "n_served": self._n_served,
            "n_due": self._n_due,
            "rest": None if self._rest is None else self._rest.clone(),  # without the chunk that it is a view of
            "generator": None if self._generator is None else self._generator.get_state(),
            "chunks": self._chunks.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state with a buffer of the same size."""
        if len(state["slots"]) != self._buffer_size:
            raise ValueError(
                f"The checkpoint's buffer holds {len(state['slots'])} tokens, but this one {self._buffer_size}. Resume "
                "with the n_batches_in_buffer that training started with."
            )
        self._chunks.load_state_dict(state["chunks"])
        self._buffer = state["buffer"]
        self._slots = state["slots"]
        if self._buffer is not None:
            self._buffer = self._buffer.to(self._device or self._buffer.device)
            self._slots = self._slots.to(self._buffer.device)
        self._n_filled, self._n_served, self._n_due = (state[key] for key in ("n_filled", "n_served", "n_due"))
        self._rest = state["rest"]
        if self._generator is not None:
            self._generator.set_state(state["generator"])

    def fast_forward(self, state: dict[str, Any], ratio: float) -> None:
        """Skip ahead with an empty buffer; rows in the buffers of that state are left out."""
        fast_forward(self._chunks, state["chunks"], ratio)
