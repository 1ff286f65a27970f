"""Cost estimate of an interpretation, before any prompt is sent."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.interpretation.answers import Answers
from sae_lens_crosscoder.interpretation.cases import InterpretationCases
from sae_lens_crosscoder.interpretation.interpret import interpreted
from sae_lens_crosscoder.interpretation.prompts import Prompt

# A typical length; scoring prompts repeat the explanation.
_ASSUMED_EXPLANATION = "EXPLANATION: " + " ".join(["word"] * 30)


@dataclass(frozen=True)
class InterpretationCost:
    """Prompts left to send, in tokens and money."""

    n_prompts: int
    n_recorded: int
    """Prompts with a stored answer, which cost nothing."""
    n_prompt_tokens: int
    n_answer_tokens: int
    price: float
    """In the currency of the prices; nan without prices."""

    def __str__(self) -> str:
        tokens = f"{self.n_prompt_tokens:,} prompt tokens and about {self.n_answer_tokens:,} answer tokens"
        price = "no prices given" if math.isnan(self.price) else f"about {self.price:.2f} at these prices"
        return f"{self.n_prompts:,} prompts to send ({self.n_recorded:,} more are recorded), {tokens}: {price}"


def about_four_bytes(text: str) -> int:
    """Estimate the tokens of a text at four bytes each, as in English with most tokenizers.

    >>> about_four_bytes("to be or not")
    3
    """
    return -(-len(text.encode()) // 4)


@validate_arguments
def interpretation_cost(
    cases: InterpretationCases,
    answers: Answers,
    *,
    price_per_million_prompt_tokens: float = float("nan"),
    price_per_million_answer_tokens: float = float("nan"),
    tokens_per_answer: int = 100,
    count_tokens: Callable[[str], int] = about_four_bytes,
    explanations: Mapping[int, str] | None = None,
    texts_per_prompt: int = 5,
) -> InterpretationCost:
    """Estimate what `interpret` with the same arguments would send. Nothing is sent or written.

    Prompts are counted exactly, with missing explanations assumed to be 30 words long.

    Args:
        tokens_per_answer: average length of an answer; reasoning models write many times as much.
        count_tokens: tokens of a text, for instance `lambda text: len(tokenizer(text).input_ids)`.
    """
    counted = _Counted(answers)
    for _ in interpreted(cases.cases, counted, explanations or {}, texts_per_prompt):
        pass
    n_prompt_tokens = sum(count_tokens(message["content"]) for prompt in counted.prompts for message in prompt)
    n_answer_tokens = tokens_per_answer * len(counted.prompts)
    price = n_prompt_tokens * price_per_million_prompt_tokens + n_answer_tokens * price_per_million_answer_tokens
    return InterpretationCost(len(counted.prompts), counted.n_recorded, n_prompt_tokens, n_answer_tokens, price / 1e6)


class _Counted:
    """Stored answers; prompts without one are collected and get an assumed answer."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self.prompts: list[Prompt] = []
        self.n_recorded = 0

    def ask(self, prompts: Sequence[Prompt], description: str) -> list[str]:
        recorded = [self._answers.recorded(prompt) for prompt in prompts]
        self.prompts += [prompt for prompt, answer in zip(prompts, recorded, strict=True) if answer is None]
        self.n_recorded += sum(answer is not None for answer in recorded)
        return [_ASSUMED_EXPLANATION if answer is None else answer for answer in recorded]
