"""Sentence embeddings, by which texts are found that resemble a latent's own but do not activate it."""

import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

Embedder = Callable[[Sequence[str]], Any]
"""Texts to an array (text, dimension), such as a SentenceTransformer's `encode`."""

WORDS = "words"
_N_BUCKETS = 1024


def sentence_embedder(name: str = "all-MiniLM-L6-v2", device: str | None = None) -> Embedder:
    """The sentence-transformers model of that name, or `words`: the words a text has, which needs no model.

    Raises:
        ValueError: if sentence-transformers is not installed.
    """
    if name == WORDS:
        return count_words
    try:
        from sentence_transformers import SentenceTransformer  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            f"The embedder {name!r} needs sentence-transformers: pip install 'sae-lens-crosscoder[autointerp]', or "
            f"choose {WORDS!r}, which compares texts by their words."
        ) from error
    return SentenceTransformer(name, device=device).encode


def count_words(texts: Sequence[str]) -> Float[Tensor, "text bucket"]:
    """How often each word is in each text, words being hashed into buckets.

    >>> same, other = count_words(["the Cat sat", "a dog"]) @ count_words(["the cat sat"]).T
    >>> same.item(), other.item()
    (3.0, 0.0)
    """
    counts = torch.zeros(len(texts), _N_BUCKETS)
    for row, text in enumerate(texts):
        for word in re.findall(r"\w+", text.lower()):
            counts[row, zlib.crc32(word.encode()) % _N_BUCKETS] += 1  # hash() differs from one process to the next
    return counts


def unit_embeddings(embed: Embedder, texts: Sequence[str]) -> Float[Tensor, "text dimension"]:
    """Embeddings of length 1, or a ValueError if the embedder gives anything but a finite row per text."""
    rows = torch.as_tensor(embed(texts)).cpu().float()
    if rows.ndim != 2 or len(rows) != len(texts) or not bool(torch.isfinite(rows).all()):
        raise ValueError(
            f"The embedder made of {len(texts)} texts an array of shape {tuple(rows.shape)}, or numbers that are NaN: "
            "it must give a row of finite numbers per text."
        )
    return normalize(rows, dim=-1)
