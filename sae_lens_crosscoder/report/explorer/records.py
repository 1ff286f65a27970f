"""The data of an exploration and of one latent, as plain values."""

from collections import Counter
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from sae_lens_crosscoder.analysis.examples.file import Example, ExamplesFile
from sae_lens_crosscoder.analysis.statistics.latent_statistics import LatentStatistics
from sae_lens_crosscoder.analysis.statistics.profiles import ActivationProfiles
from sae_lens_crosscoder.analysis.use.example_codes import ExampleCodes
from sae_lens_crosscoder.analysis.use.result import LatentUse
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.causal.latents.logit_attribution import LogitLens
from sae_lens_crosscoder.report.explorer.token_texts import TokenTexts

Weighted = tuple[str, float]
"""A token's text and a number."""


@dataclass(frozen=True)
class ShownExample:
    """An example with its tokens' texts and the KL between the models after each token."""

    example: Example
    texts: tuple[str, ...]
    kl: tuple[float, ...] | None
    """`KL(p_chat || p_base)` in nats of the next-token prediction after each token."""
    alone: Float[Tensor, "pos model"] | None = None
    """Code of each model alone."""


@dataclass(frozen=True)
class LatentRecord:
    """The data of one latent; parts that were not computed are empty or None."""

    latent: int
    numbers: dict[str, Any]
    """Its row of the latent table."""
    places: dict[str, dict[str, Any]]
    """By token group: `n_active`, `frequency`, `max_score`, `mean_score`, as `latent_statistics` has them."""
    uses: tuple[tuple[float, ...], ...]
    """By model, and token group of `Exploration.use`, the share of tokens on which it is strongly active there."""
    histogram: tuple[int, ...]
    """Tokens by activation, in bins of equal width from 0 to the highest."""
    by_position: tuple[float, ...]
    """The share of active tokens, by band of positions."""
    raises: dict[str, tuple[Weighted, ...]]
    """By model, the tokens whose logits its decoder raises most."""
    lowers: dict[str, tuple[Weighted, ...]]
    b_enc: float
    n_contexts: int
    top: tuple[ShownExample, ...]
    quantiles: tuple[tuple[ShownExample, ...], ...]
    """Examples from bands of its contexts by activation, the weakest band first."""
    twins: tuple[dict[str, Any], ...]
    """`latent`, `cosine`, `divergence`, `isolated`, `n_high`, `n_only_own` and `n_only_twin` of each decoupled pair."""
    effect: dict[str, Any] | None
    """Its row of `latent_effects`."""
    concepts: tuple[dict[str, Any], ...]
    """`concept`, `share` and `auroc` of the known concepts that it carries."""

    @validate_arguments
    def fires_on(self, n: int = 6) -> tuple[str, ...]:
        """List the tokens at its examples' peaks, the most frequent first."""
        shown = [*self.top, *(example for band in reversed(self.quantiles) for example in band)]
        return tuple(text for text, _ in Counter(ex.texts[ex.example.peak] for ex in shown).most_common(n))

    @validate_arguments
    def writes(self, n: int = 6) -> tuple[str, ...]:
        """List the tokens whose logits it raises most, in the model with the longer decoder."""
        models = list(self.raises)
        if not models:
            return ()
        louder = models[0] if self.numbers["delta_norm"] < 0.5 else models[-1]
        return tuple(text for text, _ in self.raises[louder][:n])


@dataclass(frozen=True)
class Exploration:
    """The data of a crosscoder's latents; `exploration[latent]` is the record of one latent.

    Only the table is required. `slc.explore` computes all parts. Parts that are None are not shown.
    """

    table: pd.DataFrame
    """As `diagnose` makes it; additional numeric columns are shown too."""
    manifest: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The manifest of the diagnosis."""
    tokenizer: Any = None
    statistics: LatentStatistics | None = None
    """As `latent_statistics` makes it, with token groups."""
    profiles: ActivationProfiles | None = None
    lenses: Mapping[str, LogitLens] = field(default_factory=dict)
    """The logit lens of each model's decoder, base first."""
    examples: ExamplesFile | None = None
    kl: Float[Tensor, "prompt pos"] | None = None
    """As `kl_between_models` makes it, on the tokens of the examples."""
    twins: pd.DataFrame | None = None
    """As `activation_divergence` makes it."""
    effects: pd.DataFrame | None = None
    """As `latent_effects` makes it, of the latents that are specific to a model."""
    random_effects: Mapping[str, Sequence[float]] = field(default_factory=dict[str, Sequence[float]])
    """The same of random latents, by column."""
    n_conversations: int | None = None
    """Conversations on which the effects were measured."""
    concepts: pd.DataFrame | None = None
    """The table of `analysis.concepts`."""
    use: LatentUse | None = None
    """As `latent_use` makes it."""
    codes: ExampleCodes | None = None
    """Codes of each model alone on the tokens of the examples."""

    def __post_init__(self) -> None:
        n = len(self.table)
        if "delta_norm" not in self.table or "label" not in self.table or n == 0:
            raise ValueError("The table lacks latents, delta_norm or label: pass the whole table of slc.diagnose.")
        sizes: dict[str, Sized | None] = {"statistics": None if self.statistics is None else self.statistics.table}
        sizes |= {"examples": self.examples, "use": None if self.use is None else self.use.latents}
        sizes["profiles"] = None if self.profiles is None else self.profiles.histogram
        sizes |= {f"logit lens of {model}": lens.raised for model, lens in self.lenses.items()}
        for name, part in sizes.items():
            if part is not None and len(part) != n:
                raise ValueError(f"{name}: {len(part)} latents, but the table has {n}. Pass parts of one crosscoder.")

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, latent: int) -> LatentRecord:
        if not 0 <= latent < len(self):
            raise IndexError(f"latent={latent} does not exist: the crosscoder has latents 0 to {len(self) - 1}.")
        examples = None if self.examples is None else self.examples[latent]
        profiles = self.profiles
        return LatentRecord(
            latent=latent,
            numbers={name: column[latent] for name, column in self._columns.items()},
            places=self._places(latent),
            uses=() if self._rates is None else tuple(map(tuple, self._rates[:, :, latent].tolist())),
            histogram=() if profiles is None else tuple(profiles.histogram[latent].tolist()),
            by_position=() if profiles is None else tuple(profiles.by_position[latent].tolist()),
            raises=self._weighted(latent, "raised"),
            lowers=self._weighted(latent, "lowered"),
            b_enc=float("nan") if examples is None else examples.b_enc,
            n_contexts=0 if examples is None else examples.n_contexts,
            top=() if examples is None else self._shown(latent, examples.top),
            quantiles=() if examples is None else tuple(self._shown(latent, band) for band in examples.quantiles),
            twins=tuple(self._twins.get(latent, ())),
            effect=self._effects.get(latent),
            concepts=tuple(self._concepts.get(latent, ())),
        )

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """The token groups of the statistics."""
        names = () if self.statistics is None else self.statistics.n_tokens
        return tuple(name for name in names if name != "all")

    @cached_property
    def use_groups(self) -> tuple[str, ...]:
        """The token groups in which the use of latents is known."""
        return () if self.use is None else tuple(self.use.manifest["groups"])

    @cached_property
    def _rates(self) -> NDArray[np.float64] | None:
        """Rates by model, token group and latent."""
        if self.use is None or not self.use_groups:
            return None
        columns = [f"rate_{name}" for name in self.use.names]
        rates = self.use.by_group[columns].to_numpy().T  # group after group
        return rates.reshape(len(columns), len(self.use_groups), -1)

    @cached_property
    def texts(self) -> TokenTexts:
        """Texts of tokens by their id."""
        return TokenTexts(self.tokenizer)

    @cached_property
    def _columns(self) -> dict[str, list[Any]]:
        return {str(name): self.table[name].tolist() for name in self.table}

    @cached_property
    def _statistics(self) -> list[dict[str, Any]]:
        rows: Any = [] if self.statistics is None else self.statistics.table.to_dict("records")
        return rows

    def _places(self, latent: int) -> dict[str, dict[str, Any]]:
        columns = ("n_active", "frequency", "max_score", "mean_score")
        return {
            group: {column: self._statistics[latent][f"{column}_{group}"] for column in columns}
            for group in self.groups
        }

    def _weighted(self, latent: int, direction: str) -> dict[str, tuple[Weighted, ...]]:
        tokens: dict[str, tuple[Weighted, ...]] = {}
        for model, lens in self.lenses.items():
            ids, values = (getattr(lens, name)[latent].tolist() for name in (direction, f"{direction}_by"))
            tokens[model] = tuple(zip(map(self.texts, ids), values, strict=True))
        return tokens

    def _shown(self, latent: int, examples: Sequence[Example]) -> tuple[ShownExample, ...]:
        return tuple(
            ShownExample(
                example=example,
                texts=tuple(map(self.texts, example.token_ids.tolist())),
                kl=None if self.kl is None else self._kl_of(self.kl, example),
                alone=None if self.codes is None else self.codes.of(latent, example),
            )
            for example in examples
        )

    @staticmethod
    def _kl_of(kl: Float[Tensor, "prompt pos"], example: Example) -> tuple[float, ...]:
        first = example.position - example.peak
        return tuple(kl[example.prompt, first : first + len(example.token_ids)].tolist())

    @cached_property
    def _twins(self) -> dict[int, list[dict[str, Any]]]:
        twins: dict[int, list[dict[str, Any]]] = {}
        for row in [] if self.twins is None else self.twins.to_dict("records"):
            shared = {name: row[name] for name in ("cosine", "divergence", "isolated", "n_high")}
            for own, twin in (("chat", "base"), ("base", "chat")):
                entry = {"latent": int(row[f"{twin}_latent"]), **shared}
                entry |= {"n_only_own": row[f"n_only_{own}"], "n_only_twin": row[f"n_only_{twin}"]}
                twins.setdefault(int(row[f"{own}_latent"]), []).append(entry)
        return twins

    @cached_property
    def _effects(self) -> dict[int, dict[str, Any]]:
        effects: Any = {} if self.effects is None else self.effects.to_dict("index")
        return effects

    @cached_property
    def _concepts(self) -> dict[int, list[dict[str, Any]]]:
        concepts: dict[int, list[dict[str, Any]]] = {}
        for concept, row in ({} if self.concepts is None else self.concepts.to_dict("index")).items():
            if not pd.isna(row["latent"]):
                entry = {"concept": str(concept), "share": row["share"], "auroc": row["auroc"]}
                concepts.setdefault(int(row["latent"]), []).append(entry)
        return concepts
