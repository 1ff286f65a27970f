"""Texts of single tokens."""

from functools import cached_property
from typing import Any

_REPLACEMENT = "\ufffd"


class TokenTexts:
    """The text of every token as it appears after another token, including a leading space.

    A token that is part of a character appears as its vocabulary's piece, such as `<0xE2>`. Without a tokenizer, tokens
    appear as their ids.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[int, str] = {}

    def __call__(self, token_id: int) -> str:
        text = self._texts.get(token_id)
        if text is None:
            text = self._texts[token_id] = self._read(token_id)
        return text

    def _read(self, token_id: int) -> str:
        if self._tokenizer is None:
            return f" {token_id}"
        after, alone = self._reference
        text: str = self._tokenizer.decode([after, token_id]).removeprefix(alone)
        if _REPLACEMENT in text:
            text = str(self._tokenizer.convert_ids_to_tokens(token_id))
        return text

    @cached_property
    def _reference(self) -> tuple[int, str]:
        """An ordinary token and its text, to decode others after it: tokenizers drop a text's leading space."""
        special = set(self._tokenizer.all_special_ids)
        for token_id in range(len(self._tokenizer)):
            text: str = self._tokenizer.decode([token_id])
            if token_id not in special and text.strip().isalpha():
                return token_id, text
        return 0, str(self._tokenizer.decode([0]))
