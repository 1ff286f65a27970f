"""What is known of a latent as rows of the tables of Neuronpedia's database."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sae_lens_crosscoder.report.explorer.packing import short
from sae_lens_crosscoder.report.explorer.records import LatentRecord, ShownExample
from sae_lens_crosscoder.storage.checksums import digest

N_INTERVALS = 6
"""Of scores, from 0 to a latent's highest, under which Neuronpedia lists a sample of its contexts."""


@dataclass(frozen=True)
class Source:
    """What Neuronpedia calls the crosscoder, and who is said to have made it."""

    model_id: str
    source_id: str
    source_set: str
    creator_id: str
    model: str
    """Whose decoder the logits are of."""
    n_tokens: int
    """On which scores were counted."""

    def place(self, latent: int) -> dict[str, str]:
        """Where a row belongs; Neuronpedia's `layer` is the source."""
        return {"modelId": self.model_id, "layer": self.source_id, "index": str(latent)}

    def row_id(self, *parts: str | int) -> str:
        """The same for the same row. The import drops a row whose id is there already, whoever's that is."""
        return "c" + digest([self.model_id, self.source_id, *parts])[:24]


def feature_row(record: LatentRecord, source: Source) -> dict[str, Any]:
    """The latent's row of `Neuron`."""
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
    """The latent's rows of `Activation`: its strongest contexts, then the sample of all, the highest score first."""
    highest = record.numbers["max_activation"]
    # By these numbers Neuronpedia knows the strongest.
    shown = [(each, {"binMin": -1, "binMax": short(highest), "binContains": -1}) for each in record.top]
    sample = [each for band in reversed(record.quantiles) for each in reversed(band)]
    shown += [(each, _interval(each.example.score, highest, record.histogram, source.n_tokens)) for each in sample]
    for rank, (each, interval) in enumerate(shown):
        yield {
            "id": source.row_id("activation", record.latent, rank),
            **source.place(record.latent),
            "creatorId": source.creator_id,
            **_context(each),
            **interval,
        }


def explanation_rows(record: LatentRecord, source: Source) -> Iterator[dict[str, Any]]:
    """The latent's row of `Explanation`, if it was interpreted."""
    text = record.numbers.get("explanation")
    if isinstance(text, str):
        yield {
            "id": source.row_id("explanation", record.latent),
            **source.place(record.latent),
            "authorId": source.creator_id,
            "description": text,
            # Not as explanationModelName, which must be one that Neuronpedia knows.
            "notes": f"by {record.numbers['interpreter']}",
        }


def _context(shown: ShownExample) -> dict[str, Any]:
    # The database has numbers only, so that a token that does not count is shown as one on which the latent is off.
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
    """The interval that a score is in, and the share of all tokens that have their score there."""
    n_bins = len(histogram)
    own = min(int(score / highest * n_bins), n_bins - 1) * N_INTERVALS // n_bins
    bins = [i for i in range(n_bins) if i * N_INTERVALS // n_bins == own]
    return {
        "binMin": short(highest * bins[0] / n_bins),
        "binMax": short(highest * (bins[-1] + 1) / n_bins),
        "binContains": short(sum(histogram[i] for i in bins) / n_tokens),
    }


def jsonl(rows: Sequence[Mapping[str, Any]]) -> bytes:
    r"""Rows as lines that Neuronpedia's database can hold, whatever their texts say.

    >>> jsonl([{"tokens": ["a\0", "\\u0000"]}])
    b'{"tokens":["a\\ufffd","\\u005cu0000"]}\n'
    """
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n" for row in rows]
    # The import makes a space of every \u0000 in a file, even in \\u0000, of which that leaves half an escape.
    text = "".join(lines).replace("\\\\", "\\u005c").replace("\\u0000", "\\ufffd")
    return text.encode(errors="replace")  # half a surrogate pair becomes a question mark
