"""Changed: the latents that carry what fine-tuning changed, with the evidence for each."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sae_lens_crosscoder.analysis.tables.parquet import load_tables, save_tables
from sae_lens_crosscoder.crosscoders.folder import CROSSCODER_SHA256

TURNED = "turned"
CHANGED_COLUMNS = ("class", "q_rho", "written", "q_written", "named")
"""Columns that a diagnosis takes over."""
LEAST_COVERAGE = 0.5
"""Share of a changed contrast that latents must write before "no difference detected" may be said of them."""
_FILES = {"latents": "changed.parquet", "effects": "changed_effects.parquet", "contrasts": "changed_contrasts.parquet"}
_INDEX = {"latents": "latent", "effects": "latent", "contrasts": "contrast"}


@dataclass(frozen=True)
class Changed:
    """Turned latents, and those among them that carry contrasts that fine-tuning changed.

    `str(changed)` is the conclusion.
    """

    latents: pd.DataFrame
    """One row per latent. `class` is `turned` if q_rho is at most 0.05, or the class of Delta_norm, which one-sided
    latents keep. `rho` is how far its decoders differ (0 equal, 1 one-sided), `q_rho` the false discovery rate against
    decoys. `written` is the energy of the difference that it writes on positive prompts less that on negative ones,
    relative to the base model's, summed over the contrasts that passed the gate. `q_written` is the least q over these,
    times the number of contrasts. `named`: both q are at most 0.05."""
    effects: pd.DataFrame
    """One row per contrast and latent: `written` and its `q_written` (corrected for the number of contrasts), `u`, its
    part along the mean contrast, with its standard error, and on held-out prompts `share`, `auroc` in the direction
    `direction`, `on_positive`, `on_negative`."""
    contrasts: pd.DataFrame
    """One row per contrast. `ratio` is how much of it fine-tuning changed (relative to the base model's, in units of
    the median difference), `ratio_of_controls` the largest of splits that do not matter, `p_gate` its rank, `gate`
    whether it passed; on held-out prompts `coverage` (share of all latents), `share_named`, `share_of_biases`,
    `best_auroc` of the named latents."""
    manifest: dict[str, Any]
    """Versions, models, hook, decoys, size of the difference."""

    @property
    def named(self) -> list[int]:
        """Named latents, the one that writes most first."""
        rows = self.latents[self.latents["named"]].sort_values("written", ascending=False, kind="stable")
        return [int(latent) for latent in rows.index]

    @property
    def n_turned(self) -> int:
        """Number of latents whose rho stands out from the decoys', whether turned or one-sided."""
        return int((self.latents["q_rho"] <= self.manifest["q_limit"]).sum())

    @property
    def conclusion(self) -> str:
        """One sentence on what fine-tuning changed, with its conditions.

        "No difference detected" needs that no contrast changed more than splits that do not matter, or that no latent
        turned more than in decoy pairs although the crosscoder writes most of what did change.
        """
        n_decoys, limit = self.manifest["n_decoys"], self.manifest["q_limit"]
        conditions = (
            f"q < {limit:g} against {n_decoys} decoy {'pair' if n_decoys == 1 else 'pairs'} whose difference is "
            f"{self.manifest['size']:.3f} of the norm"
        )
        return f"{self._said()} ({conditions})"

    def _said(self) -> str:
        passed = self.contrasts[self.contrasts["gate"]]
        if self.named:
            shares = [f"{row.share_named:.2f} of {name!r}" for name, row in passed.iterrows()]
            n_named = len(self.named)
            return (
                f"{n_named:,} of {self.n_turned:,} turned latents {'carries' if n_named == 1 else 'carry'} what "
                f"fine-tuning changed, on held-out prompts {' and '.join(shares)}"
            )
        if len(passed) == 0:
            gates = [f"{name!r} {row.ratio:.2g} times, p {row.p_gate:.2f}" for name, row in self.contrasts.iterrows()]
            these = "this contrast" if len(gates) == 1 else "these contrasts"
            return (
                f"no difference detected along {these}: fine-tuning changes other splits of the prompts as much, or "
                f"all activations half as much ({'; '.join(gates)}); {self.n_turned:,} latents turned"
            )
        if self.n_turned == 0 and bool((passed["coverage"] >= LEAST_COVERAGE).all()):
            changes = [
                f"{name!r} {row.ratio:.2g} times as much as activations in general ({row.coverage:.2f} by latents)"
                for name, row in passed.iterrows()
            ]
            return (
                f"no difference detected: fine-tuning changes {' and '.join(changes)}, but no latent turned more than "
                "in pairs changed without an aim"
            )
        names = ", ".join(repr(name) for name in passed.index)
        return (
            f"undecided: fine-tuning changed {names} more than other splits of the prompts, but no latent carries it; "
            "train longer, with more latents, or draw decision rows more often"
        )

    def __str__(self) -> str:
        return self.conclusion

    def validate_read_from(self, weights: str) -> None:
        """Raise a ValueError if this was read from a crosscoder with another checksum of its weights."""
        if self.manifest[CROSSCODER_SHA256] != weights:
            raise ValueError(
                "`changed` belongs to another crosscoder than the one to diagnose: to other weights, or to these in "
                "another precision. Call changed(crosscoder, ...) for this one."
            )

    def save(self, folder: str | Path) -> Path:
        """Save the tables as Parquet files in a folder, such as the crosscoder's."""
        return save_tables({file: getattr(self, name) for name, file in _FILES.items()}, self.manifest, folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Changed":
        """Load what `save` wrote.

        Raises:
            ValueError: for a folder without the tables, or tables that are damaged or belong to different runs.
        """
        tables, manifest = load_tables(folder, _FILES, "changed(...)")
        return cls(manifest=manifest, **{name: table.rename_axis(_INDEX[name]) for name, table in tables.items()})
