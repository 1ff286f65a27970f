"""Describe a latent's numbers, and rank them among those of all latents."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from sae_lens_crosscoder.analysis.diagnosis.verdict import judging_nu, nu_kind_of
from sae_lens_crosscoder.report.explorer.records import LatentRecord
from sae_lens_crosscoder.report.html.cells import MISSING, rounded


class Fact(NamedTuple):
    """A titled number of one latent."""

    title: str
    value: str
    percentile: float | None
    """The share of live latents below it, ties counting half; None if a rank has no meaning."""


_WRITES = {"cos_sim": ("decoder cosine", 3), "enc_cos_sim": ("encoder cosine", 3)}
_FIRES = {
    "n_active": ("active tokens", 0),
    "frequency": ("share of tokens", 4),
    "max_activation": ("highest activation", 2),
    "mean_activation": ("mean activation where active", 2),
    "frac_template": ("template share", 2),
}


def facts_about(record: LatentRecord, table: pd.DataFrame) -> dict[str, list[Fact]]:
    """List the facts about a latent by heading, without those that are unknown or undefined for it."""
    models = [name.removeprefix("dec_norm_") for name in record.numbers if name.startswith("dec_norm_")]
    norms = {f"{c[:3]}_norm_{name}": (f"{c} norm, {name}", 3) for c in ("decoder", "encoder") for name in models}
    contexts = [Fact("contexts", f"{record.n_contexts:,}", None)] if record.n_contexts else []
    facts = {
        "Where it writes": list(_numbers(record, table, {**_delta_norm(record), **_WRITES, **norms})),
        "Is it genuine": list(_genuine(record, table)),
        "When it fires": [*_numbers(record, table, _FIRES), *contexts, *_places(record)],
        "Twins": list(_twins(record)),
        "What it causes, in nats per token": list(_effect(record)),
    }
    return {heading: entries for heading, entries in facts.items() if entries}


def percentile(table: pd.DataFrame, column: str, value: float) -> float:
    """Compute the share of live latents below a value, ties counting half.

    >>> percentile(pd.DataFrame({"x": [1.0, 2.0, 2.0, 9.0], "dead": [False, False, False, True]}), "x", 2.0)
    0.6666666666666666
    """
    values = table[column].to_numpy(dtype=float)
    live = np.isfinite(values)
    if "dead" in table:
        live &= ~table["dead"].to_numpy(dtype=bool)
    return float(((values[live] < value).mean() + (values[live] <= value).mean()) / 2)


def _delta_norm(record: LatentRecord) -> dict[str, tuple[str, int]]:
    is_exclusive = record.numbers.get("exclusive", False)
    return {"delta_norm": ("Delta_norm, by construction" if is_exclusive else "Delta_norm", 3)}


def _numbers(record: LatentRecord, table: pd.DataFrame, titles: dict[str, tuple[str, int]]) -> Iterator[Fact]:
    for column, (title, decimals) in titles.items():
        value: Any = record.numbers.get(column)
        if _is_defined(value):
            shown = f"{value:,}" if isinstance(value, int) else rounded(value, decimals)
            has_rank = math.isfinite(value) and not record.numbers.get("dead", False)
            yield Fact(title, shown, percentile(table, column, float(value)) if has_rank else None)


def _genuine(record: LatentRecord, table: pd.DataFrame) -> Iterator[Fact]:
    """List the nu with their intervals; for base-only latents, those of the base decoder as probe."""
    numbers = record.numbers
    for column in judging_nu(nu_kind_of(table), numbers["label"]):
        value, low, high = (numbers.get(f"{column}{end}") for end in ("", "_low", "_high"))
        if _is_defined(value):
            interval = f" [{rounded(low)}, {rounded(high)}]" if _is_defined(low) and _is_defined(high) else ""
            yield Fact(column.removesuffix("_base_probe"), rounded(value) + interval, None)
    rest = {"nu_free": ("nu_free", 2), "angle_degrees": ("angle of free directions", 0), "q_value": ("q value", 3)}
    yield from _numbers(record, table, rest)


def _places(record: LatentRecord) -> Iterator[Fact]:
    for group, place in record.places.items():
        if _is_defined(place["frequency"]):
            yield Fact(f"share of {group} tokens", rounded(place["frequency"], 4), None)


def _twins(record: LatentRecord) -> Iterator[Fact]:
    for twin in record.twins:
        values = f"cosine {rounded(twin['cosine'])}, divergence {rounded(twin['divergence'])}"
        yield Fact(f"latent {twin['latent']}", values, None)


def _effect(record: LatentRecord) -> Iterator[Fact]:
    for column, title in (("kl_change_added", "added to base"), ("kl_change_removed", "removed from chat")):
        value = (record.effect or {}).get(column)
        if _is_defined(value):
            yield Fact(title, rounded(value, 4), None)


def _is_defined(value: Any) -> bool:
    return value is not None and rounded(value) != MISSING
