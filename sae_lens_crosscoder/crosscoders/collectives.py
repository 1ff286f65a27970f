"""What the processes that train one crosscoder tell each other; here, of a run that has one process."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sae_lens_crosscoder.crosscoders.sparse_step.kernels import largest

T = TypeVar("T")
Over = Literal["data", "latents", "all"]
"""Which processes: those with the same latents and other tokens, those with the same tokens and other latents, all."""


class Largest(NamedTuple):
    """The n largest of all processes' scores, as one process sees them."""

    kept: Int[Tensor, " found"]
    """Where they are among this process's own scores, ascending."""
    smallest: float
    """The smallest of them on any process; 0 if there are none."""
    n_candidates: int
    """How many scores all processes had."""


class OneProcess:
    """The only process of a run, which needs to say nothing to others.

    Several form a grid (`training.distributed.ProcessGrid`): those of a row see the same tokens and hold different
    latents, those of a column hold the same latents and see different tokens. A crosscoder, and what trains it, ask
    their `ranks` wherever a number depends on tokens or latents of other processes.
    """

    n_data: int = 1
    """Into how many parts every batch is divided."""
    n_latents: int = 1
    """Into how many parts the latents are divided."""
    rank: int = 0

    @property
    def n(self) -> int:
        return self.n_data * self.n_latents

    @property
    def is_lead(self) -> bool:
        """Whether this process logs and writes."""
        return self.rank == 0

    # Numbers without gradient

    def summed(self, tensor: Tensor, over: Over) -> Tensor:
        return tensor

    def total(self, number: int, over: Over) -> int:
        return number

    def averaged(self, tensor: Tensor) -> Tensor:
        """The mean over parts of the batch, which are all of the same size."""
        return tensor

    def minimum(self, values: Float[Tensor, " found"]) -> Float[Tensor, ""] | None:
        """The smallest value of all processes; None if there are none."""
        return values.min() if len(values) else None

    def maximum(self, number: int) -> int:
        """The largest of all processes' numbers."""
        return number

    def gathered(self, rows: Tensor, over: Over) -> Tensor:
        """All processes' rows, of which each has the same number."""
        return rows

    def largest(self, scores: Float[Tensor, " pairs"], n: int) -> Largest:
        """The n largest scores of all processes, exactly; all if there are no more.

        >>> OneProcess().largest(torch.tensor([5.0, 1.0, 7.0]), 2)
        Largest(kept=tensor([0, 2]), smallest=5.0, n_candidates=3)
        """
        kept = largest(scores, n)
        return Largest(kept, float(scores[kept].min()) if len(kept) else 0.0, len(scores))

    def among_largest(self, values: Float[Tensor, "batch own"], k: int) -> Bool[Tensor, "batch own"]:
        """Which of a token's values are among its k largest over all latents; no process has more than k."""
        return torch.ones_like(values, dtype=torch.bool)

    # Gradients

    def sum_of_parts(self, part: Tensor) -> Tensor:
        """The sum over all latents of what each process has made with its own, with gradient."""
        return part

    def joint_gradients(self, parameters: Mapping[str, nn.Parameter]) -> Float[Tensor, ""]:
        """Sum gradients over parts of the batch, in place; the norm of the whole crosscoder's gradient."""
        gradients = [weights.grad for weights in parameters.values() if weights.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)

    # Beginning and end

    def together(self) -> AbstractContextManager[None]:
        """Around what may fail for one process alone: then all raise, and can still do something in common."""
        return nullcontext()

    def can_still_meet(self, error: BaseException) -> bool:
        """Whether all processes have stopped, by this error, at the same place."""
        return True

    def agreed(self, value: T) -> T:
        """The lead's value."""
        return value

    def sharded(self, rows: Tensor) -> Tensor:
        """Rows of this process's latents, as a checkpoint takes them."""
        return rows

    def part_of(self, crosscoder: T) -> T:
        """This process's latents of a whole crosscoder."""
        return crosscoder

    def whole_of(self, part: T) -> T | None:
        """The whole crosscoder, for the lead; None for the others."""
        return part


ONE_PROCESS = OneProcess()
