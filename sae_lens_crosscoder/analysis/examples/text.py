"""Windows of tokens as text on one line, with some tokens marked."""

import re
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor

# What a tokenizer writes for the first bytes of a character whose last ones have not come yet.
_INCOMPLETE = "\ufffd"
_LINE_BREAK = re.compile("\r\n|[\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029]")
# So that marks are known from quotation marks of the text.
_OTHER_QUOTES = str.maketrans("«»", "\u2039\u203a")


def plain_text(token_ids: Int[Tensor, " pos"], tokenizer: Any) -> str:
    """Decode the tokens, with line breaks written as \\n and «» as ‹›."""
    return _shown(_decoded(token_ids.tolist(), tokenizer))


def marked_text(token_ids: Int[Tensor, " pos"], marked: Bool[Tensor, " pos"], tokenizer: Any) -> str:
    """Decode the tokens with marked ones in «»; a character of several tokens is marked if one of them is."""
    parts: list[str] = []
    in_character = False
    for piece, is_marked in zip(_pieces(token_ids.tolist(), tokenizer), marked.tolist(), strict=True):
        in_character |= is_marked
        if piece:
            parts.append(f"«{_shown(piece)}»" if in_character else _shown(piece))
            in_character = False
    return "".join(parts)


def _pieces(ids: list[int], tokenizer: Any) -> list[str]:
    """Text that each token adds; empty while a character is incomplete."""
    pieces: list[str] = []
    n_shown = 0
    for n in range(1, len(ids) + 1):
        text = _decoded(ids[:n], tokenizer)  # a token alone would lose the space before it
        is_whole = n == len(ids) or not text.endswith(_INCOMPLETE)
        pieces.append(text[n_shown:] if is_whole else "")
        n_shown = len(text) if is_whole else n_shown
    return pieces


def _decoded(ids: list[int], tokenizer: Any) -> str:
    # A clean-up would change text that is already there when more tokens come.
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def _shown(text: str) -> str:
    return _LINE_BREAK.sub(r"\\n", text).translate(_OTHER_QUOTES)
