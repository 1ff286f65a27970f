"""Convert a latent's record to rows of Neuronpedia's database."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sae_lens_crosscoder.report.explorer.packing import short
from sae_lens_crosscoder.report.explorer.records import LatentRecord, ShownExample
from sae_lens_crosscoder.storage.checksums import digest

N_INTERVALS = 6
"""Intervals of activation, from 0 to the highest, under which Neuronpedia lists a sample of contexts."""


@dataclass(frozen=True)
class Source:
    """The crosscoder's ids on Neuronpedia, and its creator's."""

    model_id: str
    source_id: str
    source_set: str
    creator_id: str
    model: str
    """The model whose decoder gives the logits."""
    n_tokens: int
    """Tokens in the histograms."""

    def place(self, latent: int) -> dict[str, str]:
        """Key of a latent's rows; Neuronpedia's `layer` is the source."""
        return {"modelId": self.model_id, "layer": self.source_id, "index": str(latent)}

    def row_id(self, *parts: str | int) -> str:
        """Derive a row's id from its content. The import drops a row whose id exists already, whoever owns it."""
        return "c" + digest([self.model_id, self.source_id, *parts])[:24]


def feature_row(record: LatentRecord, source: Source) -> dict[str, Any]:
    """Build the latent's row of `Neuron`."""
    is_live, n_bins = sum(record.histogram) > 0, len(record.histogram)
    width = record.numbers["max_activation"] / n_bins
    raises, lowers = record.raises.get(source.model, ()), record.lowers.get(source.model, ())
    return {
        **source.place(record.latent),
        "sourceSetName": source.source_set,
        "creatorId": source.creator_id,
        "maxActApprox": short(record.top[0].example.score) if record.top else 0,
        "frac_nonzero": short(sum(record.histogram) / source.n_tokens),
        "freq_hist_data_bar_heights": record.histogram if is_live else [],
        "freq_hist_data_bar_values": [short((i + 0.5) * width) for i in range(n_bins)] if is_live else [],
        "pos_str": [text for text, _ in raises],
        "pos_values": [short(value) for _, value in raises],
        "neg_str": [text for text, _ in lowers],
        "neg_values": [short(value) for _, value in lowers],
    }


def activation_rows(record: LatentRecord, source: Source) -> Iterator[dict[str, Any]]:
    """Build the latent's rows of `Activation`: its strongest contexts, then a sample of all, strongest first."""
    highest = record.numbers["max_activation"]
    # Neuronpedia marks the strongest contexts by these numbers.
    shown = [(example, {"binMin": -1, "binMax": short(highest), "binContains": -1}) for example in record.top]
    sample = [example for band in reversed(record.quantiles) for example in reversed(band)]
    shown += [(ex, _interval(ex.example.score, highest, record.histogram, source.n_tokens)) for ex in sample]
    for rank, (example, interval) in enumerate(shown):
        yield {
            "id": source.row_id("activation", record.latent, rank),
            **source.place(record.latent),
            "creatorId": source.creator_id,
            **_context(example),
            **interval,
        }


def explanation_rows(record: LatentRecord, source: Source) -> Iterator[dict[str, Any]]:
    """Build the latent's row of `Explanation`, if it was interpreted."""
    text = record.numbers.get("explanation")
    if isinstance(text, str):
        yield {
            "id": source.row_id("explanation", record.latent),
            **source.place(record.latent),
            "authorId": source.creator_id,
            "description": text,
            # Neuronpedia accepts only model names it knows as explanationModelName.
            "notes": f"by {record.numbers['interpreter']}",
        }


def _context(shown: ShownExample) -> dict[str, Any]:
    # The database has no missing values, so that a masked token appears as inactive.
    values, peak = [short(score) for score in shown.example.scores.nan_to_num(0).tolist()], shown.example.peak
    return {
        "tokens": shown.texts,
        "values": values,
        "maxValue": values[peak],
        "maxValueTokenIndex": peak,
        "minValue": min(values),
        "qualifyingTokenIndex": peak,
    }


def _interval(score: float, highest: float, histogram: Sequence[int], n_tokens: int) -> dict[str, Any]:
    """Find the interval of an activation, and the share of all tokens in it."""
    n_bins = len(histogram)
    interval = min(int(score / highest * n_bins), n_bins - 1) * N_INTERVALS // n_bins
    bins = [i for i in range(n_bins) if i * N_INTERVALS // n_bins == interval]
    return {
        "binMin": short(highest * bins[0] / n_bins),
        "binMax": short(highest * (bins[-1] + 1) / n_bins),
        "binContains": short(sum(histogram[i] for i in bins) / n_tokens),
    }


def jsonl(rows: Sequence[Mapping[str, Any]]) -> bytes:
    r"""Encode rows as JSON lines that Neuronpedia's database can store, for any text.

    >>> jsonl([{"tokens": ["a\0", "\\u0000"]}])
    b'{"tokens":["a\\ufffd","\\u005cu0000"]}\n'
    """
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n" for row in rows]
    # The import replaces every \u0000 in a file by a space, even in \\u0000, which would leave half an escape.
    text = "".join(lines).replace("\\\\", "\\u005c").replace("\\u0000", "\\ufffd")
    return text.encode(errors="replace")  # half a surrogate pair becomes a question mark
