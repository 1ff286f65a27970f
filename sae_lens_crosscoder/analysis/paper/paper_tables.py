"""The paper's measurements of latents, for any crosscoders, in one pass over their data."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from sae_lens_crosscoder.activations.eval_data import EvalData
from sae_lens_crosscoder.analysis.decoupling.decoder_pairs import decoupled_pairs
from sae_lens_crosscoder.analysis.decoupling.divergence import activation_divergence
from sae_lens_crosscoder.analysis.diagnosis.diagnosis import Diagnosis
from sae_lens_crosscoder.analysis.diagnosis.sums import DiagnosisSums
from sae_lens_crosscoder.analysis.encoding import encoded, of_compared
from sae_lens_crosscoder.analysis.inputs import BATCH_TOKENS, data_source, shard_block
from sae_lens_crosscoder.analysis.latent_scaling.background_groups import BackgroundGroups
from sae_lens_crosscoder.analysis.latent_scaling.latent_scaling import LatentScaling
from sae_lens_crosscoder.analysis.latent_scaling.mse_improvement import TargetEnergies, mse_improvement
from sae_lens_crosscoder.analysis.statistics.labelled_tokens import (
    Cells,
    LabelledBatch,
    encoded_with_labels,
    labelled_batches,
)
from sae_lens_crosscoder.analysis.statistics.latent_statistics import StatisticsSums
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.compared import ComparedSources, compared_of
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, validate_inference
from sae_lens_crosscoder.data.token_groups import TokenGroups

MSE_PREFIX = "mse_improvement_"


@dataclass(frozen=True)
class PaperTables:
    """Measurements of one crosscoder."""

    diagnosis: Diagnosis
    """Its `latents` also have the columns of `latent_statistics`, and those of `mse_improvement` with the prefix
    `mse_improvement_`; its manifest has the tokens of each place in `n_tokens_per_place`."""
    pairs: pd.DataFrame
    """The `decoupled_pairs`, with the columns of `activation_divergence` if there are any."""

    @property
    def latents(self) -> pd.DataFrame:
        """One row per latent."""
        return self.diagnosis.latents

    @property
    def manifest(self) -> dict[str, Any]:
        """Manifest of the diagnosis."""
        return self.diagnosis.manifest


@validate_arguments
def paper_tables(
    crosscoders: Mapping[str, InferenceCrosscoder], data: EvalData, *, models: Sequence[str] | None = None
) -> dict[str, PaperTables]:
    """Measure crosscoders of one pair and hook side by side: the models run once for all of them.

    Only pairs of decoupled latents, if there are any, take a second pass: their divergence needs the highest scores.
    Factors of Latent Scaling that the MSE check evaluates are fitted on every second batch, and evaluated on the rest.

    Args:
        crosscoders: inference crosscoders by name.
        data: held-out data, with `groups` and `sources` if known; activations that can be read more than once.
        models: names of the two models to compare, as in `diagnose`; needed for more than two.

    Raises:
        ValueError: for no crosscoders, those of different models or hooks, and in the cases of `latent_statistics`.
    """
    crosscoders = {name: validate_inference(crosscoder, "paper_tables") for name, crosscoder in crosscoders.items()}
    compared = {name: compared_of(crosscoder, models, "paper_tables") for name, crosscoder in crosscoders.items()}
    lead = _validate_same_data(crosscoders)
    if isinstance(data.activations, Iterator):
        raise ValueError(
            "These activations can be read only once, but pairs of latents take a second pass. Pass a tensor, a list "
            "of batches or an ActivationCache."
        )
    source, cells = data_source(lead, data), Cells.of(data)
    background, block = BackgroundGroups.of(data), shard_block(data)
    sums = {
        name: _Sums(crosscoder, cells, block, background, compared[name]) for name, crosscoder in crosscoders.items()
    }
    for batch in labelled_batches(source, cells.labels, "Measuring"):
        for accumulator in sums.values():
            accumulator.add(batch)
    tables: dict[str, PaperTables] = {}
    for name, crosscoder in crosscoders.items():
        diagnosis = sums[name].diagnosis(data.groups, source.manifest())
        pairs = _pairs(sums[name].of_two, diagnosis.latents)
        if len(pairs):
            highest = diagnosis.latents.max_activation
            pairs = activation_divergence(crosscoder, data, pairs, max_activation=highest)
        tables[name] = PaperTables(diagnosis, pairs)
    return tables


class _Sums:
    """Accumulators of one crosscoder."""

    def __init__(
        self,
        crosscoder: InferenceCrosscoder,
        cells: Cells,
        block_size: int,
        background: BackgroundGroups,
        compared: ComparedSources | None,
    ) -> None:
        self.crosscoder, self._compared = crosscoder, compared
        self.of_two = crosscoder if compared is None else compared.crosscoder
        self._diagnosis = DiagnosisSums(crosscoder, block_size, background, compared=compared)
        self.statistics = StatisticsSums(crosscoder, cells)
        self.fitted, self.evaluated = (LatentScaling(self.of_two, n_shards=1) for _ in range(2))
        self.energies = TargetEnergies(self.of_two)
        self._n_batches = 0

    @torch.no_grad()
    def add(self, batch: LabelledBatch) -> None:
        is_evaluated = self._n_batches % 2 == 1
        for part in encoded(self.crosscoder, batch.left_out, batch.n_seen):
            self._diagnosis.add_left_out(part)
        parts = encoded_with_labels(self.crosscoder, batch.activations, batch.labels, batch.n_seen)
        for (part, cell), place in zip(parts, batch.places.split(BATCH_TOKENS), strict=False):
            self._diagnosis.add(part, place)
            self.statistics.add(part, cell)
            of_two = of_compared(part, self.crosscoder, self._compared)
            (self.evaluated if is_evaluated else self.fitted).add(*of_two)
            if is_evaluated:
                self.energies.add(of_two.activations, of_two.reconstruction)
        self._n_batches += 1

    def diagnosis(self, groups: TokenGroups | None, dominant: Mapping[str, Any]) -> Diagnosis:
        diagnosis, statistics = self._diagnosis.diagnosis(dominant), self.statistics.statistics(groups)
        improvement = mse_improvement(self.fitted, self.evaluated, self.energies).add_prefix(MSE_PREFIX)
        latents = pd.concat([diagnosis.latents, statistics.table, improvement], axis=1)
        return Diagnosis(latents, {**diagnosis.manifest, "n_tokens_per_place": statistics.n_tokens})


def _pairs(crosscoder: InferenceCrosscoder, latents: pd.DataFrame) -> pd.DataFrame:
    if not (crosscoder.layout.same_width and crosscoder.layout.is_pair):  # whose decoders have no cosine
        return pd.DataFrame({name: [] for name in ("chat_latent", "base_latent", "cosine", "isolated")})
    return decoupled_pairs(crosscoder, latents)


def _validate_same_data(crosscoders: Mapping[str, InferenceCrosscoder]) -> InferenceCrosscoder:
    """Return the first crosscoder; raise a ValueError unless all read the same activations."""
    if not crosscoders:
        raise ValueError("`crosscoders` is empty. Pass at least one crosscoder, by name.")
    seen: dict[tuple[str | None, ...], str] = {}
    for name, crosscoder in crosscoders.items():
        seen.setdefault((*crosscoder.model_names, crosscoder.cfg.metadata.hook_name), name)
    if len(seen) > 1:
        listed = "; ".join(f"{name!r} reads {', '.join(map(str, place))}" for place, name in seen.items())
        raise ValueError(f"Crosscoders side by side must read one pair at one hook: {listed}. Measure them one by one.")
    return next(iter(crosscoders.values()))
