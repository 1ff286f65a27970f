"""Columns of `latent_use`, from the sums of the swap readout."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens_crosscoder.analysis.use.sums import UseSums
from sae_lens_crosscoder.resampling import bootstrap_counts, quantiles

USE_RATIO = 1.25
"""Ratio up to which two models are said to use a latent equally."""
MIN_ALONE = 0.25
"""A latent whose code in each model alone is a smaller share of the joint code's answers to the models' difference."""
_N_RESAMPLES = 400
_CHUNK = 1024


@dataclass(frozen=True)
class Used:
    """Strong firings of every latent in two models, on the tokens of one place (a token group, or all)."""

    sums: Float[Tensor, "2 shard d_sae"]
    counts: Int[Tensor, "2 d_sae"]
    shard_tokens: Int[Tensor, " shard"]

    def columns(self, names: tuple[str, str]) -> dict[str, Tensor]:
        """Rates, magnitudes and log ratios of the second model to the first.

        Half a firing of the mean magnitude of both models is added to either side of a ratio, so that a latent that
        one model never uses has a large finite one.
        """
        n_tokens, totals = int(self.shard_tokens.sum()), self.sums.sum(dim=1)
        columns = {f"n_strong_{name}": counts for name, counts in zip(names, self.counts, strict=True)}
        for name, counts in zip(names, self.counts, strict=True):
            columns[f"rate_{name}"] = counts.double() / n_tokens
        magnitudes = totals / self.counts
        for name, magnitude in zip(names, magnitudes, strict=True):
            columns[f"magnitude_{name}"] = magnitude
        half = totals.sum(dim=0) / self.counts.sum(dim=0) / 2  # 0 / 0 is nan: never used, so no ratio
        columns["log_use_ratio"] = _log_ratio(totals, half)
        columns["log_use_ratio_low"], columns["log_use_ratio_high"] = self._interval(half)
        columns["log_rate_ratio"] = torch.where(half.isnan(), torch.nan, _log_ratio(self.counts, 0.5))
        columns["log_magnitude_ratio"] = magnitudes[1].log() - magnitudes[0].log()
        return columns

    def _interval(self, half: Float[Tensor, " d_sae"]) -> tuple[Float[Tensor, " d_sae"], Float[Tensor, " d_sae"]]:
        """95 % interval of the log ratio, by a bootstrap over shards with tokens; nan for fewer than two."""
        filled = self.shard_tokens.nonzero().flatten()
        if len(filled) < 2:
            return torch.full_like(half, torch.nan), torch.full_like(half, torch.nan)
        draws = bootstrap_counts(len(filled), _N_RESAMPLES, seed=0).to(half.device)
        bounds: list[Tensor] = []
        for start in range(0, len(half), _CHUNK):
            latents = slice(start, start + _CHUNK)
            resampled = draws @ self.sums[:, filled, latents]
            bounds.append(quantiles(_log_ratio(resampled, half[latents]).T))
        low, high = torch.cat(bounds, dim=-1)
        return low, high


def _log_ratio(pair: Tensor, added: Tensor | float) -> Tensor:
    first, second = pair.double() + added
    return second.log() - first.log()


def use_tables(
    sums: UseSums, names: tuple[str, str], groups: tuple[str, ...], min_active: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables over all tokens and by group, with verdicts that know no chance yet; see `LatentUse`."""
    strong, counts = sums.strong.totals()
    used = Used(strong.sum(dim=1), counts.sum(dim=1), sums.cell_tokens.sum(dim=0))
    joint = sums.joint.sum(dim=0)
    alone = sums.alone.amax(dim=0) / joint
    columns = {"n_active": sums.n_joint.sum(dim=0), **used.columns(names), "alone": alone}
    for name, moved in zip(names, sums.moved.sum(dim=1), strict=True):
        columns[f"moved_by_{name}"] = moved / joint
    columns["readable"] = (alone >= MIN_ALONE) & ~sums.turned()
    latents = _frame(columns)
    latents["use"] = use_verdicts(latents, names, min_active)
    tables = [latents.iloc[:0].assign(group=pd.Series(dtype=object))]
    for g, group in enumerate(groups):
        table = _frame(Used(strong[:, g], counts[:, g], sums.cell_tokens[g]).columns(names))
        table = table.assign(group=group, readable=latents["readable"])
        tables.append(table.assign(use=use_verdicts(table, names, min_active)))
    return latents, tables[0] if len(tables) == 1 else pd.concat(tables[1:])


def judged(table: pd.DataFrame, names: tuple[str, str], min_active: int) -> Bool[np.ndarray, " latent"]:
    """True for readable latents that fire strongly on enough tokens, in one of the models, and have an interval."""
    n_strong = np.maximum(*(table[f"n_strong_{name}"].to_numpy() for name in names))
    has_interval = table["log_use_ratio_low"].notna().to_numpy()
    return (n_strong >= min_active) & table["readable"].to_numpy(dtype=bool) & has_interval


def use_verdicts(table: pd.DataFrame, names: tuple[str, str], min_active: int) -> np.ndarray:
    """Say which of two models uses each latent more.

    `more_in_<name>`: the whole interval of the ratio lies beyond 1.25. `equal`: the whole interval lies within it.
    `undetermined`: neither, or a latent that is not judged.
    """
    limit = np.log(USE_RATIO)
    low, high = table["log_use_ratio_low"].to_numpy(), table["log_use_ratio_high"].to_numpy()
    known = judged(table, names, min_active)
    conditions = [known & (high < -limit), known & (low > limit), known & (low > -limit) & (high < limit)]
    return np.select(conditions, [f"more_in_{names[0]}", f"more_in_{names[1]}", "equal"], "undetermined").astype(object)


def least_change(table: pd.DataFrame) -> Float[np.ndarray, " latent"]:
    """The smallest absolute log ratio in each latent's interval, 0 if the interval contains 0."""
    low, high = table["log_use_ratio_low"].to_numpy(), table["log_use_ratio_high"].to_numpy()
    return np.maximum(np.maximum(low, -high), 0)


def _frame(columns: dict[str, Tensor]) -> pd.DataFrame:
    table = pd.DataFrame({name: column.detach().cpu().numpy() for name, column in columns.items()})
    table.index.name = "latent"
    return table
