"""Strong firings of every latent in two models, told from interference by a level that both models share."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.analysis.use.sparse_values import SparseValues
from sae_lens_crosscoder.storage.accumulators import Accumulator

N_FIRST = 128
"""Firings, in either model, that a latent's level is measured on."""
STRONG_SHARE = 0.8
"""Share of the level that a strong firing reaches."""


class StrongFirings(Accumulator):
    """Counts and sums the strong firings of every latent, per model, cell and shard.

    One model alone tells concepts apart less well than both together, so its code also fires weakly on interference,
    and more so in the model that has more concepts. A firing is strong if it reaches 0.8 times the latent's level:
    the mean of its first 128 firings, in either model, each weighted by its energy, `sum f^3 / sum f^2`. These
    firings are kept until the end, and those after them are compared with the level at once.
    """

    buffers = ("sums", "counts", "level", "n_seen", "_values", "_places")

    def __init__(self, n_cells: int, n_shards: int, d_sae: int, device: torch.device) -> None:
        self._n_rows, self._d_sae = n_cells * n_shards, d_sae
        self.sums = torch.zeros(2, n_cells, n_shards, d_sae, dtype=torch.float64, device=device)
        """Sum of the strong codes after the first firings: (model, cell, shard, d_sae)."""
        self.counts = torch.zeros(2, n_cells, d_sae, dtype=torch.int64, device=device)
        self.level = self.sums.new_full((d_sae,), torch.nan)
        """Level of the latents with enough firings."""
        self.n_seen = torch.zeros(d_sae, dtype=torch.int64, device=device)
        """Firings so far, in either model."""
        self._values = torch.zeros(d_sae, N_FIRST, dtype=torch.float64, device=device)
        """The first firings; 0 for none yet."""
        self._places = torch.zeros(d_sae, N_FIRST, dtype=torch.int32, device=device)
        """Model and row of each."""

    def add(self, codes: Sequence[SparseValues], rows: Int[Tensor, " token"]) -> None:
        """Add both models' codes of some tokens, and the row (cell and shard) of each token."""
        latent = torch.cat([code.pairs.latent for code in codes])
        token = torch.cat([code.pairs.token for code in codes])
        value = torch.cat([code.values for code in codes])
        model = torch.cat([torch.full_like(code.pairs.latent, m) for m, code in enumerate(codes)])
        place = model * self._n_rows + rows[token]
        late = self.n_seen[latent] >= N_FIRST
        early = (~late).nonzero().flatten()
        # In the order of the stream, so that the first firings do not depend on how it was cut.
        order = early[torch.argsort((latent[early] * (1 + len(rows)) + token[early]) * 2 + model[early])]
        rank = self._ranks(latent[order])
        first = rank < N_FIRST
        kept, rank = order[first], rank[first]
        self._values[latent[kept], rank] = value[kept]
        self._places[latent[kept], rank] = place[kept].int()
        self.n_seen += latent.bincount(minlength=self._d_sae)
        full = ((self.n_seen >= N_FIRST) & self.level.isnan()).nonzero().flatten()
        self.level[full] = _level(self._values[full])
        rest = torch.cat([late.nonzero().flatten(), order[~first]])
        rest = rest[value[rest] >= STRONG_SHARE * self.level[latent[rest]]]
        self._add(self.sums, self.counts, place[rest], latent[rest], value[rest])

    def _ranks(self, latent: Int[Tensor, " firing"]) -> Int[Tensor, " firing"]:
        """Number of firings before each one, given the latents of consecutive firings in sorted order."""
        counts = latent.bincount(minlength=self._d_sae)
        starts = counts.cumsum(dim=0) - counts
        return torch.arange(len(latent), device=latent.device) - starts[latent] + self.n_seen[latent]

    def totals(self) -> tuple[Float[Tensor, "2 cell shard d_sae"], Int[Tensor, "2 cell d_sae"]]:
        """Sums and counts of the strong firings, the first ones included."""
        sums, counts = self.sums.clone(), self.counts.clone()
        bounds = STRONG_SHARE * torch.where(self.level.isnan(), _level(self._values), self.level)
        latent, rank = ((self._values > 0) & (self._values >= bounds[:, None])).nonzero().T
        self._add(sums, counts, self._places[latent, rank].long(), latent, self._values[latent, rank])
        return sums, counts

    def _add(self, sums: Tensor, counts: Tensor, place: Tensor, latent: Tensor, value: Tensor) -> None:
        sums.view(-1).index_add_(0, place * self._d_sae + latent, value)
        n_shards = sums.shape[2]
        cells = torch.div(place, n_shards, rounding_mode="floor")
        counts.view(-1).index_add_(0, cells * self._d_sae + latent, torch.ones_like(latent))


def _level(values: Float[Tensor, "latent firing"]) -> Float[Tensor, " latent"]:
    """Mean of firings, each weighted by its energy; nan for a latent without one."""
    return values.pow(3).sum(dim=1) / values.square().sum(dim=1)
