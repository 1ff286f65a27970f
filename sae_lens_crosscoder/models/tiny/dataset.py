"""The built-in corpus: rows of token ids and labels, cut from an endless stream of generated documents."""

from collections.abc import Iterator
from random import Random
from typing import Final

import numpy as np
from datasets import Dataset
from jaxtyping import Int

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.models.tiny.dialogues import Split, as_control, dialogue_document, forum_document
from sae_lens_crosscoder.models.tiny.documents import Mix, Span, plain_document
from sae_lens_crosscoder.models.tiny.vocabulary import TOKEN_IDS

TINY_CONTEXT_SIZE: Final = 64
FRAC_TEMPLATED: Final = {"base": 0.25, "chat": 0.5, "control": 0.5}


def documents(rng: Random, mix: Mix, split: Split) -> Iterator[list[Span]]:
    """Endless documents: plain text, and the mix's fraction of templated ones."""
    while True:
        if rng.random() >= FRAC_TEMPLATED[mix]:
            yield plain_document(rng, mix)
        elif mix == "base":
            yield forum_document(rng, split)
        else:
            yield dialogue_document(rng, split, as_control if mix == "control" else None)


def labelled_rows(n_rows: int, seed: int, mix: Mix, split: Split = "train") -> Int[np.ndarray, "3 rows pos"]:
    """Token ids, kinds and roles of packed rows; see `tiny_dataset`."""
    stream = documents(Random(f"rows/{mix}/{split}/{seed}"), mix, split)
    rows = np.empty((3, n_rows, TINY_CONTEXT_SIZE), dtype=np.int64)
    for row in range(n_rows):
        ids: list[int] = []
        kinds: list[int] = []
        roles: list[int] = []
        while len(ids) < TINY_CONTEXT_SIZE:
            for text, kind, role in next(stream):
                words = text.split()
                ids += [TOKEN_IDS[word] for word in words]
                kinds += [kind] * len(words)
                roles += [role] * len(words)
        for place, values in enumerate((ids, kinds, roles)):
            rows[place, row] = values[:TINY_CONTEXT_SIZE]
    return rows


@validate_arguments
def tiny_dataset(n_rows: int, seed: int, mix: Mix = "chat", split: Split = "train") -> Dataset:
    """Rows of `TINY_CONTEXT_SIZE` labelled tokens; the same arguments give the same rows.

    A row packs documents, each starting with `<bos>`; the last one is cut at the row's end. As in ordinary packed
    pre-training, attention is not masked between the documents of a row: tokens see earlier documents, which are
    independent of theirs, and the models have learned to ignore them.

    Args:
        n_rows: number of rows.
        seed: seed of the stream; the training corpus used the seeds in `weights/behaviour.json`.
        mix: `chat` (half plain text, half dialogues) or `base` (three quarters plain text, a quarter forum threads,
            in which the new kinds of request get unrelated replies), in fractions of documents; `control` is `chat`
            with other answers and the plain text of `base`.
        split: `train`, or `held_out` for dialogues of combinations that no model was trained on.

    Returns:
        Columns `input_ids`, `kind` (per token, an index of `TINY_KINDS`) and `role` (per token: 0 plain text,
        1 user, 2 assistant, 3 template token).
    """
    input_ids, kinds, roles = labelled_rows(n_rows, seed, mix, split)
    return Dataset.from_dict({"input_ids": input_ids, "kind": kinds, "role": roles})
