"""Cases: the texts that each latent is explained from, and the texts that its explanation is scored on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.activations.eval_data import EvalData
from sae_lens_crosscoder.analysis.diagnosis.manifest import provenance
from sae_lens_crosscoder.analysis.examples.collect import tokens_sha256
from sae_lens_crosscoder.analysis.examples.file import Example, ExamplesFile, LatentExamples, load_examples
from sae_lens_crosscoder.analysis.examples.text import marked_text, plain_text
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.folder import CROSSCODER_SHA256
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, validate_inference
from sae_lens_crosscoder.interpretation.embedding import Embedder, unit_embeddings
from sae_lens_crosscoder.interpretation.windows import DrawnWindows, draw_windows
from sae_lens_crosscoder.storage.checksums import named_fingerprint

ItemKind = Literal["active", "random", "hard", "right", "wrong"]


@dataclass(frozen=True)
class Item:
    """A text to judge, with its true kind."""

    text: str
    kind: ItemKind
    """In detection, the latent is `active`, or inactive in a `random` text or a `hard` one that resembles its own. In
    fuzzing, the `right` tokens are marked, or `wrong` ones."""


@dataclass(frozen=True)
class LatentCase:
    """The texts of one latent; empty for a dead one."""

    latent: int
    shown: tuple[tuple[str, ...], ...]
    """Marked texts to explain it from, of its strongest, middle and weakest third."""
    detection: tuple[Item, ...]
    fuzzing: tuple[tuple[Item, ...], ...]
    """Two rounds with every text once each: its right tokens are marked in one round, wrong ones in the other."""


@dataclass(frozen=True)
class InterpretationCases:
    """The cases of all latents to interpret, and their manifest."""

    cases: tuple[LatentCase, ...]
    manifest: dict[str, Any]


@validate_arguments
def interpretation_cases(
    crosscoder: InferenceCrosscoder,
    data: EvalData,
    examples: ExamplesFile | str | Path,
    latent_ids: Sequence[int],
    embed: Embedder,
    *,
    n_shown: int = 5,
    n_scored: int = 5,
    n_windows: int = 5000,
    seed: int = 0,
) -> InterpretationCases:
    """Choose texts to explain every latent from, and others, with negatives, to score the explanation on.

    The uniform sample of contexts in `examples` is split into thirds by their highest activation; the strongest third
    is shown by the strongest contexts of all. No context is both shown and scored, and at most half of a third is
    scored, so a latent with fewer than six sampled contexts has no scores. Negatives are random windows of text in
    which the latent is never active: as many as positives drawn from all of them (`random`), and for every positive the
    one that resembles it most (`hard`).

    A latent's case depends on the seed and the latent, not on the other latents.

    Args:
        data: the tokens that negatives are drawn from, ideally those of the examples, with a pair or as a cache.
            Activations at masked tokens are ignored.
        examples: the file of `collect_examples` for this crosscoder.
        latent_ids: the latents, such as `table.index[table.label == "chat_only"]`.
        embed: function from texts to vectors, such as `sentence_embedder()`; texts are compared by cosine similarity.
        n_shown, n_scored: largest number of contexts of each third to explain from, and to score on.
        n_windows: windows that negatives are chosen from. The models run on the prompts they are in.

    Raises:
        ValueError: for a training crosscoder, another pair, no tokenizer, other examples, latents that do not exist or
            repeat, or numbers below 1; all before the models run.
    """
    crosscoder = validate_inference(crosscoder, "interpretation_cases")
    sizes = {"n_shown": n_shown, "n_scored": n_scored, "n_windows": n_windows}
    file = examples if isinstance(examples, ExamplesFile) else load_examples(examples)
    _validate_arguments(sizes, latent_ids, crosscoder.cfg.d_sae)
    if data.tokenizer is None:
        raise ValueError(
            "interpretation_cases needs a tokenizer to show tokens as text. Load models that have one, or pass "
            "EvalData with a tokenizer."
        )
    if file.manifest[CROSSCODER_SHA256] != named_fingerprint(crosscoder.state_dict()):
        raise ValueError(
            f"The examples in {file.path} belong to another crosscoder: collect them again with collect_examples."
        )
    windows = draw_windows(
        crosscoder,
        _on_cpu(data),
        torch.tensor(list(latent_ids)),
        n_windows=n_windows,
        window=tuple(file.manifest["window"]),
        seed=seed,
    )
    maker = CaseMaker(windows, data.tokenizer, embed, n_shown=n_shown, n_scored=n_scored, seed=seed)
    latents = tqdm(latent_ids, desc="Cases", unit="latent", leave=False)
    cases = tuple(maker.case(file[latent], column) for column, latent in enumerate(latents))
    manifest = {
        **provenance(crosscoder),
        **sizes,
        "cases_seed": seed,
        **tokens_sha256(*data.contexts),
        "examples": {name: file.manifest[name] for name in ("tokens_sha256", "sample_seed", "window")},
    }
    return InterpretationCases(cases, manifest)


def _on_cpu(data: EvalData) -> EvalData:
    tokens, token_mask, documents = (
        None if tensor is None else tensor.cpu() for tensor in (data.tokens, data.token_mask, data.documents)
    )
    return replace(data, tokens=tokens, token_mask=token_mask, documents=documents)


def _validate_arguments(sizes: dict[str, int], latent_ids: Sequence[int], d_sae: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name}={value} is too small: pass at least 1.")
    if len(latent_ids) == 0 or len(set(latent_ids)) < len(latent_ids):
        raise ValueError(f"latent_ids must contain at least one latent and none twice, but is {list(latent_ids)[:10]}.")
    if missing := [latent for latent in latent_ids if not 0 <= latent < d_sae]:
        raise ValueError(f"There is no latent {missing[0]}: this crosscoder has latents 0 to {d_sae - 1}.")


class CaseMaker:
    """Makes the cases of latents of one crosscoder, with negatives from the same windows for all."""

    def __init__(
        self, windows: DrawnWindows, tokenizer: Any, embed: Embedder, *, n_shown: int, n_scored: int, seed: int
    ) -> None:
        self._windows, self._tokenizer, self._embed = windows, tokenizer, embed
        self._n_shown, self._n_scored, self._seed = n_shown, n_scored, seed
        self._texts = [plain_text(torch.tensor(ids), tokenizer) for ids in windows.token_ids]
        self._embeddings = unit_embeddings(embed, self._texts)
        self._index = {ids: i for i, ids in enumerate(windows.token_ids)}

    def case(self, examples: LatentExamples, column: int) -> LatentCase:
        """The case of the latent in this column of the windows' table."""
        # A generator per latent, so that its case does not depend on the other latents.
        random = np.random.default_rng([self._seed, examples.latent])
        shown, scored = split_contexts(examples, self._n_shown, self._n_scored, random)
        inactive = ~self._windows.active[:, column]
        # A text that is active in its own document and inactive where a window was drawn is no negative.
        for example in chain(examples.top, *examples.quantiles):
            if (window := self._index.get(tuple(example.token_ids.tolist()))) is not None:
                inactive[window] = False
        return LatentCase(
            latent=examples.latent,
            shown=tuple(tuple(example.text(self._tokenizer) for example in third) for third in shown),
            detection=_shuffled(self._detection(scored, inactive, random), random) if scored else (),
            fuzzing=self._fuzzing(scored, random),
        )

    def _detection(
        self, scored: Sequence[Example], inactive: Bool[Tensor, " window"], random: np.random.Generator
    ) -> list[Item]:
        texts = [plain_text(example.token_ids, self._tokenizer) for example in scored]
        candidates = inactive.nonzero().flatten().tolist()
        n_drawn = min(len(texts), (len(candidates) + 1) // 2)  # with few candidates, both kinds get some
        drawn: list[int] = random.permutation(candidates)[:n_drawn].astype(int).tolist()
        inactive = inactive.clone()
        inactive[drawn] = False
        similarity = unit_embeddings(self._embed, texts) @ self._embeddings.T
        hard: list[int] = []
        for row in similarity:
            if bool(inactive.any()):
                hard.append(int(row.masked_fill(~inactive, -torch.inf).argmax()))
                inactive[hard[-1]] = False
        return [
            *(Item(text, "active") for text in texts),
            *(Item(self._texts[i], "random") for i in drawn),
            *(Item(self._texts[i], "hard") for i in hard),
        ]

    def _fuzzing(self, scored: Sequence[Example], random: np.random.Generator) -> tuple[tuple[Item, ...], ...]:
        """Texts with as many wrong marks as right ones, on inactive tokens; left out if these are too few."""
        pairs: list[tuple[Item, Item]] = []
        for example in scored:
            silent = (example.scores == 0).nonzero().flatten().numpy()
            n_marks = int(example.is_strong.sum())
            if len(silent) >= n_marks:
                marks = torch.zeros_like(example.is_strong)
                marks[random.choice(silent, n_marks, replace=False)] = True
                wrong = marked_text(example.token_ids, marks, self._tokenizer)
                pairs.append((Item(example.text(self._tokenizer), "right"), Item(wrong, "wrong")))
        # Two rounds, because both versions of a text in one prompt could be told apart without the explanation.
        sides = random.permutation(len(pairs)) % 2
        first = [pair[side] for pair, side in zip(pairs, sides, strict=True)]
        second = [pair[1 - side] for pair, side in zip(pairs, sides, strict=True)]
        return (_shuffled(first, random), _shuffled(second, random))


def split_contexts(
    examples: LatentExamples, n_shown: int, n_scored: int, random: np.random.Generator
) -> tuple[list[list[Example]], list[Example]]:
    """Split contexts into those to show, by strongest, middle and weakest third, and those to score on."""
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
