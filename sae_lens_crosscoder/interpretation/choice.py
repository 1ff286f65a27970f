"""Which texts are shown of a latent, and which are kept for scoring what is said about them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from sae_lens_crosscoder.analysis.examples.file import Example, LatentExamples
from sae_lens_crosscoder.analysis.examples.text import marked_text, plain_text
from sae_lens_crosscoder.interpretation.embedding import Embedder, unit_embeddings
from sae_lens_crosscoder.interpretation.windows import DrawnWindows

ItemKind = Literal["active", "random", "hard", "right", "wrong"]


@dataclass(frozen=True)
class Item:
    """A text to judge, and what is true of it."""

    text: str
    kind: ItemKind
    """In detection, the latent is `active` or not, in a `random` text or a `hard` one, similar to those in which it is.
    In fuzzing, the `right` tokens are marked or `wrong` ones."""


@dataclass(frozen=True)
class LatentCase:
    """What is asked about one latent; nothing, if it is dead."""

    latent: int
    shown: tuple[tuple[str, ...], ...]
    """Marked texts of its strongest, middle and weakest third."""
    detection: tuple[Item, ...]
    fuzzing: tuple[tuple[Item, ...], ...]
    """Two rounds, each of every text once: in one of them its right tokens are marked, in the other wrong ones."""


class CaseMaker:
    """Makes the cases of latents of one crosscoder; all of them choose their negatives from the same windows."""

    def __init__(
        self, windows: DrawnWindows, tokenizer: Any, embed: Embedder, *, n_shown: int, n_scored: int, seed: int
    ) -> None:
        self._windows, self._tokenizer, self._embed = windows, tokenizer, embed
        self._n_shown, self._n_scored, self._seed = n_shown, n_scored, seed
        self._texts = [plain_text(torch.tensor(ids), tokenizer) for ids in windows.token_ids]
        self._embeddings = unit_embeddings(embed, self._texts)
        self._index = {ids: i for i, ids in enumerate(windows.token_ids)}

    def case(self, examples: LatentExamples, column: int) -> LatentCase:
        """The case of the latent that is in this column of the windows' table."""
        # Of its own, so that a latent's case does not depend on which others are asked about.
        random = np.random.default_rng([self._seed, examples.latent])
        shown, scored = split_contexts(examples, self._n_shown, self._n_scored, random)
        off = ~self._windows.on[:, column]
        # The same text may be on in its own document and off where a window was drawn, and is no negative then.
        for example in chain(examples.top, *examples.quantiles):
            if (at := self._index.get(tuple(example.token_ids.tolist()))) is not None:
                off[at] = False
        return LatentCase(
            latent=examples.latent,
            shown=tuple(tuple(example.text(self._tokenizer) for example in third) for third in shown),
            detection=_shuffled(self._detection(scored, off, random), random) if scored else (),
            fuzzing=self._fuzzing(scored, random),
        )

    def _detection(
        self, scored: Sequence[Example], off: Bool[Tensor, " window"], random: np.random.Generator
    ) -> list[Item]:
        texts = [plain_text(example.token_ids, self._tokenizer) for example in scored]
        free = off.nonzero().flatten().tolist()
        n_drawn = min(len(texts), (len(free) + 1) // 2)  # where there are few, both kinds get some
        drawn: list[int] = random.permutation(free)[:n_drawn].astype(int).tolist()
        off = off.clone()
        off[drawn] = False
        similarity = unit_embeddings(self._embed, texts) @ self._embeddings.T
        hard: list[int] = []
        for row in similarity:
            if bool(off.any()):
                hard.append(int(row.masked_fill(~off, -torch.inf).argmax()))
                off[hard[-1]] = False
        return [
            *(Item(text, "active") for text in texts),
            *(Item(self._texts[i], "random") for i in drawn),
            *(Item(self._texts[i], "hard") for i in hard),
        ]

    def _fuzzing(self, scored: Sequence[Example], random: np.random.Generator) -> tuple[tuple[Item, ...], ...]:
        """Wrong marks are as many as right ones, on tokens where the latent is off; without enough of those, none."""
        pairs: list[tuple[Item, Item]] = []
        for example in scored:
            silent = (example.scores == 0).nonzero().flatten().numpy()
            n_marks = int(example.is_strong.sum())
            if len(silent) >= n_marks:
                elsewhere = torch.zeros_like(example.is_strong)
                elsewhere[random.choice(silent, n_marks, replace=False)] = True
                wrong = marked_text(example.token_ids, elsewhere, self._tokenizer)
                pairs.append((Item(example.text(self._tokenizer), "right"), Item(wrong, "wrong")))
        # In two rounds, because both versions of a text in one prompt could be told apart without the explanation.
        sides = random.permutation(len(pairs)) % 2
        first = [pair[side] for pair, side in zip(pairs, sides, strict=True)]
        second = [pair[1 - side] for pair, side in zip(pairs, sides, strict=True)]
        return (_shuffled(first, random), _shuffled(second, random))


def split_contexts(
    examples: LatentExamples, n_shown: int, n_scored: int, random: np.random.Generator
) -> tuple[list[list[Example]], list[Example]]:
    """Contexts to show, of the strongest, middle and weakest third; and others to score on, of all thirds alike."""
    sample = sorted(chain(*examples.quantiles), key=lambda example: -example.score)
    thirds: list[list[Example]] = [[], [], []]
    for rank, example in enumerate(sample):
        thirds[rank * 3 // len(sample)].append(example)
    border = min((example.score for example in thirds[0]), default=float("inf"))
    scored: list[Example] = []
    for third in thirds:
        random.shuffle(third)  # pyright: ignore[reportArgumentType]
        n = min(n_scored, len(third) // 2)
        scored += third[:n]
        del third[:n]
    taken = {(example.prompt, example.position) for example in scored}
    strongest = [e for e in examples.top if e.score >= border and (e.prompt, e.position) not in taken]
    return [strongest[:n_shown], thirds[1][:n_shown], thirds[2][:n_shown]], scored


def _shuffled(items: Sequence[Item], random: np.random.Generator) -> tuple[Item, ...]:
    return tuple(items[i] for i in random.permutation(len(items)))
