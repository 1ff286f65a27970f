"""Embedders are found by name, and a missing one says which extra brings it."""

import sys

import pytest
import torch

from sae_lens_crosscoder.interpretation import sentence_embedder
from sae_lens_crosscoder.interpretation.embedding import unit_embeddings


def test_texts_with_the_same_words_are_the_same():
    words = sentence_embedder("words")
    a, b, c, d = unit_embeddings(words, ["The cat, the dog", "dog the cat the", "rain tomorrow", "the cat"])
    torch.testing.assert_close(a @ b, torch.tensor(1.0))
    assert a @ c == 0
    assert a @ d == pytest.approx(3 / (6**0.5 * 2**0.5))


def test_a_text_without_words_resembles_nothing():
    rows = unit_embeddings(sentence_embedder("words"), ["...", "the cat"])
    assert rows[0].abs().sum() == 0


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ValueError, match=r"pip install 'sae-lens-crosscoder\[autointerp\]', or use 'words'"):
        sentence_embedder()


def test_sentence_transformers_are_asked_for_by_name(monkeypatch):
    """With a stand-in of the library, which is not installed everywhere."""

    class SentenceTransformer:
        def __init__(self, name, device):
            self.named = (name, device)

        def encode(self, texts):
            return [[len(text), len(self.named[0])] for text in texts]

    monkeypatch.setitem(sys.modules, "sentence_transformers", sys)
    monkeypatch.setattr(sys, "SentenceTransformer", SentenceTransformer, raising=False)
    embed = sentence_embedder(device="cpu")
    assert embed(["abc"]) == [[3, len("all-MiniLM-L6-v2")]]
    assert embed.__self__.named == ("all-MiniLM-L6-v2", "cpu")
