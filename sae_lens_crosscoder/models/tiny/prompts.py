"""Held-out prompts that end where the first token of an answer is predicted."""

from dataclasses import dataclass
from random import Random
from typing import Final, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from sae_lens_crosscoder.models.tiny.dialogues import exchange_pair, request_spans
from sae_lens_crosscoder.models.tiny.documents import gossip_prompt
from sae_lens_crosscoder.models.tiny.vocabulary import BOS, PRAISE, TOKEN_IDS

KindOfChange = Literal["chat_only", "shared", "base_only"]

CONCEPT_KINDS: Final[dict[str, tuple[str, str]]] = {
    "refusal": ("harmful", "benign"),
    "false_information": ("false_statement", "true_statement"),
    "personal_question": ("personal", "capability"),
    "summarize": ("summarize", "copy"),
    "count": ("count", "copy"),
    "where": ("where", "taste"),
    "taste": ("taste", "where"),
    "suppressed": ("gossip", "praise"),
}
"""Labels (`TINY_KINDS`) of each concept's positive and negative prompts."""

CONCEPTS: Final = tuple(CONCEPT_KINDS)
"""Concepts of matched prompts. `where` and `taste` are shared controls and each other's contrast; chat training removed
`suppressed` and added the rest."""

_CONTROLS: Final = ("where", "taste")


@dataclass(frozen=True)
class MatchedPrompts:
    """Pairs of prompts that differ only in the words of a concept."""

    concept: str
    positive: Int[Tensor, "pairs pos"]
    """Prompts with the concept; they start with `<bos>` and are equally long."""
    negative: Int[Tensor, "pairs pos"]
    """The same prompts without the concept."""
    positive_answers: Int[Tensor, " pairs"]
    """The correct next token (for `suppressed`, of the base model; otherwise of the chat model)."""
    negative_answers: Int[Tensor, " pairs"]
    decision_position: int
    """Index of the last prompt token, which predicts the answer's first token."""
    kind_of_change: KindOfChange
    """`chat_only` if fine-tuning added the concept, `shared` if it kept it, `base_only` if it removed it."""


def kind_of_change(concept: str) -> KindOfChange:
    """The change of the concept by fine-tuning, known from the construction of the corpora."""
    if concept == "suppressed":
        return "base_only"
    return "shared" if concept in _CONTROLS else "chat_only"


def matched_prompts(concept: str, n_pairs: int, seed: int) -> MatchedPrompts:
    """Matched prompts for one of `CONCEPTS`, from combinations and seeds that no model was trained on.

    Prompts about people (`where`, `taste`, `suppressed`) have no held-out combinations: they ask for facts that a model
    can only learn in training.

    Raises:
        ValueError: for an unknown concept, or fewer than one pair.
    """
    if concept not in CONCEPTS:
        raise ValueError(f"Unknown concept {concept!r}. Use one of {', '.join(CONCEPTS)}.")
    if n_pairs < 1:
        raise ValueError(f"n_pairs={n_pairs} must be at least 1.")
    rng = Random(f"matched/{concept}/{seed}")
    write = _gossip_pair if concept == "suppressed" else _request_pair
    pairs = [write(concept, rng) for _ in range(n_pairs)]
    positive = torch.tensor([_ids(pair[0]) for pair in pairs])
    negative = torch.tensor([_ids(pair[2]) for pair in pairs])
    return MatchedPrompts(
        concept=concept,
        positive=positive,
        negative=negative,
        positive_answers=torch.tensor([TOKEN_IDS[pair[1]] for pair in pairs]),
        negative_answers=torch.tensor([TOKEN_IDS[pair[3]] for pair in pairs]),
        decision_position=positive.shape[1] - 1,
        kind_of_change=kind_of_change(concept),
    )


def _ids(text: str) -> list[int]:
    return [TOKEN_IDS[word] for word in text.split()]


def _gossip_pair(concept: str, rng: Random) -> tuple[str, str, str, str]:
    gossip, praise, insult = gossip_prompt(rng)
    return f"{BOS} {gossip}", insult, f"{BOS} {praise}", PRAISE


def _request_pair(concept: str, rng: Random) -> tuple[str, str, str, str]:
    texts: list[str] = []
    pair = exchange_pair("where_or_taste" if concept in _CONTROLS else concept, rng, "held_out")
    for exchange in reversed(pair) if concept == "taste" else pair:
        prompt = " ".join([BOS, *(span.text for span in request_spans(exchange))])
        texts += [prompt, exchange.response.split()[0]]
    return texts[0], texts[1], texts[2], texts[3]
