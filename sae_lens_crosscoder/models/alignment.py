"""Tokens of two tokenizers for one text, aligned by the characters at which they end."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float, Int
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

_ROLES = ("bos_token_id", "eos_token_id")


def aligned_ends(ends: Sequence[int | None], other_ends: Sequence[int | None]) -> list[int]:
    """For each token, the place of the other tokenizer's token that ends at the same character; -1 if there is none.

    Args:
        ends, other_ends: the character of one text at which each token ends; None for a token that ends within one. Of
            several tokens with one end, the last one completes it.

    >>> aligned_ends([3, 5, 9], [1, 3, 9])  # "the", "re", "fore" beside "t", "he", "refore"
    [1, -1, 2]
    """
    own, other = ({end: place for place, end in enumerate(each) if end is not None} for each in (ends, other_ends))
    return [other.get(end, -1) if end is not None and own[end] == place else -1 for place, end in enumerate(ends)]


def spelled(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[str, list[int | None]]:
    """The text that ids spell, and the character at which each ends; None where a character is not complete yet."""
    stream = DecodeStream(skip_special_tokens=False)
    chunks: list[str] = []
    ends: list[int | None] = []
    n_characters = 0
    for token in ids:
        chunk = stream.step(tokenizer, token)
        if chunk is not None:
            chunks.append(chunk)
            n_characters += len(chunk)
        ends.append(None if chunk is None else n_characters)
    return "".join(chunks), ends


@dataclass(frozen=True)
class AlignedTokens:
    """The text of some rows of tokens as another tokenizer writes it."""

    ids: Int[Tensor, "batch _"]
    """The other tokenizer's ids, padded on the right."""
    places: Int[Tensor, "batch pos"]
    """For each of the given tokens, the position in `ids` that ends at the same character; -1 if there is none."""

    def gather(self, activation: Float[Tensor, "batch _ width"]) -> Float[Tensor, "batch pos width"]:
        """Activations of `ids` at the places of the given tokens; nan at a token without one."""
        places = self.places.to(activation.device)[..., None]
        read = activation.gather(1, places.clamp(min=0).expand(-1, -1, activation.shape[-1]))
        return torch.where(places >= 0, read, torch.nan)


class TokenAlignment:
    """The text of tokens as another tokenizer writes it, for the model that reads it.

    A control token is read as the other tokenizer's token of the same role (BOS, EOS) or spelling. Without one, BOS,
    padding and the unknown token are left out, and any other is read as the characters that it is written with. A row
    of a tokenizer without BOS gets the other tokenizer's.

    Args:
        tokenizer: of the tokens that are given.
        other: of the model that reads the text.
        n_ctx: the longest row that this model reads; what goes beyond has no place.

    Raises:
        ValueError: for a tokenizer that does not tell at which characters its tokens end.
    """

    def __init__(self, tokenizer: Any, other: Any, n_ctx: int | None = None) -> None:
        self._own, self._other = _backend(tokenizer), _backend(other)
        self._n_ctx = n_ctx
        self._counterparts = _counterparts(tokenizer, other, self._other)
        lacks_bos = getattr(tokenizer, "bos_token_id", None) is None
        bos = getattr(other, "bos_token_id", None)
        self._start = [bos] if lacks_bos and bos is not None else []
        self._filler = next((i for i in (getattr(other, "pad_token_id", None), bos) if i is not None), 0)
        self._last: tuple[Tensor, AlignedTokens] | None = None

    def __call__(self, tokens: Int[Tensor, "batch pos"]) -> AlignedTokens:
        """The other tokenizer's ids of each row, on the CPU; the last answer is kept."""
        tokens = tokens.cpu()
        if self._last is None or not torch.equal(self._last[0], tokens):
            rows = [self._row(row) for row in tokens.tolist()]
            ids = [torch.tensor(row_ids or [self._filler]) for row_ids, _ in rows]
            padded = pad_sequence(ids, batch_first=True, padding_value=self._filler)
            places = torch.tensor([row_places for _, row_places in rows])
            n_ctx = padded.shape[1] if self._n_ctx is None else self._n_ctx
            places[places >= n_ctx] = -1
            self._last = tokens.clone(), AlignedTokens(padded[:, :n_ctx], places)
        return self._last[1]

    def _row(self, row: list[int]) -> tuple[list[int], list[int]]:
        """The other tokenizer's ids of one row, and the place of each of its tokens among them."""
        ids, places = list(self._start), list[int]()
        for is_control, run in groupby(row, key=self._counterparts.__contains__):
            if is_control:
                for token in run:
                    ids += self._counterparts[token]
                    places.append(len(ids) - 1 if self._counterparts[token] else -1)
                continue
            text, ends = spelled(self._own, list(run))
            encoding = self._other.encode(text, add_special_tokens=False)
            aligned = aligned_ends(ends, _ends(self._other, text, encoding))
            places += [place if place < 0 else len(ids) + place for place in aligned]
            ids += encoding.ids
        return ids, places


def _ends(tokenizer: Tokenizer, text: str, encoding: Any) -> Sequence[int | None]:
    """The character of a text at which each of its tokens ends, from its offsets if decoding does not give it back.

    Offsets come second, because byte-level tokenizers take spaces off the ends.
    """
    again, ends = spelled(tokenizer, encoding.ids)
    return ends if again == text else [end for _, end in encoding.offsets]


def _counterparts(tokenizer: Any, other: Any, other_backend: Tokenizer) -> dict[int, list[int]]:
    """What the other model reads in place of each control token; nothing for one without a counterpart."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    controls: set[int] = {int(i) for i in (*tokenizer.all_special_ids, *added) if i is not None}
    vocabulary = other.get_vocab()
    roles = {getattr(tokenizer, role, None): getattr(other, role, None) for role in reversed(_ROLES)}
    silent = {getattr(tokenizer, role, None) for role in ("bos_token_id", "pad_token_id", "unk_token_id")}
    found: dict[int, list[int]] = {}
    for i in controls:
        written = str(tokenizer.convert_ids_to_tokens(i))
        same = roles.get(i) if roles.get(i) is not None else vocabulary.get(written)
        if same is not None and (i in roles or i not in silent):
            found[i] = [int(same)]
        elif i in silent:
            found[i] = []
        else:
            found[i] = list(other_backend.encode(written, add_special_tokens=False).ids)
    return found


def _backend(tokenizer: Any) -> Tokenizer:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if isinstance(backend, Tokenizer):
        return backend
    raise ValueError(
        f"A {type(tokenizer).__name__} does not tell at which characters its tokens end, so tokens cannot be aligned. "
        "Load a fast tokenizer, one with a tokenizer.json."
    )
