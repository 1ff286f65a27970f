"""Shuffled training batches from a stream of activations, out of one buffer that is refilled in place."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from sae_lens_crosscoder.activations.training_batches import approach, resumable


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
    return MixedBatches(chunks, batch_size, buffer_size, mix_fraction, seed, dtype, device)


class MixedBatches(Iterator[Float[Tensor, "batch d_in"]]):
    """What `mixed_batches` returns: an iterator that can be saved with all that is in the buffer.

    Rows never move: `slots` says where the logical rows lie, of which the first `n_filled` hold activations and the
    first `n_due` are served before the buffer is filled up again.
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
        self._n_per_filling = max(1, (buffer_size - int(buffer_size * mix_fraction)) // batch_size) * batch_size
        self._generator = torch.Generator().manual_seed(seed) if mix_fraction > 0 else None
        self._dtype, self._device = dtype, device
        self._buffer: Tensor | None = None
        self._slots = torch.arange(buffer_size)
        self._n_filled = self._n_served = self._n_due = 0
        self._rest: Tensor | None = None
        """Rows of the last chunk that found no place yet."""

    @override
    @torch.no_grad()
    def __next__(self) -> Float[Tensor, "batch d_in"]:
        if self._n_served == self._n_due:
            self._fill_up()
        if self._buffer is None or self._n_due == 0:
            raise StopIteration
        rows = self._slots[self._n_served : self._n_served + self._batch_size]
        self._n_served += self._batch_size
        return self._buffer.index_select(0, rows)

    def _fill_up(self) -> None:
        """Put new activations in the places of those served, and all in a new order.

        An error while a chunk is made leaves a state from which it can be made again.
        """
        self._slots = self._slots.roll(-self._n_served)
        self._n_filled -= self._n_served
        self._n_served = self._n_due = 0
        while self._n_filled < self._buffer_size:
            if self._rest is None:
                self._rest = next(self._chunks, None)
            if self._rest is None:
                break
            self._take_in(self._rest)
        filled = self._slots[: self._n_filled]
        if self._generator is not None:
            order = torch.randperm(self._n_filled, generator=self._generator)
            self._slots[: self._n_filled] = filled[order.to(filled.device)]
        is_full = self._n_filled == self._buffer_size
        self._n_due = self._n_per_filling if is_full else self._n_filled // self._batch_size * self._batch_size

    def _take_in(self, rows: Float[Tensor, "_ d_in"]) -> None:
        if self._buffer is None:
            dtype, device = self._dtype or rows.dtype, self._device or rows.device
            self._buffer = torch.empty(self._buffer_size, rows.shape[1], dtype=dtype, device=device)
            self._slots = self._slots.to(self._buffer.device)
        part = rows[: self._buffer_size - self._n_filled]
        places = self._slots[self._n_filled : self._n_filled + len(part)]
        self._buffer.index_copy_(0, places, part.to(self._buffer))
        self._n_filled += len(part)
        self._rest = rows[len(part) :] if len(part) < len(rows) else None  # which frees it while the next is made

    def state_dict(self) -> dict[str, Any]:
        """The buffer itself, not a copy: write it down before the next batch."""
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
        """Go on as the one whose state this is; a buffer of another size is refused."""
        if len(state["slots"]) != self._buffer_size:
            raise ValueError(
                f"The checkpoint's buffer holds {len(state['slots'])} tokens and this one {self._buffer_size}: go on "
                "with the buffer that training began with."
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

    def approach(self, state: dict[str, Any], share: float) -> None:
        """Begin with an empty buffer; what was in the buffers of that state is left out."""
        approach(self._chunks, state["chunks"], share)
