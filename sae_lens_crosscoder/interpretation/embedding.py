"""Sentence embeddings, for hard negatives: texts that resemble a latent's but do not activate it."""

import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from sae_lens_crosscoder.arguments import validate_arguments

Embedder = Callable[[Sequence[str]], Any]
"""Function from texts to an array (text, dimension), such as a SentenceTransformer's `encode`."""

WORDS = "words"
_N_BUCKETS = 1024


@validate_arguments
def sentence_embedder(name: str = "all-MiniLM-L6-v2", device: str | None = None) -> Embedder:
    """Load a sentence-transformers model, or `words`, which counts words and needs no model.

    Raises:
        ValueError: if sentence-transformers is not installed.
    """
    if name == WORDS:
        return count_words
    try:
        from sentence_transformers import SentenceTransformer  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            f"The embedder {name!r} needs sentence-transformers: pip install 'sae-lens-crosscoder[autointerp]', or use "
            f"{WORDS!r}, which compares texts by their words."
        ) from error
    return SentenceTransformer(name, device=device).encode


def count_words(texts: Sequence[str]) -> Float[Tensor, "text bucket"]:
    """Count the words of each text, hashed into buckets.

    >>> same, different = count_words(["the Cat sat", "a dog"]) @ count_words(["the cat sat"]).T
    >>> same.item(), different.item()
    (3.0, 0.0)
    """
    counts = torch.zeros(len(texts), _N_BUCKETS)
    for row, text in enumerate(texts):
        for word in re.findall(r"\w+", text.lower()):
            counts[row, zlib.crc32(word.encode()) % _N_BUCKETS] += 1  # hash() differs from one process to the next
    return counts


def unit_embeddings(embed: Embedder, texts: Sequence[str]) -> Float[Tensor, "text dimension"]:
    """Embed texts as unit vectors; raises a ValueError unless the embedder returns a finite row per text."""
    rows = torch.as_tensor(embed(texts)).cpu().float()
    if rows.ndim != 2 or len(rows) != len(texts) or not bool(torch.isfinite(rows).all()):
        raise ValueError(
            f"The embedder returned shape {tuple(rows.shape)} for {len(texts)} texts, or values that are not finite. "
            "It must return one row of finite numbers per text."
        )
    return normalize(rows, dim=-1)
