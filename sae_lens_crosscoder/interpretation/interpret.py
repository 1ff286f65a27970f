"""Explanations of latents by a language model, scored by how well the model predicts latents from them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import pandas as pd

from sae_lens_crosscoder.analysis.tables.interpretations import Interpretations
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.interpretation.answers import Answers
from sae_lens_crosscoder.interpretation.cases import InterpretationCases, Item, ItemKind, LatentCase
from sae_lens_crosscoder.interpretation.prompts import (
    Prompt,
    detection_prompt,
    explanation_prompt,
    fuzzing_prompt,
    parse_explanation,
    parse_verdicts,
)
from sae_lens_crosscoder.interpretation.scores import balanced_accuracy

_CASES_AT_ONCE = 64
"""Latents whose answers are collected before the next ones are asked about."""

_SCORES: dict[str, tuple[ItemKind, ItemKind]] = {
    "detection_random": ("active", "random"),
    "detection_hard": ("active", "hard"),
    "fuzzing": ("right", "wrong"),
}
"""The kind of text that should get a yes, and the kind that should get a no."""


@runtime_checkable
class PromptAnswerer(Protocol):
    """Interface of `Answers`, and of the cost estimate that only counts prompts."""

    def ask(self, prompts: Sequence[Prompt], description: str) -> list[str]: ...


class Question(NamedTuple):
    """Texts of one latent that are judged in one answer."""

    latent: int
    items: tuple[Item, ...]
    prompt: Prompt


@validate_arguments
def interpret(
    cases: InterpretationCases,
    answers: Answers,
    *,
    explanations: Mapping[int, str] | None = None,
    texts_per_prompt: int = 5,
) -> Interpretations:
    """Explain latents by a language model, and score each explanation by the same model (Paulo et al. 2024).

    Args:
        cases: the cases of `interpretation_cases`.
        answers: the client that answers, and the file that stores its answers.
        explanations: explanations to score in place of the model's, for some latents or all: your own, or, as a
            control, those of other latents.
        texts_per_prompt: texts judged in one answer; more are cheaper and harder to judge.

    Returns:
        A row per latent with `explanation` (missing without texts or a readable answer) and three balanced accuracies,
        which equal AUROCs: `detection_random` and `detection_hard` (in which texts is it active, against random texts
        and similar ones) and `fuzzing` (are the right tokens marked). Each has a 95 % interval `_low`, `_high`; 1 is
        perfect, 1/2 is chance, nan if nothing was judged. `n_judged` texts have a verdict, `n_unparsable` answers do
        not have the requested form and count neither as right nor as wrong, and `interpreter` is the model.

    Raises:
        ValueError: for an explanation of a latent without a case, or texts_per_prompt below 1; and see `Answers` and
            the client.
    """
    given = dict(explanations or {})
    if texts_per_prompt < 1:
        raise ValueError(f"texts_per_prompt={texts_per_prompt} is too small: pass at least 1.")
    if unknown := given.keys() - {case.latent for case in cases.cases}:
        raise ValueError(f"Latent {min(unknown)} has an explanation but no case: make a case of it too.")
    table = pd.DataFrame.from_dict(dict(interpreted(cases.cases, answers, given, texts_per_prompt)), orient="index")
    table["interpreter"] = answers.client.model
    table.index.name = "latent"
    settings = {"texts_per_prompt": texts_per_prompt, "settings": dict(answers.client.settings)}
    return Interpretations(table, {**cases.manifest, **settings, "n_explanations_given": len(given)})


def interpreted(
    cases: Sequence[LatentCase], answers: PromptAnswerer, given: Mapping[int, str], texts_per_prompt: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield every latent's row, a chunk of latents at a time."""
    for start in range(0, len(cases), _CASES_AT_ONCE):
        chunk = cases[start : start + _CASES_AT_ONCE]
        unexplained = [case for case in chunk if case.latent not in given and any(case.shown)]
        texts = answers.ask([explanation_prompt(case.shown) for case in unexplained], "Explaining")
        parsed = {case.latent: parse_explanation(text) for case, text in zip(unexplained, texts, strict=True)}
        explained: dict[int, str | None] = {**parsed, **given}
        questions = [q for case in chunk for q in _questions(case, explained.get(case.latent), texts_per_prompt)]
        texts = answers.ask([question.prompt for question in questions], "Scoring")
        verdicts: dict[int, list[tuple[Question, list[bool] | None]]] = {case.latent: [] for case in chunk}
        for question, text in zip(questions, texts, strict=True):
            verdicts[question.latent].append((question, parse_verdicts(text, len(question.items))))
        for latent, judged in verdicts.items():
            unreadable = latent in parsed and parsed[latent] is None
            yield latent, _row(explained.get(latent), judged, n_unparsable=int(unreadable))


def _questions(case: LatentCase, explanation: str | None, texts_per_prompt: int) -> Iterator[Question]:
    if explanation is None:
        return
    rounds = [(detection_prompt, case.detection), *((fuzzing_prompt, items) for items in case.fuzzing)]
    for make_prompt, items in rounds:
        for start in range(0, len(items), texts_per_prompt):
            part = items[start : start + texts_per_prompt]
            yield Question(case.latent, part, make_prompt(explanation, [item.text for item in part]))


def _row(
    explanation: str | None, judged: Sequence[tuple[Question, list[bool] | None]], n_unparsable: int
) -> dict[str, Any]:
    row: dict[str, Any] = {"explanation": explanation}
    by_kind: dict[ItemKind, list[bool]] = {"active": [], "random": [], "hard": [], "right": [], "wrong": []}
    for question, verdicts in judged:
        n_unparsable += verdicts is None
        for item, verdict in zip(question.items, verdicts or (), strict=verdicts is not None):
            by_kind[item.kind].append(verdict)
    for name, (positive, negative) in _SCORES.items():
        score = balanced_accuracy(by_kind[positive], by_kind[negative])
        row |= {name: score.value, f"{name}_low": score.low, f"{name}_high": score.high}
    return {**row, "n_judged": sum(map(len, by_kind.values())), "n_unparsable": n_unparsable}
