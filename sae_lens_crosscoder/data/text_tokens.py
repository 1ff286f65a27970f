"""Tokens of plain texts, in the form of a conversation's."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from sae_lens_crosscoder.data.beginnings import is_bos
from sae_lens_crosscoder.data.chat_tokens import ChatTokens

_ROLE = "text"


def text_tokens(input_ids: Int[Tensor, " pos"], tokenizer: Any) -> ChatTokens:
    """Describe plain text as one message of nobody, so that models can continue it as they answer conversations.

    Args:
        input_ids: its tokens, with the beginning-of-sequence token if the model expects one.
    """
    bos = is_bos(input_ids, tokenizer)
    nothing = torch.zeros_like(input_ids)
    return ChatTokens(input_ids, nothing - bos.long(), (_ROLE,), bos, nothing)
