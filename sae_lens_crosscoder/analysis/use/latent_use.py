"""latent_use: which latents two models use differently."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.activations.eval_data import EvalData
from sae_lens_crosscoder.analysis.diagnosis.manifest import provenance
from sae_lens_crosscoder.analysis.diagnosis.null_runs import largest_over_kinds, null_kinds
from sae_lens_crosscoder.analysis.diagnosis.verdict import MIN_ACTIVE, Q_LIMIT
from sae_lens_crosscoder.analysis.encoding import codes
from sae_lens_crosscoder.analysis.inputs import BATCH_TOKENS, DataSource, data_source, shard_block
from sae_lens_crosscoder.analysis.statistics.labelled_tokens import Cells
from sae_lens_crosscoder.analysis.use.result import LatentUse, use_q_values, validate_null_uses
from sae_lens_crosscoder.analysis.use.sums import UseCodes, UseSums
from sae_lens_crosscoder.analysis.use.table import use_tables
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.compared import source_places, validate_named
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, validate_inference
from sae_lens_crosscoder.crosscoders.swap_readout import SwapReadout
from sae_lens_crosscoder.data.token_groups import TokenGroups
from sae_lens_crosscoder.storage.accumulators import AccumulatorCheckpoint
from sae_lens_crosscoder.storage.checksums import fingerprint, named_fingerprint

MEAN_TOKENS = 8192
"""Tokens at the start of the data that mean activations are measured on."""
_MIN_MEAN_TOKENS = 100


@validate_arguments
def latent_use(
    crosscoder: InferenceCrosscoder,
    data: EvalData,
    *,
    groups: TokenGroups | None = None,
    models: Sequence[str] | None = None,
    null: LatentUse | Sequence[LatentUse] | None = None,
    min_active: int = MIN_ACTIVE,
    checkpoint_path: str | Path | None = None,
) -> LatentUse:
    """Compare how often and how strongly two models use every latent, by a swap readout (after arXiv 2609.35210).

    The joint code cannot say which model uses a latent. So each model is read alone: its activation, with the slot's
    mean in place of its own, stands in every slot of the encoder, in the slot's units. Such a code also fires weakly
    on interference, so only strong firings count: those of at least 0.8 times the mean firing, weighted by energy.
    Means are those of the first 8192 tokens.

    Args:
        crosscoder: an inference crosscoder of models of equal width, of any architecture.
        data: held-out data. Tokens that dominate are left out; see `EvalData.max_norm_ratio`.
        groups: group of each token, for the table by group; by default those of the data.
        models: names of the two models to compare, as in `diagnose`; needed for more than two.
        null: results on null runs, which give q-values: crosscoders trained in the same way on pairs that do not
            differ; see `diagnose`. Of several kinds of null pairs, the largest q counts.
        min_active: latents with fewer strong firings in either model are `undetermined`.
        checkpoint_path: file in which the sums are saved every minute. An interrupted readout resumes from it, to the
            same result. It is removed at the end.

    Returns:
        The result. Its `latents` have one row per latent. `rate_<model>` is the share of tokens with a strong firing
        of the model alone, `magnitude_<model>` the mean code there. `log_use_ratio` is the log of the summed codes'
        ratio, second model to first, with a 95 % interval (`_low`, `_high`) by a bootstrap over blocks of tokens;
        `log_rate_ratio` and `log_magnitude_ratio` are its parts. `use` is `more_in_<model>` if the interval lies
        beyond a ratio of 1.25 and `q_use` is below 0.1 (or there are no null runs), `equal` if it lies within, else
        `undetermined`. `q_use` is the false discovery rate of latents that changed as much. `alone` is the larger code
        of one model alone over the joint code (sums). A latent is `readable` if that is at least 0.25 (else neither
        model drives it, but their difference does, as it does many one-sided latents) and its decoders point the same
        way (cosine at least 0.8, unless it is one-sided); the use of others is `undetermined`.
        `moved_by_<model>`, the readout's identifiable companion, is how far the joint code moves when that model's
        activation is replaced by its mean in the token's group, over the joint code: 0 if the latent does not read
        that model. n_active counts the joint code. `by_group` has the same by token group.

    Raises:
        ValueError: for a training crosscoder, models of different widths, a pair the crosscoder was not trained on, a
            null run that was trained differently, groups that do not fit the tokens, or no data.
    """
    crosscoder = validate_inference(crosscoder, "latent_use")
    places = _validate_models(crosscoder, models)
    names = (crosscoder.layout.names[places[0]], crosscoder.layout.names[places[1]])
    nulls = validate_null_uses(null, crosscoder)
    reading = _Reading.of(crosscoder, data, groups)
    source, cells = reading.source, reading.cells
    sums = reading.sums_of(places)
    checkpoint = None
    if checkpoint_path is not None:
        options = f"block_size={reading.block_size}, models={names}, groups={cells.fingerprint()}"
        origin = {"crosscoder": named_fingerprint(crosscoder.state_dict()), "data source": source.fingerprint()}
        parts = {"sums": sums, "strong": sums.strong, "source": source}
        checkpoint = AccumulatorCheckpoint(checkpoint_path, "use", parts, {**origin, "set of options": options})
    reading.stream([sums], checkpoint)
    use = reading.use(sums, nulls, min_active)
    if checkpoint is not None:
        checkpoint.remove()
    return use


@validate_arguments
def latent_uses(
    crosscoder: InferenceCrosscoder,
    data: EvalData,
    *,
    groups: TokenGroups | None = None,
    min_active: int = MIN_ACTIVE,
) -> dict[str, LatentUse]:
    """Compare how every model uses the latents with how the first does, in one pass over the data.

    The results are those of `latent_use` for the first model and each other one. Every model is read once, and not
    once for each comparison.

    Args:
        crosscoder: an inference crosscoder of two or more models of equal width.
        data: held-out data.
        groups: group of each token, for the table by group; by default those of the data.
        min_active: as in `latent_use`.

    Returns:
        The results by the name of the second model, in `crosscoder.layout.names`.

    Raises:
        ValueError: for a crosscoder of one model, or as `latent_use`.
    """
    crosscoder = validate_inference(crosscoder, "latent_uses")
    first, *others = crosscoder.layout.names
    compared = {name: _validate_models(crosscoder, (first, name)) for name in others}
    if not compared:
        raise ValueError("latent_uses compares models, but this crosscoder reads one. Pass one of two or more models.")
    reading = _Reading.of(crosscoder, data, groups)
    sums = {name: reading.sums_of(places) for name, places in compared.items()}
    reading.stream(list(sums.values()), None)
    return {name: reading.use(each, (), min_active) for name, each in sums.items()}


@dataclass(frozen=True)
class _Reading:
    """A crosscoder and the data that it is read on."""

    crosscoder: InferenceCrosscoder
    source: DataSource
    cells: "_CellsOfTokens"
    group_names: tuple[str, ...]
    block_size: int

    @classmethod
    def of(cls, crosscoder: InferenceCrosscoder, data: EvalData, groups: TokenGroups | None) -> "_Reading":
        data = data if groups is None else data.with_groups(groups, data.sources)
        labels, group_names = Cells.of(data, by_source=False).labels, () if data.groups is None else data.groups.names
        source = data_source(crosscoder, data)
        cells = _CellsOfTokens(labels, len(group_names))
        cells.validate_count(source.n_tokens)
        return cls(crosscoder, source, cells, group_names, shard_block(data))

    def sums_of(self, places: tuple[int, int]) -> UseSums:
        return UseSums(self.crosscoder, places, self.cells.n_cells, self.block_size)

    @torch.no_grad()
    def stream(self, sums: Sequence[UseSums], checkpoint: AccumulatorCheckpoint | None) -> None:
        """Add all tokens, or those that are not in the checkpoint."""
        source, lead = self.source, sums[0]
        n_skipped = 0 if checkpoint is None else checkpoint.resume()
        if n_skipped == 0:
            _measure_means(source, lead, self.cells)
        models = sorted({place for each in sums for place in each.models})
        readout = SwapReadout(self.crosscoder, lead.means, lead.mean_code, models)
        seen = source.dominant.n_tokens
        with tqdm(total=source.n_tokens, initial=seen, desc="Use", unit="token", unit_scale=True, leave=False) as bar:
            for n_batches, batch in enumerate(source.batches(n_skipped), start=n_skipped + 1):
                places = torch.arange(seen, seen + len(batch.activations))[batch.ordinary.cpu()].split(BATCH_TOKENS)
                seen += len(batch.activations)
                parts = codes(self.crosscoder, batch.used, lead.n_tokens)
                for part, place in zip(parts, places, strict=False):
                    cells = self.cells.at(place).to(part.activations.device)
                    read = UseCodes.read(readout, models, part, cells)
                    for each in sums:
                        each.add(read, cells)
                bar.update(len(batch.activations))
                if checkpoint is not None:
                    checkpoint.save_if_due(n_batches)

    def use(self, sums: UseSums, nulls: Sequence[LatentUse], min_active: int) -> LatentUse:
        """The result of all tokens, with q-values from null runs."""
        if sums.n_tokens == 0:
            raise ValueError(
                "No tokens to read: the data is empty, its mask leaves out every token, or all of them dominate (see "
                "EvalData.max_norm_ratio)."
            )
        first, second = (self.crosscoder.layout.names[place] for place in sums.models)
        names = (first, second)
        latents, by_group = use_tables(sums, names, self.group_names, min_active)
        latents["q_use"] = float("nan")
        if nulls:
            latents["q_use"] = largest_over_kinds(nulls, lambda runs: use_q_values(latents, names, runs, min_active))
        latents.loc[latents["use"].str.startswith("more_in") & (latents["q_use"] >= Q_LIMIT), "use"] = "undetermined"
        manifest = {
            **provenance(self.crosscoder),
            "use_of": list(names),
            "n_tokens": sums.n_tokens,
            "min_active": min_active,
            "n_null_runs": len(nulls),
            "null_kinds": null_kinds(nulls),
            "groups": list(self.group_names),
            **self.source.manifest(),
        }
        return LatentUse(latents, by_group, manifest)


class _CellsOfTokens:
    """The cell of every token in the order of the stream: its group, or the last cell for tokens of none."""

    def __init__(self, labels: Int[Tensor, " token"] | None, n_groups: int) -> None:
        self._cells = None if labels is None else torch.where(labels < 0, n_groups, labels)
        self.n_cells = n_groups + 1

    def fingerprint(self) -> str:
        return fingerprint([] if self._cells is None else [self._cells])

    def validate_count(self, n_tokens: int | None) -> None:
        if n_tokens is not None and self._cells is not None and len(self._cells) != n_tokens:
            raise ValueError(f"Got {len(self._cells)} labels of groups for {n_tokens} tokens. Pass one per token.")

    def at(self, places: Int[Tensor, " _"]) -> Int[Tensor, " _"]:
        if self._cells is None:
            return torch.zeros_like(places)
        if len(places) and int(places.max()) >= len(self._cells):
            raise ValueError(f"Got {len(self._cells)} labels of groups for more tokens. Pass one per token.")
        return self._cells[places]


def _measure_means(source: DataSource, sums: UseSums, cells: _CellsOfTokens) -> None:
    first = source.first(MEAN_TOKENS)
    if not first:
        return
    ordinary = torch.cat([batch.ordinary.cpu() for batch in first]).nonzero().flatten()
    sums.measure_means(torch.cat([batch.used for batch in first]), cells.at(ordinary), _MIN_MEAN_TOKENS)


def _validate_models(crosscoder: InferenceCrosscoder, models: Sequence[str] | None) -> tuple[int, int]:
    """Places of the two models to compare."""
    layout = crosscoder.layout
    if not layout.same_width:
        raise ValueError(
            f"The models of the crosscoder have widths {layout.d_models}, so none can be read in the slot of another. "
            "latent_use needs models of equal width."
        )
    if models is None:
        validate_named(crosscoder, "latent_use")
    return source_places(crosscoder, layout.names if models is None else models)
