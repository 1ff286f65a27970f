"""Display one latent in a notebook: its numbers, the logits it raises, and examples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sae_lens_crosscoder.analysis.diagnosis.classes import delta_norm, labels_of, norms_of_pair
from sae_lens_crosscoder.analysis.examples.file import ExamplesFile
from sae_lens_crosscoder.analysis.statistics.latent_statistics import LatentStatistics
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, validate_inference
from sae_lens_crosscoder.report.explorer.records import Exploration, LatentRecord, ShownExample, Weighted
from sae_lens_crosscoder.report.html.inert import visible
from sae_lens_crosscoder.report.notebook.facts import Fact, facts_about
from sae_lens_crosscoder.report.notebook.view import render_view

_N_EXAMPLES = 5
"""Shown of the strongest examples, and of every band of activations."""


@dataclass(frozen=True)
class LatentView:
    """One latent as a notebook displays it; `record` has all its data as values."""

    record: LatentRecord
    models: tuple[str, ...]
    user_label: str | None
    facts: Mapping[str, Sequence[Fact]]
    """Its numbers, by heading."""

    def __repr__(self) -> str:
        lines = [f"latent {self.record.latent}: {visible(self.verdict)}"]
        lines += [f"  {visible(name)}" for name in self.names]
        for heading, facts in self.facts.items():
            lines.append(heading)
            lines += [f"  {visible(fact.title)}: {visible(fact.value)}" for fact in facts]
        for title, tokens in self.lenses:
            lines.append(f"{title}:{''.join(visible(text) for text, _ in tokens)}")
        for title, examples in self.bands:
            lines.append(title)
            lines += [f"  {shown.example.score:.2f} {_marked(shown)}" for shown in examples]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        largest = max((abs(value) for _, tokens in self.lenses for _, value in tokens), default=0)
        return render_view("notebook/latent_view.html", view=self, largest_logit=largest)

    @property
    def verdict(self) -> str:
        """The verdict, or the class if there is no verdict."""
        numbers = self.record.numbers
        return str(numbers.get("verdict", numbers["label"]))

    @property
    def names(self) -> list[str]:
        """Its label, explanation and known concepts."""
        explanation = self.record.numbers.get("explanation")
        return [
            *([] if self.user_label is None else [f"\u201c{self.user_label}\u201d"]),
            *([f"explained as: {explanation}"] if isinstance(explanation, str) else []),
            *(
                f"carries {entry['share']:.2f} of {entry['concept']} (AUROC {entry['auroc']:.2f})"
                for entry in self.record.concepts
            ),
        ]

    @property
    def lenses(self) -> list[tuple[str, tuple[Weighted, ...]]]:
        """Titled lists of the tokens whose logits it raises and lowers, by model."""
        return [
            (f"{model} {direction}", tokens[model])
            for model in self.record.raises
            for direction, tokens in (("raises", self.record.raises), ("lowers", self.record.lowers))
        ]

    @property
    def bands(self) -> list[tuple[str, tuple[ShownExample, ...]]]:
        """Titled lists of examples: the strongest, then every band of activations, the strongest band first."""
        n_bands = len(self.record.quantiles)
        bands = [("Strongest", self.record.top)]
        bands += [(f"Quantile {q} of {n_bands}", self.record.quantiles[q - 1][::-1]) for q in range(n_bands, 0, -1)]
        return [(title, examples[:_N_EXAMPLES]) for title, examples in bands if examples]


@validate_arguments
def latent(
    crosscoder: InferenceCrosscoder,
    latent: int,
    exploration: Exploration | None = None,
    *,
    latents: pd.DataFrame | None = None,
    statistics: LatentStatistics | None = None,
    examples: ExamplesFile | None = None,
    tokenizer: Any = None,
    labels: Mapping[int, str] | None = None,
) -> LatentView:
    """Display everything known about one latent in a notebook. Missing parts are not shown.

    Args:
        latent: its index.
        exploration: the result of `slc.explore`; or pass its parts:
        latents: the table of `diagnose`, with labels and explanations if there are any. By default a table from the
            decoder norms alone.
        statistics: as `latent_statistics` makes them.
        examples: as `collect_examples` makes them.
        tokenizer: the pair's. Without it, tokens are shown as ids.
        labels: as `load_labels` reads them; they override the table's.

    Raises:
        ValueError: for an exploration together with its parts, or parts of another crosscoder.
        IndexError: if the crosscoder has no such latent.
    """
    crosscoder = validate_inference(crosscoder, "latent")
    if exploration is None:
        table = _table_of_norms(crosscoder) if latents is None else latents
        exploration = Exploration(table, tokenizer=tokenizer, statistics=statistics, examples=examples)
    elif any(part is not None for part in (latents, statistics, examples, tokenizer)):
        raise ValueError("Pass either `exploration` or its parts (latents, statistics, examples, tokenizer), not both.")
    if len(exploration) != crosscoder.cfg.d_sae:
        raise ValueError(
            f"The table has {len(exploration)} latents but the crosscoder has {crosscoder.cfg.d_sae}: pass the table "
            "of this crosscoder."
        )
    record = exploration[latent]
    table_label = record.numbers.get("user_label")
    user_label = (labels or {}).get(latent, table_label if isinstance(table_label, str) else None)
    return LatentView(record, crosscoder.layout.names, user_label, facts_about(record, exploration.table))


def _table_of_norms(crosscoder: InferenceCrosscoder) -> pd.DataFrame:
    norms = crosscoder.decoder_norms.detach().double()
    columns = {f"dec_norm_{name}": norms[:, m].tolist() for m, name in enumerate(crosscoder.layout.names)}
    compared = norms_of_pair(norms, crosscoder.layout)
    return pd.DataFrame({"delta_norm": delta_norm(compared).tolist(), "label": labels_of(compared), **columns})


def _marked(shown: ShownExample) -> str:
    """Write the window on one line, with strong tokens in «», as `LatentExamples.show` does."""
    pairs = zip(shown.texts, shown.example.is_strong.tolist(), strict=True)
    return "".join(f"«{visible(text)}»" if is_strong else visible(text) for text, is_strong in pairs)
