"""Explanations of latents, and how well a model that reads only the explanation foresees what they do."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import pandas as pd

from sae_lens_crosscoder.analysis.tables.interpretations import Interpretations
from sae_lens_crosscoder.interpretation.answers import Answers
from sae_lens_crosscoder.interpretation.cases import InterpretationCases
from sae_lens_crosscoder.interpretation.choice import Item, ItemKind, LatentCase
from sae_lens_crosscoder.interpretation.prompts import (
    Prompt,
    detection_prompt,
    explanation_prompt,
    fuzzing_prompt,
    parse_explanation,
    parse_verdicts,
)
from sae_lens_crosscoder.interpretation.scores import balanced_accuracy

# Latents between which a run waits for all answers.
_CASES_AT_ONCE = 64

_SCORES: dict[str, tuple[ItemKind, ItemKind]] = {
    "detection_random": ("active", "random"),
    "detection_hard": ("active", "hard"),
    "fuzzing": ("right", "wrong"),
}
"""The texts that should get a yes, and those that should get a no."""


@runtime_checkable
class Asked(Protocol):
    """Whatever prompts are put to."""

    def ask(self, prompts: Sequence[Prompt], description: str) -> list[str]: ...


class Question(NamedTuple):
    """Texts of one latent that are judged in one answer."""

    latent: int
    items: tuple[Item, ...]
    prompt: Prompt


def interpret(
    cases: InterpretationCases,
    answers: Answers,
    *,
    explanations: Mapping[int, str] | None = None,
    texts_per_prompt: int = 5,
) -> Interpretations:
    """Explain latents by a language model, and score each explanation by the same model (Paulo et al. 2024).

    Args:
        cases: of `interpretation_cases`.
        answers: the client that is asked, and the file that keeps what it says.
        explanations: of some latents or all, to score instead of explaining these: one's own, or, as a control, those
            of other latents.
        texts_per_prompt: texts judged in one answer: more are cheaper and harder to judge.

    Returns:
        A row per latent: `explanation` (missing if there was nothing to explain, or no answer of the form asked for);
        the balanced accuracies, which are AUROCs, `detection_random` and `detection_hard` (in which texts is it active,
        against random texts and against similar ones in which it is not) and `fuzzing` (are its own tokens marked, or
        others), each with its 95 % interval `_low`, `_high`: 1 is perfect, 1/2 says nothing, nan if nothing was judged;
        `n_judged` texts with a verdict; `n_unparsable` answers without the form asked for, which count neither as
        right nor as wrong; and `interpreter`, the model.

    Raises:
        ValueError: for an explanation of a latent that is not among the cases, or no texts per prompt; and see
            `Answers` and the client.
    """
    given = dict(explanations or {})
    if texts_per_prompt < 1:
        raise ValueError(f"texts_per_prompt={texts_per_prompt} leaves nothing to judge: it must be at least 1.")
    if unknown := given.keys() - {case.latent for case in cases.cases}:
        raise ValueError(f"There is no case of latent {min(unknown)}, which has an explanation: make cases of it too.")
    table = pd.DataFrame.from_dict(dict(interpreted(cases.cases, answers, given, texts_per_prompt)), orient="index")
    table["interpreter"] = answers.client.model
    table.index.name = "latent"
    settings = {"texts_per_prompt": texts_per_prompt, "settings": dict(answers.client.settings)}
    return Interpretations(table, {**cases.manifest, **settings, "n_explanations_given": len(given)})


def interpreted(
    cases: Sequence[LatentCase], answers: Asked, given: Mapping[int, str], texts_per_prompt: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every latent's row, some latents at a time."""
    for start in range(0, len(cases), _CASES_AT_ONCE):
        chunk = cases[start : start + _CASES_AT_ONCE]
        unexplained = [case for case in chunk if case.latent not in given and any(case.shown)]
        said = answers.ask([explanation_prompt(case.shown) for case in unexplained], "Explaining")
        parsed = {case.latent: parse_explanation(answer) for case, answer in zip(unexplained, said, strict=True)}
        explained: dict[int, str | None] = {**parsed, **given}
        questions = [q for case in chunk for q in _questions(case, explained.get(case.latent), texts_per_prompt)]
        said = answers.ask([question.prompt for question in questions], "Scoring")
        verdicts: dict[int, list[tuple[Question, list[bool] | None]]] = {case.latent: [] for case in chunk}
        for question, answer in zip(questions, said, strict=True):
            verdicts[question.latent].append((question, parse_verdicts(answer, len(question.items))))
        for latent, judged in verdicts.items():
            no_sentence = latent in parsed and parsed[latent] is None
            yield latent, _row(explained.get(latent), judged, n_unparsable=int(no_sentence))


def _questions(case: LatentCase, explanation: str | None, texts_per_prompt: int) -> Iterator[Question]:
    if explanation is None:
        return
    rounds = [(detection_prompt, case.detection), *((fuzzing_prompt, items) for items in case.fuzzing)]
    for ask_about, items in rounds:
        for start in range(0, len(items), texts_per_prompt):
            part = items[start : start + texts_per_prompt]
            yield Question(case.latent, part, ask_about(explanation, [item.text for item in part]))


def _row(
    explanation: str | None, judged: Sequence[tuple[Question, list[bool] | None]], n_unparsable: int
) -> dict[str, Any]:
    row: dict[str, Any] = {"explanation": explanation}
    verdicts: dict[ItemKind, list[bool]] = {"active": [], "random": [], "hard": [], "right": [], "wrong": []}
    for question, said in judged:
        n_unparsable += said is None
        for item, verdict in zip(question.items, said or (), strict=said is not None):
            verdicts[item.kind].append(verdict)
    for name, (positive, negative) in _SCORES.items():
        score = balanced_accuracy(verdicts[positive], verdicts[negative])
        row |= {name: score.value, f"{name}_low": score.low, f"{name}_high": score.high}
    return {**row, "n_judged": sum(map(len, verdicts.values())), "n_unparsable": n_unparsable}
