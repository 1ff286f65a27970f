"""Sums of the swap readout: how often and how strongly each model alone uses every latent."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens_crosscoder.analysis.encoding import Code, codes
from sae_lens_crosscoder.analysis.use.sparse_values import SparseValues
from sae_lens_crosscoder.analysis.use.strong_firings import StrongFirings
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.crosscoders.swap_readout import MIN_COSINE, ONE_SIDED_RATIO, SwapReadout
from sae_lens_crosscoder.storage.accumulators import Accumulator

N_SHARDS = 50


def mean_code(crosscoder: InferenceCrosscoder, activations: Float[Tensor, "token d_in"]) -> Float[Tensor, " d_sae"]:
    """Mean joint code of all latents."""
    total = torch.zeros(crosscoder.cfg.d_sae, dtype=torch.float64, device=crosscoder.W_dec.device)
    for part in codes(crosscoder, activations, 0):
        one_row = torch.zeros(len(part.activations), dtype=torch.int64, device=total.device)
        SparseValues.of(part.feature_acts).add_to(total, one_row)
    return total / len(activations)


class UseCodes(NamedTuple):
    """Codes of some tokens: joint, of single models alone, and joint without each of them, by the model's place."""

    joint: SparseValues
    alone: Mapping[int, SparseValues]
    without: Mapping[int, SparseValues]

    @classmethod
    def read(cls, readout: SwapReadout, models: Sequence[int], part: Code, cells: Int[Tensor, " token"]) -> "UseCodes":
        """Read the models that the readout was made for."""
        alone, without = readout.alone(*part), readout.without(part.activations, cells)
        by_place = [{m: SparseValues.of(acts) for m, acts in zip(models, of, strict=True)} for of in (alone, without)]
        return cls(SparseValues.of(part.feature_acts), *by_place)


class UseSums(Accumulator):
    """Accumulates the codes of two models alone, and how far the joint code moves without each of them.

    Tokens are kept apart by cell: one per token group, and one for tokens of no group. Sums of codes are also kept
    apart by shard, to which blocks of consecutive tokens are assigned in turn, for the bootstrap.

    Args:
        models: places of the two models among the crosscoder's.
        block_size: consecutive tokens that the bootstrap keeps together.
    """

    buffers = ("n_tokens", "means", "mean_code", "cell_tokens", "alone", "joint", "n_joint", "moved")

    def __init__(self, crosscoder: InferenceCrosscoder, models: tuple[int, int], n_cells: int, block_size: int) -> None:
        self._crosscoder, self.models, self._block_size = crosscoder, models, block_size
        d_sae, device = crosscoder.cfg.d_sae, crosscoder.W_dec.device

        def zeros(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        self.n_tokens = 0
        self.means = zeros(n_cells + 1, crosscoder.layout.d_in).fill_(torch.nan)
        """Mean activation of each cell, and of all tokens: see `measure_means`."""
        self.mean_code = zeros(d_sae)
        """Mean joint code of the same tokens."""
        self.cell_tokens = zeros(n_cells, N_SHARDS, dtype=torch.int64)
        self.strong = StrongFirings(n_cells, N_SHARDS, d_sae, device)
        self.alone = zeros(2, d_sae)
        """Sum of each model's code alone, strong or not."""
        self.joint = zeros(n_cells, d_sae)
        """Sum of the joint code."""
        self.n_joint = zeros(n_cells, d_sae, dtype=torch.int64)
        """Tokens on which the joint code is on."""
        self.moved = zeros(2, n_cells, d_sae)
        """Sum of how far the joint code moves when a model's activation is replaced by its mean in the cell."""

    def measure_means(
        self, activations: Float[Tensor, "token d_in"], cells: Int[Tensor, " token"], min_tokens: int
    ) -> None:
        """Take the means from a first part of the data; a cell with fewer tokens gets the mean of all tokens."""
        rows, cells = activations.to(self.means), cells.to(self.means.device)
        total = rows.mean(dim=0)
        sums = torch.zeros_like(self.means[:-1]).index_add_(0, cells, rows)
        counts = cells.bincount(minlength=len(sums))[:, None]
        self.means[:-1] = torch.where(counts >= min_tokens, sums / counts, total)
        self.means[-1] = total
        self.mean_code[:] = mean_code(self._crosscoder, activations)

    def turned(self) -> Bool[Tensor, " d_sae"]:
        """True for latents whose decoders in both models point apart, so neither can be read in the other's slot."""
        first, second = (self._crosscoder.decoders[m].detach().double() for m in self.models)
        norms = self._crosscoder.decoder_norms.detach().double()[:, list(self.models)]
        cosine = torch.nn.functional.cosine_similarity(first, second, eps=torch.finfo(torch.float64).tiny)
        is_one_sided = norms.amin(dim=1) < ONE_SIDED_RATIO * norms.amax(dim=1)
        return (cosine < MIN_COSINE) & ~is_one_sided

    @torch.no_grad()
    def add(self, codes: UseCodes, cells: Int[Tensor, " token"]) -> None:
        """Add tokens with the cell of each."""
        cells = cells.to(self.joint.device)
        tokens = torch.arange(self.n_tokens, self.n_tokens + len(cells), device=cells.device)
        rows = cells * N_SHARDS + tokens // self._block_size % N_SHARDS
        self.cell_tokens += rows.bincount(minlength=self.cell_tokens.numel()).view_as(self.cell_tokens)
        self.n_tokens += len(cells)
        alone = [codes.alone[m] for m in self.models]
        self.strong.add(alone, rows)
        for m, code in enumerate(alone):
            code.add_to(self.alone[m], torch.zeros_like(cells))
        joint = codes.joint
        joint.count_in(self.n_joint, cells)
        joint.add_to(self.joint, cells)
        for m, replaced in enumerate(codes.without[place] for place in self.models):
            place = joint.places_in(replaced)
            both = (place >= 0).nonzero().flatten()
            # |f - f'| where f is on, and f' everywhere else.
            moved = joint.values.index_add(0, both, replaced.values[place[both]], alpha=-1).abs()
            joint.with_values(moved).add_to(self.moved[m], cells)
            elsewhere = replaced.values.index_fill(0, place[both], 0)
            replaced.with_values(elsewhere).add_to(self.moved[m], cells)
