"""Pack explorations into the compact data of the explorer's page.

All texts are in one table and referred to by index. The overview's data are unpacked at once: a column of float32 per
number, and the texts of the rows. The data of single latents come in blocks of latents, and the tokens of examples in
blocks of tokens, each token once even if several examples contain it. Blocks are gzip in base64, unpacked on demand.
"""

import base64
import gzip
import json
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from sae_lens_crosscoder.report.explorer.records import LatentRecord, ShownExample, Weighted
from sae_lens_crosscoder.report.html.inert import visible

LATENTS_PER_BLOCK: Final = 16
TOKENS_PER_BLOCK: Final = 2**13
KL_STEP: Final = 0.05
"""In nats; a byte holds up to 12.75."""


class Texts:
    """Texts by their index in a table."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        return self._places.setdefault(text, len(self._places))

    def block(self) -> str:
        return packed(json.dumps([visible(text.replace("\n", "\u21b5")) for text in self._places]).encode())


class TokenPool:
    """The tokens of all examples, each once, in the order of the documents."""

    def __init__(self, context_size: int, texts: Texts) -> None:
        self._context_size, self._texts = context_size, texts
        self._starts: list[int] = []
        self._tokens: list[tuple[int, ...]] = []
        self._kl: list[tuple[float, ...] | None] = []

    def add(self, shown: ShownExample) -> int:
        """Add an example, and return its index in the starts of `packed`."""
        example = shown.example
        self._starts.append(example.prompt * self._context_size + example.position - example.peak)
        self._tokens.append(tuple(map(self._texts, shown.texts)))
        self._kl.append(shown.kl)
        return len(self._starts) - 1

    def packed(self) -> tuple[list[int], list[str]]:
        """Return each example's start in the pool, and the pool's blocks: uint32 texts, then bytes of KL if known."""
        if not self._starts:
            return [], []
        lengths = [len(tokens) for tokens in self._tokens]
        positions = np.concatenate(
            [np.arange(start, start + n) for start, n in zip(self._starts, lengths, strict=True)]
        )
        pooled, first = np.unique(positions, return_index=True)
        tokens = np.concatenate(self._tokens).astype("<u4")[first]
        blocks = [tokens]
        known = [kl for kl in self._kl if kl is not None]
        if known:  # then all are
            steps = np.concatenate(known)[first] / KL_STEP
            blocks.append(np.nan_to_num(steps, nan=0.0).round().clip(0, 255).astype("u1"))
        cuts = range(0, len(pooled), TOKENS_PER_BLOCK)
        parts = [b"".join(part[cut : cut + TOKENS_PER_BLOCK].tobytes() for part in blocks) for cut in cuts]
        return np.searchsorted(pooled, self._starts).tolist(), [packed(part) for part in parts]


def packed(data: bytes) -> str:
    """Compress bytes to text, deterministically."""
    return base64.b64encode(gzip.compress(data, 6, mtime=0)).decode()


def columns_block(table: pd.DataFrame) -> tuple[dict[str, Any], str]:
    """Pack the table's numbers as float32, column after column, and describe them.

    A column of texts is packed as indices into its `categories`.
    """
    names: list[str] = []
    categories: dict[str, list[str]] = {}
    columns: list[NDArray[np.float32]] = []
    for name in table:
        column = table[name]
        if pd.api.types.is_bool_dtype(column) or pd.api.types.is_numeric_dtype(column):
            columns.append(column.to_numpy(dtype="<f4"))
        else:
            codes, values = pd.factorize(column, sort=True)
            columns.append(codes.astype("<f4"))
            categories[str(name)] = [visible(value) for value in values]
        names.append(str(name))
    data = b"".join(column.tobytes() for column in columns)
    return {"columns": names, "categories": categories}, packed(data)


def ragged_block(rows: Sequence[Sequence[int]]) -> str:
    """Pack rows of unequal length as uint32: the end of each row, then all entries."""
    ends = np.cumsum([len(row) for row in rows], dtype="<u4")
    entries = np.array([entry for row in rows for entry in row], dtype="<u4")
    return packed(ends.astype("<u4").tobytes() + entries.tobytes())


def record_json(record: LatentRecord, texts: Texts, pool: TokenPool, groups: Sequence[str]) -> dict[str, Any]:
    """Convert a latent's record to JSON values; `place_examples` then fills in the examples' starts."""
    packed_record = {
        "places": [[short(record.places[group][column]) for column in _PLACE_COLUMNS] for group in groups],
        "uses": [[short(rate) for rate in rates] for rates in record.uses],
        "histogram": record.histogram,
        "positions": [short(share) for share in record.by_position],
        "raises": [_weighted(tokens, texts) for tokens in record.raises.values()],
        "lowers": [_weighted(tokens, texts) for tokens in record.lowers.values()],
        "b": short(record.b_enc),
        "contexts": record.n_contexts,
        "examples": [
            [_example(shown, pool) for shown in examples]
            for examples in (record.top, *reversed(record.quantiles))
            if record.top
        ],
        "twins": [{name: short(value) for name, value in twin.items()} for twin in record.twins],
        "effect": None if record.effect is None else _effect(record.effect, texts),
        "concepts": [
            {name: visible(value) if isinstance(value, str) else short(value) for name, value in concept.items()}
            for concept in record.concepts
        ],
    }
    return {name: value for name, value in packed_record.items() if value not in ([], (), None)}


_PLACE_COLUMNS = ("n_active", "frequency", "max_score", "mean_score")


def place_examples(record: dict[str, Any], starts: Sequence[int]) -> dict[str, Any]:
    """Replace the indices of a record's examples by their starts in the pool."""
    for example in (shown for group in record.get("examples", ()) for shown in group):
        example[0] = starts[example[0]]
    return record


def _example(shown: ShownExample, pool: TokenPool) -> list[Any]:
    """Pack as `[index, length, peak, prompt, position, active]`; `active` is flat: place, activation, shares.

    If codes of each model alone are known, a last entry is flat as well: place, codes.
    """
    example = shown.example
    active: list[Any] = []
    for i, score in enumerate(example.scores.tolist()):
        if score > 0:
            active += [i, short(score), *(short(share) for share in example.shares[i].tolist())]
    entry = [pool.add(shown), len(shown.texts), example.peak, example.prompt, example.position, active]
    return entry if shown.alone is None else [*entry, _alone(shown.alone)]


def _alone(codes: Float[Tensor, "pos model"]) -> list[Any]:
    flat: list[Any] = []
    for i in (codes > 0).any(dim=1).nonzero().flatten().tolist():
        flat += [i, *(short(f"{code:.3g}") for code in codes[i].tolist())]
    return flat


def _weighted(tokens: Sequence[Weighted], texts: Texts) -> list[Any]:
    """Flatten pairs of a text's index and a number."""
    return [entry for text, value in tokens for entry in (texts(text), short(value))]


def _effect(effect: dict[str, Any], texts: Texts) -> dict[str, Any]:
    return {
        name: _weighted(value, texts) if isinstance(value, list) else short(value)  # pyright: ignore[reportUnknownArgumentType]
        for name, value in effect.items()
    }


def short(value: Any) -> Any:
    """Round a number to four digits for short JSON: integers stay whole, nan becomes None.

    >>> short(0.123456), short(12345.0), short(float("nan")), short(True)
    (0.1235, 12345, None, True)
    """
    if isinstance(value, bool | np.bool_):
        return bool(value)
    value = float(value)
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) else float(f"{value:.4g}")
