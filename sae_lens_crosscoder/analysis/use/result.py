"""LatentUse: the use of every latent by two models, with the evidence."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from sae_lens_crosscoder.analysis.diagnosis.null_runs import discovery_rates, jitter_caveat, validate_trained_alike
from sae_lens_crosscoder.analysis.diagnosis.verdict import Q_LIMIT
from sae_lens_crosscoder.analysis.tables.parquet import load_tables, save_tables
from sae_lens_crosscoder.analysis.use.table import USE_RATIO, judged, least_change
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.folder import CROSSCODER_SHA256
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder

_COLUMNS = ("use", "log_use_ratio", "log_use_ratio_low", "log_use_ratio_high", "q_use")
USE_FILENAME = "latent_use.parquet"
_FILES = {"latents": USE_FILENAME, "by_group": "latent_use_by_group.parquet"}


@dataclass(frozen=True)
class LatentUse:
    """Rates and magnitudes with which two models use every latent of a crosscoder.

    `str(use)` is the conclusion.
    """

    latents: pd.DataFrame
    """One row per latent: see `latent_use`."""
    by_group: pd.DataFrame
    """One row per latent and token group (`group`), with the same columns, but for those of the joint code and q."""
    manifest: dict[str, Any]
    """Versions, the two models' names (`use_of`), hook, number of tokens, null runs."""

    @property
    def names(self) -> tuple[str, str]:
        """Names of the two models; ratios are those of the second to the first."""
        first, second = self.manifest["use_of"]
        return first, second

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that a diagnosis takes over."""
        kinds = ("rate", "magnitude", "moved_by")
        return (*_COLUMNS, *(f"{kind}_{name}" for kind in kinds for name in self.names))

    @property
    def n_changed(self) -> int:
        """Number of latents that one model uses more."""
        return int(self.latents["use"].str.startswith("more_in").sum())

    @property
    def conclusion(self) -> str:
        """One sentence on the pair of models.

        "No difference in use detected" needs judged latents, of which none is used more by one model.
        """
        first, second = self.names
        n_judged = int((self.latents["use"] != "undetermined").sum())
        n_first, n_second = (int((self.latents["use"] == f"more_in_{name}").sum()) for name in (first, second))
        n_nulls = self.manifest["n_null_runs"]
        runs = f"{n_nulls} null {'run' if n_nulls == 1 else 'runs'}"
        if (n_kinds := len(self.manifest.get("null_kinds", ()))) > 1:
            runs += f" of {n_kinds} kinds"
        if caveat := jitter_caveat(self.manifest.get("null_kinds", ())):
            runs += f" {caveat}"
        chance = f"q < {Q_LIMIT:g} against {runs}" if n_nulls else "chance not accounted for: no null runs were given"
        if n_judged == 0:
            return (
                f"undecided: the use of no latent could be judged on {self.manifest['n_tokens']:,} tokens; read more "
                "tokens, or train longer"
            )
        if n_first + n_second == 0:
            return f"no difference in use detected: all {n_judged:,} judged latents are used equally ({chance})"
        return (
            f"{n_first + n_second:,} of {n_judged:,} judged latents are used differently, by a factor above "
            f"{USE_RATIO:g}: {n_second:,} more by {second} and {n_first:,} more by {first} ({chance})"
        )

    def __str__(self) -> str:
        return self.conclusion

    def validate_read_from(self, weights: str) -> None:
        """Raise a ValueError if this was read from a crosscoder with another checksum of its weights."""
        if self.manifest[CROSSCODER_SHA256] != weights:
            raise ValueError(
                "`use` belongs to another crosscoder than the one to diagnose: to other weights, or to these in "
                "another precision. Call latent_use(crosscoder, data) for this one."
            )

    @validate_arguments
    def save(self, folder: str | Path) -> Path:
        """Save the tables as Parquet files in a folder, such as the crosscoder's."""
        return save_tables({file: getattr(self, name) for name, file in _FILES.items()}, self.manifest, folder)

    @classmethod
    @validate_arguments
    def load(cls, folder: str | Path) -> "LatentUse":
        """Load what `save` wrote.

        Raises:
            ValueError: for a folder without the tables, or tables that are damaged or belong to different runs.
        """
        tables, manifest = load_tables(folder, _FILES, "latent_use(...)")
        return cls(manifest=manifest, **tables)


def validate_null_uses(
    null: LatentUse | Sequence[LatentUse] | None, crosscoder: InferenceCrosscoder
) -> Sequence[LatentUse]:
    """Null runs as a sequence; a ValueError for one that was trained differently than the crosscoder."""
    nulls = [] if null is None else [null] if isinstance(null, LatentUse) else list(null)
    for run in nulls:
        if not isinstance(run, LatentUse):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"null contains a {type(run).__name__}, expected results of latent_use on null pairs.")
        validate_trained_alike(run.manifest, len(run.latents), crosscoder)
    return nulls


def use_q_values(
    table: pd.DataFrame, names: tuple[str, str], nulls: Sequence[LatentUse], min_active: int
) -> Float[np.ndarray, " d_sae"]:
    """False discovery rate of the latents whose use changed at least as much as each latent's; see `q_values`.

    How much it changed is the smallest log ratio in its interval. nan for latents that are not judged.
    """
    chance = [least_change(null.latents[judged(null.latents, null.names, min_active)]) for null in nulls]
    by_chance = np.concatenate(chance)
    if len(by_chance) == 0:
        raise ValueError(
            f"No latent of the null runs fires strongly on {min_active} tokens, so they give no q-values. Read them on "
            "more tokens, or train them longer."
        )
    is_judged = judged(table, names, min_active)
    q = np.full(len(table), np.nan)
    q[is_judged] = discovery_rates(least_change(table[is_judged]), by_chance)
    return q
