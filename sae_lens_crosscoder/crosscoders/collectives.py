"""Collective operations of the processes that train one crosscoder: their protocol, and a single process's own.

Several processes form a grid (`training.distributed.process_group`). The processes of a row see the same tokens and
hold different latents; the processes of a column hold the same latents and see different tokens.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from typing_extensions import override

from sae_lens_crosscoder.crosscoders.sparse_step.kernels import largest, norm_of

T = TypeVar("T")
Over = Literal["data", "latents", "all"]
"""The processes to reduce over: `data` (same latents, other tokens), `latents` (same tokens, other latents), `all`."""


class TopScores(NamedTuple):
    """The n largest scores of all processes, as one process sees them."""

    indices: Int[Tensor, " selected"]
    """Positions among this process's scores, ascending."""
    smallest: float
    """The smallest of the n scores on any process; 0 if there are none."""
    n_candidates: int
    """Number of scores on all processes."""


@runtime_checkable
class Collectives(Protocol):
    """Protocol for collective operations; crosscoders and trainers call it for numbers that span processes."""

    n_data: int
    """Number of parts that every batch is divided into."""
    n_latents: int
    """Number of shards that the latents are divided into."""
    rank: int

    @property
    def n_processes(self) -> int:
        return self.n_data * self.n_latents

    @property
    def is_lead(self) -> bool:
        """True for the process that logs and writes, rank 0."""
        return self.rank == 0

    @property
    def latent_shard(self) -> int:
        """Index of this process's shard of the latents."""
        return self.rank % self.n_latents

    # Numbers without gradient

    def sum(self, tensor: Tensor, over: Over) -> Tensor:
        """Sum a tensor over processes."""
        ...

    def sum_int(self, number: int, over: Over) -> int:
        """Sum an integer over processes."""
        ...

    def mean(self, tensor: Tensor) -> Tensor:
        """Average over the parts of the batch, which have equal size."""
        ...

    def min(self, values: Float[Tensor, " value"]) -> Float[Tensor, ""] | None:
        """Return the smallest value of all processes, or None if there are no values."""
        ...

    def max_int(self, number: int) -> int:
        """Return the largest integer of all processes."""
        ...

    def all_gather(self, rows: Tensor, over: Over) -> Tensor:
        """Concatenate the rows of all processes, which have equally many."""
        ...

    def top_scores(self, scores: Float[Tensor, " pair"], n: int) -> TopScores:
        """Select the n largest scores of all processes exactly, or all scores if there are at most n."""
        ...

    def top_k_mask(self, values: Float[Tensor, "batch own"], k: int) -> Bool[Tensor, "batch own"]:
        """Mark the values that are among a token's k largest over all latents; no process has more than k."""
        ...

    # Gradients

    def sum_over_latents(self, part: Tensor) -> Tensor:
        """Sum the contributions of all latent shards, with gradient."""
        ...

    def reduce_gradients(self, parameters: Mapping[str, nn.Parameter]) -> Float[Tensor, ""]:
        """Sum gradients over parts of the batch, in place, and return the whole crosscoder's gradient norm."""
        ...

    # Start and end

    def fail_together(self) -> AbstractContextManager[None]:
        """Make an error of one process inside the block an error of all, so that they stay in step."""
        ...

    def can_communicate_after(self, error: BaseException) -> bool:
        """True if all processes stopped at the same place because of this error."""
        ...

    def broadcast(self, value: T) -> T:
        """Return the lead's value."""
        ...

    def as_sharded(self, rows: Tensor) -> Tensor:
        """Mark this process's latents as a shard of all latents, for distributed checkpoints."""
        ...

    def shard(self, crosscoder: T) -> T:
        """Return this process's shard of a crosscoder's latents."""
        ...

    def unshard(self, part: T) -> T | None:
        """Gather all shards: the whole crosscoder for the lead, None for the others."""
        ...


class SingleProcess(Collectives):
    """The collectives of a run with one process, which communicates with nobody.

    >>> SingleProcess().top_scores(torch.tensor([5.0, 1.0, 7.0]), 2)
    TopScores(indices=tensor([0, 2]), smallest=5.0, n_candidates=3)
    """

    n_data, n_latents, rank = 1, 1, 0

    @override
    def sum(self, tensor: Tensor, over: Over) -> Tensor:
        return tensor

    @override
    def sum_int(self, number: int, over: Over) -> int:
        return number

    @override
    def mean(self, tensor: Tensor) -> Tensor:
        return tensor

    @override
    def min(self, values: Float[Tensor, " value"]) -> Float[Tensor, ""] | None:
        return values.min() if len(values) else None

    @override
    def max_int(self, number: int) -> int:
        return number

    @override
    def all_gather(self, rows: Tensor, over: Over) -> Tensor:
        return rows

    @override
    def top_scores(self, scores: Float[Tensor, " pair"], n: int) -> TopScores:
        indices = largest(scores, n)
        return TopScores(indices, float(scores[indices].min()) if len(indices) else 0.0, len(scores))

    @override
    def top_k_mask(self, values: Float[Tensor, "batch own"], k: int) -> Bool[Tensor, "batch own"]:
        return torch.ones_like(values, dtype=torch.bool)

    @override
    def sum_over_latents(self, part: Tensor) -> Tensor:
        return part

    @override
    def reduce_gradients(self, parameters: Mapping[str, nn.Parameter]) -> Float[Tensor, ""]:
        return norm_of(weights.grad for weights in parameters.values() if weights.grad is not None)

    @override
    def fail_together(self) -> AbstractContextManager[None]:
        return nullcontext()

    @override
    def can_communicate_after(self, error: BaseException) -> bool:
        return True

    @override
    def broadcast(self, value: T) -> T:
        return value

    @override
    def as_sharded(self, rows: Tensor) -> Tensor:
        return rows

    @override
    def shard(self, crosscoder: T) -> T:
        return crosscoder

    @override
    def unshard(self, part: T) -> T | None:
        return part


SINGLE_PROCESS = SingleProcess()
