"""Frequency and strength of every latent: over all tokens, per data source, and per token group."""

from dataclasses import dataclass

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens_crosscoder.activations.eval_data import EvalData
from sae_lens_crosscoder.activations.variance import VarianceExplained
from sae_lens_crosscoder.analysis.encoding import Encoded
from sae_lens_crosscoder.analysis.inputs import data_source
from sae_lens_crosscoder.analysis.statistics.labelled_tokens import Cells, labelled_parts
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, validate_inference
from sae_lens_crosscoder.crosscoders.sparse_step.kernels import counts
from sae_lens_crosscoder.crosscoders.sparse_step.pairs import pairs_of
from sae_lens_crosscoder.data.token_groups import BOS_GROUP, TokenGroups


@dataclass(frozen=True)
class LatentStatistics:
    """Statistics of every latent, and of each place: `all`, every source and every group."""

    table: pd.DataFrame
    """One row per latent. For each place the columns `n_active_PLACE`, `frequency_PLACE` (share of its tokens on which
    the latent is active), `max_score_PLACE`, `mean_score_PLACE` (over the tokens on which it is active) and
    `dead_PLACE` (never active); all but the count are nan in a place without tokens. With template groups also
    `frac_template`: of the tokens on which the latent is active, the share that are the template's, both counted
    without BOS in the sources that have template tokens."""
    n_tokens: dict[str, int]
    """Tokens of each place."""
    l0: dict[str, float]
    """Mean number of active latents per token, of each place."""
    fve: dict[str, float]
    """Fraction of variance explained over all tokens: of each model, `pooled`, and of their `difference`."""


@validate_arguments
def latent_statistics(crosscoder: InferenceCrosscoder, data: EvalData) -> LatentStatistics:
    """Count how often and how strongly every latent fires, in one pass over the data.

    Args:
        crosscoder: an inference crosscoder, whose activations are scores.
        data: held-out data, with `groups` and `sources` if known. Tokens labelled -1 are left out of everything. For
            activations, groups are those of the tokens they were made from.

    Raises:
        ValueError: for labels that do not fit the tokens, names that clash, no tokens, or a pair that the crosscoder
            was not trained on.
    """
    crosscoder = validate_inference(crosscoder, "latent_statistics")
    source, cells = data_source(crosscoder, data), Cells.of(data)
    sums = StatisticsSums(crosscoder, cells)
    for part, cell in labelled_parts(source, crosscoder, cells.labels, "Counting"):
        sums.add(part, cell)
    return sums.statistics(data.groups)


class StatisticsSums:
    """Accumulates the sums behind `LatentStatistics` per cell and latent, in float64."""

    def __init__(self, crosscoder: InferenceCrosscoder, cells: Cells) -> None:
        self._places = cells.places
        self._fve = VarianceExplained(crosscoder.layout)
        n_cells = cells.n_groups * cells.n_sources
        zeros = torch.zeros(n_cells, crosscoder.cfg.d_sae, dtype=torch.float64, device=crosscoder.W_dec.device)
        self.n_tokens = zeros.new_zeros(n_cells, dtype=torch.int64)
        self.n_active = torch.zeros_like(zeros, dtype=torch.int64)
        self.score, self.max_score = zeros, zeros.clone()

    def add(self, part: Encoded, cell: Int[Tensor, " token"]) -> None:
        """Add tokens, each to its cell."""
        self._fve.add(part.activations, part.reconstruction)
        pairs, values = pairs_of(part.feature_acts)
        score, place = values.double(), cell[pairs.token] * pairs.d_sae + pairs.latent
        self.n_tokens += counts(cell, len(self.n_tokens))
        self.n_active.view(-1).index_add_(0, place, torch.ones_like(place))
        self.score.view(-1).index_add_(0, place, score)
        self.max_score.view(-1).scatter_reduce_(0, place, score, "amax")

    def statistics(self, groups: TokenGroups | None) -> LatentStatistics:
        """Statistics of all tokens so far; a ValueError if there are none."""
        if self._fve.n_tokens == 0:
            raise ValueError("No tokens to count: the data is empty, or its mask or groups leave out every token.")
        columns: dict[str, Tensor] = {}
        n_tokens: dict[str, int] = {}
        l0: dict[str, float] = {}
        for name, place in self._places.items():
            columns |= {f"{column}_{name}": values for column, values in self._of(place).items()}
            n_tokens[name] = int(self.n_tokens[place].sum())
            n_active = float(columns[f"n_active_{name}"].sum())
            l0[name] = n_active / n_tokens[name] if n_tokens[name] else float("nan")
        if groups is not None and any(groups.is_template):
            columns["frac_template"] = _frac_template(self, groups)
        table = pd.DataFrame({name: column.numpy() for name, column in columns.items()})
        table.index.name = "latent"
        return LatentStatistics(table, n_tokens, l0, self._fve.all_figures())

    def _of(self, place: Bool[Tensor, " cell"]) -> dict[str, Float[Tensor, " d_sae"] | Tensor]:
        """Statistics of cells together, on the CPU."""
        place = place.to(self.score.device)
        n_tokens, n_active = self.n_tokens[place].sum(), self.n_active[place].sum(dim=0)
        statistics = {
            "n_active": n_active,
            "frequency": n_active / n_tokens.double(),
            "max_score": torch.where(n_tokens > 0, self.max_score[place].amax(dim=0), torch.nan),
            "mean_score": self.score[place].sum(dim=0) / n_active,
            "dead": n_active == 0,
        }
        return {name: values.cpu() for name, values in statistics.items()}


def _frac_template(sums: StatisticsSums, groups: TokenGroups) -> Float[Tensor, " d_sae"]:
    """Share of template tokens in active tokens without BOS, in sources with a template; nan if there are none."""
    n_groups = len(groups.names)
    template = torch.tensor(groups.is_template)
    counted = torch.tensor([name != BOS_GROUP for name in groups.names])
    n_tokens = rearrange(sums.n_tokens.cpu(), "(source group) -> source group", group=n_groups)
    n_active = rearrange(sums.n_active.cpu(), "(source group) latent -> source group latent", group=n_groups)
    chat = n_active[n_tokens[:, template].sum(dim=1) > 0]
    return chat[:, template].sum(dim=(0, 1)) / chat[:, counted].sum(dim=(0, 1)).double()
