"""Everything that the paper says about latents, measured for any crosscoders in one pass over their data."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.analysis.decoupling.decoder_pairs import decoupled_pairs
from sae_lens_crosscoder.analysis.decoupling.divergence import activation_divergence
from sae_lens_crosscoder.analysis.diagnosis.sums import DiagnosisSums
from sae_lens_crosscoder.analysis.inputs import Activations, data_source, shard_block
from sae_lens_crosscoder.analysis.latent_scaling.latent_scaling import LatentScaling
from sae_lens_crosscoder.analysis.latent_scaling.mse_improvement import TargetEnergies, mse_improvement
from sae_lens_crosscoder.analysis.statistics.labelled_tokens import Cells, encoded_with_labels, labelled_batches
from sae_lens_crosscoder.analysis.statistics.latent_statistics import StatisticsSums
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, require_inference
from sae_lens_crosscoder.data.token_groups import TokenGroups
from sae_lens_crosscoder.models.pair import HookedModelPair

MSE_PREFIX = "mse_improvement_"


@dataclass(frozen=True)
class PaperTables:
    """What was measured of one crosscoder."""

    latents: pd.DataFrame
    """The table of `diagnose`, the columns of `latent_statistics`, and those of `mse_improvement` with the prefix
    `mse_improvement_`. `.attrs` hold the manifest, with the numbers of tokens in `n_tokens_per_place`."""
    pairs: pd.DataFrame
    """The `decoupled_pairs`, with the columns of `activation_divergence` where there are any."""


def paper_tables(
    crosscoders: Mapping[str, InferenceCrosscoder],
    pair: HookedModelPair | None = None,
    tokens: Tensor | None = None,
    *,
    keep: Tensor | None = None,
    groups: TokenGroups | None = None,
    sources: Sequence[str] | TokenGroups | None = None,
    activations: Activations | None = None,
    batch_size_prompts: int = 32,
) -> dict[str, PaperTables]:
    """Measure crosscoders of one pair and hook side by side: the models run once for all of them.

    Only pairs of decoupled latents take a second pass, where there are any: their divergence needs the highest scores.
    Factors of Latent Scaling that the MSE check judges are fitted on every second batch, and judged on the others.

    Args:
        crosscoders: inference crosscoders by name.
        pair, tokens, keep, groups, sources, activations: as `latent_statistics` takes them, held out from training;
            activations that can be read more than once.

    Raises:
        ValueError: for no crosscoders, those of different models or hooks, and whatever `latent_statistics` refuses.
    """
    crosscoders = {name: require_inference(each, "paper_tables") for name, each in crosscoders.items()}
    lead = _require_same_data(crosscoders)
    if isinstance(activations, Iterator):
        raise ValueError(
            "These activations can be read only once, but pairs of latents take a second pass: give a tensor, a list "
            "of batches or an ActivationCache."
        )
    source = data_source(lead, pair, tokens, activations, batch_size_prompts, "paper_tables", keep)
    cells = Cells.of(tokens, groups, sources, keep)
    sums = {name: _Sums(each, cells, shard_block(tokens, keep)) for name, each in crosscoders.items()}
    for batch, labels, n_seen in labelled_batches(source, cells.labels, "Measuring"):
        for each in sums.values():
            each.add(batch, labels, n_seen)
    tables: dict[str, PaperTables] = {}
    for name, crosscoder in crosscoders.items():
        latents = sums[name].table(groups)
        pairs = _pairs(crosscoder, latents)
        if len(pairs):
            pairs = activation_divergence(
                crosscoder,
                pairs,
                pair,
                tokens,
                keep=keep,
                groups=groups,
                activations=activations,
                max_activation=latents.max_activation,
                batch_size_prompts=batch_size_prompts,
            )
        tables[name] = PaperTables(latents, pairs)
    return tables


class _Sums:
    """All sums of one crosscoder."""

    def __init__(self, crosscoder: InferenceCrosscoder, cells: Cells, block_size: int) -> None:
        self.crosscoder = crosscoder
        self.diagnosis = DiagnosisSums(crosscoder, block_size)
        self.statistics = StatisticsSums(crosscoder, cells)
        self.fitted, self.judged = LatentScaling(crosscoder, n_shards=1), LatentScaling(crosscoder, n_shards=1)
        self.energies = TargetEnergies(crosscoder)
        self._n_batches = 0

    @torch.no_grad()
    def add(self, batch: Float[Tensor, "_ d_in"], labels: Int[Tensor, " _"], n_seen: int) -> None:
        is_judged = self._n_batches % 2 == 1
        for part, cell in encoded_with_labels(self.crosscoder, batch, labels, n_seen):
            self.diagnosis.add(part)
            self.statistics.add(part.feature_acts, cell)
            (self.judged if is_judged else self.fitted).add(*part)
            if is_judged:
                self.energies.add(part.activations, part.reconstruction)
        self._n_batches += 1

    def table(self, groups: TokenGroups | None) -> pd.DataFrame:
        table = self.diagnosis.table()
        statistics = self.statistics.table(groups)
        improvement = mse_improvement(self.fitted, self.judged, self.energies).add_prefix(MSE_PREFIX)
        attrs = {**table.attrs, "n_tokens_per_place": statistics.attrs["n_tokens"]}
        table = pd.concat([table, statistics, improvement], axis=1)
        table.attrs = attrs
        return table


def _pairs(crosscoder: InferenceCrosscoder, latents: pd.DataFrame) -> pd.DataFrame:
    if not (crosscoder.layout.same_width and crosscoder.layout.n_models == 2):  # whose decoders have no cosine
        return pd.DataFrame({name: [] for name in ("chat_latent", "base_latent", "cosine", "isolated")})
    return decoupled_pairs(crosscoder, latents)


def _require_same_data(crosscoders: Mapping[str, InferenceCrosscoder]) -> InferenceCrosscoder:
    """The first crosscoder, or a ValueError unless one stream of activations serves all."""
    if not crosscoders:
        raise ValueError("There are no crosscoders to measure: give at least one, by name.")
    seen: dict[tuple[str | None, ...], str] = {}
    for name, crosscoder in crosscoders.items():
        metadata = crosscoder.cfg.metadata
        seen.setdefault((metadata.model_name, metadata.chat_model_name, metadata.hook_name), name)
    if len(seen) > 1:
        said = "; ".join(f"{name!r} is of {', '.join(map(str, of))}" for of, name in seen.items())
        raise ValueError(f"Crosscoders side by side must read one pair at one hook: {said}. Report on them one by one.")
    return next(iter(crosscoders.values()))
