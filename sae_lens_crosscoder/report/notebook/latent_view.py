"""One latent in a notebook: its numbers among those of the others, what it speaks for, and where it fires."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sae_lens_crosscoder.analysis.diagnosis.delta_norm import delta_norm, label
from sae_lens_crosscoder.analysis.examples.file import ExamplesFile
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, require_inference
from sae_lens_crosscoder.report.explorer.records import Exploration, LatentRecord, ShownExample, Weighted
from sae_lens_crosscoder.report.html.cells import cell
from sae_lens_crosscoder.report.html.inert import inert, visible
from sae_lens_crosscoder.report.html.strips import example_strip, token_text
from sae_lens_crosscoder.report.notebook.facts import Fact, facts_about
from sae_lens_crosscoder.report.notebook.frame import framed

_N_EXAMPLES = 5
"""Of the strongest, and of every band of scores."""


@dataclass(frozen=True)
class LatentView:
    """What is known of a latent, as a notebook shows it; `.record` has all of it as values."""

    record: LatentRecord
    models: tuple[str, ...]
    user_label: str | None
    facts: Mapping[str, Sequence[Fact]]
    """What is shown of its numbers, by heading."""

    def __repr__(self) -> str:
        lines = [f"latent {self.record.latent}: {visible(self._verdict)}"]
        lines += [f"  {visible(text)}" for text in self._said()]
        for heading, facts in self.facts.items():
            lines.append(heading)
            lines += [f"  {visible(fact.title)}: {visible(fact.value)}" for fact in facts]
        for title, tokens in self._spoken_for():
            lines.append(f"{title}:{''.join(visible(text) for text, _ in tokens)}")
        for title, examples in self._bands():
            lines.append(title)
            lines += [f"  {each.example.score:.2f} {_marked(each)}" for each in examples]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        dot = cell(self._verdict)
        title = f'<div class="title">Latent {self.record.latent}<span class="verdict">{dot}</span></div>'
        said = "".join(f'<div class="said">{inert(text)}</div>' for text in self._said())
        facts = "".join(
            f'<div class="part facts"><span>{heading}</span><span></span>{_rank_head(facts)}</div>'
            f'<dl class="facts">{"".join(map(_fact, facts))}</dl>'
            for heading, facts in self.facts.items()
        )
        main = self._lenses() + self._examples()
        return framed(f'{title}{said}<div class="columns"><div>{facts}</div><div>{main}</div></div>')

    @property
    def _verdict(self) -> str:
        numbers = self.record.numbers
        return str(numbers.get("verdict", numbers["label"]))

    def _said(self) -> Iterator[str]:
        """What people and models call it."""
        if self.user_label is not None:
            yield f"\u201c{self.user_label}\u201d"
        explanation = self.record.numbers.get("explanation")
        if isinstance(explanation, str):
            yield f"explained as: {explanation}"
        for concept in self.record.concepts:
            yield f"best latent for {concept['concept']} (AUROC {concept['auroc']:.2f})"

    def _spoken_for(self) -> Iterator[tuple[str, tuple[Weighted, ...]]]:
        for model in self.record.raises:
            yield f"{model} raises", self.record.raises[model]
            yield f"{model} lowers", self.record.lowers[model]

    def _bands(self) -> Iterator[tuple[str, tuple[ShownExample, ...]]]:
        """The strongest examples, and those of every band, the strongest band first."""
        n_bands = len(self.record.quantiles)
        bands = [("Strongest", self.record.top)]
        bands += [(f"Quantile {q} of {n_bands}", self.record.quantiles[q - 1][::-1]) for q in range(n_bands, 0, -1)]
        for title, examples in bands:
            if examples:
                yield title, examples[:_N_EXAMPLES]

    def _lenses(self) -> str:
        spoken_for = list(self._spoken_for())
        most = max((abs(value) for _, tokens in spoken_for for _, value in tokens), default=0) or 1
        lines: list[str] = []
        for i, (title, tokens) in enumerate(spoken_for):
            shown = "".join(
                f'<span class="token" style="--part:{abs(value) / most:.2f}" title="{cell(value)} logits per unit of '
                f'activation">{token_text(text)}</span>'
                for text, value in tokens
            )
            lines.append(f'<p class="lens share-{i // 2}"><span class="soft">{inert(title)}</span> {shown}</p>')
        return f'<div class="part">What it speaks for</div>{"".join(lines)}' if lines else ""

    def _examples(self) -> str:
        bands = list(self._bands())
        if not bands:
            return ""
        scale = self.record.top[0].example.score
        lists: list[str] = []
        for title, examples in bands:
            rows = [
                f'<li><span class="score" title="row {each.example.prompt}, position {each.example.position}">'
                f"{cell(each.example.score)}</span>{example_strip(each, self.models, scale)}</li>"
                for each in examples
            ]
            lists.append(f'<div class="band">{title}</div><ol class="examples">{"".join(rows)}</ol>')
        said = ("{}'s share of the score (upper stripe)", "{}'s (lower)")
        legend = "".join(
            f'<span><span class="swatch share-{m}"></span>{inert(text.format(model))}</span>'
            for m, (text, model) in enumerate(zip(said, self.models, strict=False))
        )
        if bands[0][1][0].kl is not None:
            legend += '<span><span class="swatch kl"></span>KL: the models expect different tokens next</span>'
        return f'<div class="part">Examples</div><p class="legend soft">{legend}</p>{"".join(lists)}'


def latent(
    crosscoder: InferenceCrosscoder,
    latent: int,
    exploration: Exploration | None = None,
    *,
    latents: pd.DataFrame | None = None,
    statistics: pd.DataFrame | None = None,
    examples: ExamplesFile | None = None,
    tokenizer: Any = None,
    labels: Mapping[int, str] | None = None,
) -> LatentView:
    """All that is known of one latent, as the last line of a notebook's cell shows it. What is not given is not shown.

    Args:
        latent: its number.
        exploration: what `slc.explore` found; or give its parts:
        latents: the table of `diagnose`, as `read_latents` reads it, with labels and explanations if there are. Without
            it, what the decoders' norms say.
        statistics: as `latent_statistics` makes them.
        examples: as `read_examples` reads them.
        tokenizer: the pair's, for the texts of tokens, which otherwise are ids.
        labels: as `read_labels` reads them; they go before the table's.

    Raises:
        ValueError: for an exploration together with its parts, and for parts of another crosscoder.
        IndexError: for a latent that does not exist.
    """
    crosscoder = require_inference(crosscoder, "latent")
    if exploration is None:
        table = _of_weights(crosscoder) if latents is None else latents
        exploration = Exploration(table, tokenizer=tokenizer, statistics=statistics, examples=examples)
    elif any(part is not None for part in (latents, statistics, examples, tokenizer)):
        raise ValueError("An exploration has its own table, statistics, examples and tokenizer: give it alone.")
    if len(exploration) != crosscoder.cfg.d_sae:
        raise ValueError(
            f"The table is of {len(exploration)} latents, the crosscoder has {crosscoder.cfg.d_sae}: it is another's."
        )
    record = exploration[latent]
    of_table = record.numbers.get("user_label")
    user_label = (labels or {}).get(latent, of_table if isinstance(of_table, str) else None)
    return LatentView(record, crosscoder.layout.names, user_label, facts_about(record, exploration.table))


def _of_weights(crosscoder: InferenceCrosscoder) -> pd.DataFrame:
    norms = crosscoder.decoder_norms.detach().double()
    deltas: list[float] = delta_norm(norms).tolist()
    columns = {f"dec_norm_{name}": norms[:, m].tolist() for m, name in enumerate(crosscoder.layout.names)}
    return pd.DataFrame({"delta_norm": deltas, "label": [label(delta) for delta in deltas], **columns})


def _rank_head(facts: Sequence[Fact]) -> str:
    return '<span class="soft">percentile</span>' if any(fact.percentile is not None for fact in facts) else ""


def _fact(fact: Fact) -> str:
    rank = "" if fact.percentile is None else f"{100 * fact.percentile:.0f} %"
    said = "" if fact.percentile is None else f' title="above {rank} of live latents"'
    return f'<dt>{inert(fact.title)}</dt><dd>{inert(fact.value)}</dd><dd class="soft"{said}>{rank}</dd>'


def _marked(shown: ShownExample) -> str:
    """The window on one line, with every strong token in «», as `LatentExamples.show` has it."""
    pairs = zip(shown.texts, shown.example.is_strong.tolist(), strict=True)
    return "".join(f"«{visible(text)}»" if is_strong else visible(text) for text, is_strong in pairs)
