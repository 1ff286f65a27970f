"""How often and how strongly every latent fires: everywhere, per data source, and per token group."""

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens_crosscoder.activations.variance import VarianceExplained
from sae_lens_crosscoder.analysis.inputs import Activations, data_source
from sae_lens_crosscoder.analysis.statistics.labelled_tokens import Cells, labelled_parts
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, require_inference
from sae_lens_crosscoder.crosscoders.sparse_step.codes import pairs_of
from sae_lens_crosscoder.crosscoders.sparse_step.kernels import counts
from sae_lens_crosscoder.data.token_groups import BOS_GROUP, TokenGroups
from sae_lens_crosscoder.models.pair import HookedModelPair


def latent_statistics(
    crosscoder: InferenceCrosscoder,
    pair: HookedModelPair | None = None,
    tokens: Tensor | None = None,
    *,
    keep: Tensor | None = None,
    groups: TokenGroups | None = None,
    sources: Sequence[str] | TokenGroups | None = None,
    activations: Activations | None = None,
    batch_size_prompts: int = 32,
) -> pd.DataFrame:
    """Statistics of every latent, from one pass over the data.

    `table[statistics.columns] = statistics` adds them to a table of `diagnose`; pandas' `join` would lose its manifest.

    Args:
        crosscoder: an inference crosscoder, whose activations are scores.
        pair, tokens: the two models, and token ids of shape (batch, pos).
        keep: which of the tokens count, True or False each, as `runner.held_out_kept`; None for all.
        groups: each token's group, as `slc.token_groups` makes them; tokens labelled -1 are left out of everything.
        sources: where each row of the tokens comes from, such as "web" or "chat"; for rows that hold several documents,
            a `TokenGroups` that says it of every token.
        activations: instead of a pair and tokens, raw stacked activations, as `diagnose` takes them. `groups` are then
            those of the tokens they were made from, and without groups there is one source per token.

    Returns:
        A row per latent. For each place (`all`, every source, every group) the columns `n_active_PLACE`,
        `frequency_PLACE` (share of its tokens on which the latent is on), `max_score_PLACE`, `mean_score_PLACE` (over
        the tokens on which it is on) and `dead_PLACE` (never on; everything but the count and this is nan in a place
        without tokens). With template groups also `frac_template`: of the tokens on which the latent is on, the share
        that are the template's, both counted without BOS in the sources that have template tokens. `.attrs` hold
        `n_tokens` and `l0` of every place, and `fve` per model and pooled, over all tokens at once.

    Raises:
        ValueError: for labels that do not fit the tokens, names that clash, and whatever `diagnose` refuses.
    """
    crosscoder = require_inference(crosscoder, "latent_statistics")
    source = data_source(crosscoder, pair, tokens, activations, batch_size_prompts, "latent_statistics", keep)
    cells = Cells.of(tokens, groups, sources, keep)
    sums = StatisticsSums(crosscoder, cells)
    fve = VarianceExplained(crosscoder.layout)
    for (part, feature_acts, reconstruction), cell in labelled_parts(source, crosscoder, cells.labels, "Counting"):
        sums.add(feature_acts, cell)
        fve.add(part, reconstruction)
    if fve.n_tokens == 0:
        raise ValueError("There was nothing to count: the data source gave no tokens, or all were left out.")
    table = sums.table(groups)
    table.attrs["fve"] = {**fve.per_model(), "pooled": fve.pooled()}
    return table


class StatisticsSums:
    """Streams what the statistics are made of, per cell and latent, in float64."""

    def __init__(self, crosscoder: InferenceCrosscoder, cells: Cells) -> None:
        self._places = cells.places
        n_cells = cells.n_groups * cells.n_sources
        zeros = torch.zeros(n_cells, crosscoder.cfg.d_sae, dtype=torch.float64, device=crosscoder.W_dec.device)
        self.n_tokens = zeros.new_zeros(n_cells, dtype=torch.int64)
        self.n_active = torch.zeros_like(zeros, dtype=torch.int64)
        self.score, self.max_score = zeros, zeros.clone()

    def add(self, feature_acts: Float[Tensor, "token d_sae"], cell: Int[Tensor, " token"]) -> None:
        """Add tokens, each to its cell."""
        pairs, values = pairs_of(feature_acts)
        score, place = values.double(), cell[pairs.token] * pairs.d_sae + pairs.latent
        self.n_tokens += counts(cell, len(self.n_tokens))
        self.n_active.view(-1).index_add_(0, place, torch.ones_like(place))
        self.score.view(-1).index_add_(0, place, score)
        self.max_score.view(-1).scatter_reduce_(0, place, score, "amax")

    def table(self, groups: TokenGroups | None) -> pd.DataFrame:
        """The columns of `latent_statistics`, with the numbers of tokens and the L0 of every place in `.attrs`."""
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
        table.attrs.update({"n_tokens": n_tokens, "l0": l0})
        return table

    def _of(self, place: Bool[Tensor, " cell"]) -> dict[str, Float[Tensor, " d_sae"] | Tensor]:
        """The statistics of some cells together, on the CPU."""
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
    """Active template tokens over active tokens but BOS, in the sources that have a template; nan if there are none."""
    n_groups = len(groups.names)
    template = torch.tensor(groups.is_template)
    counted = torch.tensor([name != BOS_GROUP for name in groups.names])
    n_tokens, n_active = sums.n_tokens.cpu().view(-1, n_groups), sums.n_active.cpu().unflatten(0, (-1, n_groups))
    chat = n_active[n_tokens[:, template].sum(dim=1) > 0]
    return chat[:, template].sum(dim=(0, 1)) / chat[:, counted].sum(dim=(0, 1)).double()
