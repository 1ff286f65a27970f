"""Collectives of several processes that train one crosscoder, with `torch.distributed`; `torchrun` starts them.

Process r of a grid of `n_data` rows and `n_latents` columns is in row r // n_latents and column r % n_latents. Each
harvests its own share of the data. A row puts its shares together, so that all of it trains on the same tokens, and
each of its processes holds a slice of the latents. What is exchanged at every step is, within a row, the activations
and the reconstruction; within a column, the gradients; and between all, the scores of pairs that may be selected. The
exact k-th score of the whole batch is found among those, so what is learned does not depend on the grid.
"""

import logging
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.nn.functional import pad
from typing_extensions import override

from sae_lens_crosscoder.crosscoders.collectives import SINGLE_PROCESS, Collectives, Over, TopScores
from sae_lens_crosscoder.crosscoders.sparse_step.kernels import largest
from sae_lens_crosscoder.training.distributed import latent_shards
from sae_lens_crosscoder.training.interruption import TrainingInterrupted

T = TypeVar("T")
logger = logging.getLogger(__name__)


class LostProcessError(ConnectionError):
    """Another process of the run has ended, so collectives no longer work."""


class StoppedElsewhereError(RuntimeError):
    """Another rank failed; its log has the error."""


def connect(latent_shards: int, device: str, settings: Mapping[str, Any] | None = None) -> Collectives:
    """Connect the processes that `torchrun` started; a single process without `torchrun`.

    Args:
        settings: of the run, which must be the same on all ranks.

    Raises:
        ValueError: if the latents cannot be divided as asked among so many processes, or ranks differ in a setting.
    """
    n = int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1
    if latent_shards < 1 or n % latent_shards:
        raise ValueError(
            f"latent_shards={latent_shards} must divide the number of processes, which is {n}. Start one per device: "
            "`torchrun --nproc-per-node N -m sae_lens_crosscoder train ...`."
        )
    if n == 1:
        return SINGLE_PROCESS
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # which "cuda" then means in this process
    if not dist.is_initialized():
        dist.init_process_group()
    _validate_same_settings({"latent_shards": latent_shards, **(settings or {})})
    return ProcessGroup(latent_shards, kind)


def _validate_same_settings(settings: Mapping[str, Any]) -> None:
    """Refuse a run whose ranks were started with different settings, on all of them."""
    lead = [dict(settings)]
    with _exchange():
        dist.broadcast_object_list(lead, src=0)
        missing = object()
        differing = [name for name in settings if settings[name] != lead[0].get(name, missing)]
        everyones: list[list[str]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(everyones, differing)
    names = sorted({name for each in everyones for name in each})
    if names:
        ranks = [rank for rank, each in enumerate(everyones) if each]
        own = ", ".join(f"{name}={settings.get(name)!r:.80}" for name in names)
        raise ValueError(
            f"Ranks {ranks} have other settings than rank 0: {', '.join(names)}. This rank has {own}. "
            "Start all ranks with the same settings."
        )


class ProcessGroup(Collectives):
    """The processes of torch's default group, in rows of `n_latents`."""

    def __init__(self, n_latents: int, device_type: str) -> None:
        self.n_data, self.n_latents = dist.get_world_size() // n_latents, n_latents
        self.rank = dist.get_rank()
        self.mesh = init_device_mesh(device_type, (self.n_data, n_latents), mesh_dim_names=("data", "latents"))
        self._groups: dict[Over, Any] = {name: self.mesh.get_group(name) for name in ("data", "latents")}
        self._groups["all"] = dist.group.WORLD
        self._sizes: dict[Over, int] = {"data": self.n_data, "latents": n_latents, "all": self.n_processes}
        self._common_error: BaseException | None = None

    @override
    def sum(self, tensor: Tensor, over: Over) -> Tensor:
        return self._reduced(tensor.detach().clone(), over)

    @override
    def sum_int(self, number: int, over: Over) -> int:
        return int(self.sum(torch.tensor(number), over))

    @override
    def mean(self, tensor: Tensor) -> Tensor:
        return self.sum(tensor, "data") / self.n_data

    @override
    def min(self, values: Float[Tensor, " value"]) -> Float[Tensor, ""] | None:
        own = values.min() if len(values) else values.new_tensor(torch.inf)
        smallest = self._reduced(own.detach().clone(), "all", dist.ReduceOp.MIN)
        return None if torch.isinf(smallest) else smallest

    @override
    def max_int(self, number: int) -> int:
        return int(self._reduced(torch.tensor(number), "all", dist.ReduceOp.MAX))

    @override
    def all_gather(self, rows: Tensor, over: Over) -> Tensor:
        if self._sizes[over] == 1:
            return rows
        rows = rows.detach().contiguous()
        everyones = [torch.empty_like(rows) for _ in range(self._sizes[over])]
        with _exchange():
            dist.all_gather(everyones, rows, group=self._groups[over])
        return torch.cat(everyones)

    @override
    def top_scores(self, scores: Float[Tensor, " pair"], n: int) -> TopScores:
        """Every process sends its own n largest at most, and finds the n largest of all among what it gets."""
        own = largest(scores, n)
        n_candidates, n_sent = self.all_gather(torch.tensor([[len(scores), len(own)]]), "all").T
        width = int(n_sent.max())
        n_found = min(n, int(n_sent.sum()))
        if n_found == 0:
            return TopScores(own, 0.0, int(n_candidates.sum()))
        sent = pad(scores[own], (0, width - len(own)), value=-torch.inf)
        kept, smallest = _n_largest(self.all_gather(sent, "all"), n_found)
        mine = kept.view(self.n_processes, width)[self.rank, : len(own)]
        return TopScores(own[mine], float(smallest), int(n_candidates.sum()))

    @override
    def top_k_mask(self, values: Float[Tensor, "batch own"], k: int) -> Bool[Tensor, "batch own"]:
        n_tokens, n_own = values.shape
        sent = pad(values, (0, k - n_own), value=-torch.inf)
        everyones = self.all_gather(sent[None], "latents").movedim(0, 1)
        kept, _ = _n_largest(everyones.reshape(n_tokens, -1), k)
        return kept.view(everyones.shape)[:, self.latent_shard, :n_own]

    @override
    def sum_over_latents(self, part: Tensor) -> Tensor:
        """As torch's tensors of which every process has a part; each then gets the gradient of the sum."""
        if self.n_latents == 1:
            return part
        with _exchange():
            total: Tensor = DTensor.from_local(part, self.mesh["latents"], [Partial()], run_check=False).full_tensor()
        return total

    @override
    def reduce_gradients(self, parameters: Mapping[str, nn.Parameter]) -> Float[Tensor, ""]:
        own: list[Tensor] = []
        shared: list[Tensor] = []
        for name, weights in parameters.items():
            gradient = weights.grad
            assert gradient is not None
            if name in latent_shards.LATENT_AXIS:
                # Latent by latent, as the encoder is stored: what is exchanged must lie in one piece.
                own.append(self._reduced(gradient if gradient.is_contiguous() else gradient.mT, "data"))
            else:
                # Equal in a row already; taken from all, so that rounding can never drive copies apart.
                shared.append(self._reduced(gradient, "all").div_(self.n_latents))
        square = self.sum(torch.nn.utils.get_total_norm(own).square(), "latents")
        return (square + torch.nn.utils.get_total_norm(shared).square()).sqrt()

    @override
    @contextmanager
    def fail_together(self) -> Generator[None]:
        error: Exception | None = None
        try:
            yield
        except Exception as own_error:  # whatever it is, the others wait to hear of it
            error = own_error
        if not self.max_int(int(error is not None)):
            return
        self._common_error = error or StoppedElsewhereError("Another rank failed; see its log.")
        raise self._common_error

    @override
    def can_communicate_after(self, error: BaseException) -> bool:
        return error is self._common_error or isinstance(error, TrainingInterrupted)

    @override
    def broadcast(self, value: T) -> T:
        values = [value]
        with _exchange():
            dist.broadcast_object_list(values, src=0)
        return values[0]

    @override
    def shard(self, crosscoder: T) -> T:
        part: Any = latent_shards.shard_of(crosscoder, self.latent_shard, self.n_latents)
        part.collectives = self
        return part

    @override
    def unshard(self, part: T) -> T | None:
        if self.rank >= self.n_latents:  # a copy of what the first row has
            return None
        group = self._groups["latents"]

        def collected(own: Tensor) -> list[Tensor]:
            everyones = [torch.empty_like(own) for _ in range(self.n_latents)] if self.is_lead else None
            with _exchange():
                dist.gather(own, everyones, dst=0, group=group)
            return everyones or []

        return latent_shards.unshard(part, collected, self.n_latents if self.is_lead else 0)

    def as_sharded(self, rows: Tensor) -> DTensor:
        """This process's rows as a part of the rows of all latents."""
        return DTensor.from_local(rows, self.mesh, [Replicate(), Shard(0)], run_check=False)

    def _reduced(self, tensor: Tensor, over: Over, operation: Any = dist.ReduceOp.SUM) -> Tensor:
        """In place."""
        if self._sizes[over] > 1:
            with _exchange():
                dist.all_reduce(tensor, op=operation, group=self._groups[over])
        return tensor


def _n_largest(values: Float[Tensor, "*rows column"], n: int) -> tuple[Bool[Tensor, "*rows column"], Tensor]:
    """Mark a row's n largest values, and return the smallest of them; of equal values the first are taken.

    >>> _n_largest(torch.tensor([3.0, 1.0, 3.0, 3.0, 5.0]), 3)
    (tensor([ True, False,  True, False,  True]), tensor([3.]))
    """
    smallest = values.topk(n, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)
    above, equal = values > smallest, values == smallest
    n_equal = n - above.sum(dim=-1, keepdim=True)
    return above | (equal & (equal.cumsum(dim=-1) <= n_equal)), smallest


@contextmanager
def _exchange() -> Generator[None]:
    """Around what needs all processes."""
    try:
        yield
    except RuntimeError as error:
        message = (
            "Another process of this run has ended; see torchrun's log. Resume from the last "
            f"complete checkpoint with --resume_from_checkpoint latest. ({str(error).splitlines()[0]})"
        )
        logger.error(message)  # at once, because torchrun is about to end this process as well
        raise LostProcessError(message) from error
