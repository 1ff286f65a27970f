"""BOS, the token that begins a text, told from a turn marker with the same id."""

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def bos_marks_turns(tokenizer: Any) -> bool:
    """True if the chat template writes the BOS token within conversations too, as ChatML with BOS `<|im_start|>`.

    Such a token is BOS only where a row begins; elsewhere it is a token of the template.
    """
    bos_id = getattr(tokenizer, "bos_token_id", None)
    if bos_id is None or getattr(tokenizer, "chat_template", None) is None:
        return False
    messages = [{"role": role, "content": ""} for role in ("user", "assistant", "user")]
    text: str = tokenizer.apply_chat_template(messages, tokenize=False)
    return bos_id in tokenizer(text, add_special_tokens=False)["input_ids"][1:]


def document_start_id(tokenizer: Any) -> int | None:
    """The id that begins every document, also within a row; None if there is none, or if it also marks turns."""
    return None if bos_marks_turns(tokenizer) else getattr(tokenizer, "bos_token_id", None)


def is_bos(tokens: Int[Tensor, "*batch pos"], tokenizer: Any) -> Bool[Tensor, "*batch pos"]:
    """True for BOS tokens: anywhere, or only at the start of a row if the same token also marks turns."""
    bos_id = getattr(tokenizer, "bos_token_id", None)
    if bos_id is None:
        return torch.zeros_like(tokens, dtype=torch.bool)
    found = tokens == bos_id
    if bos_marks_turns(tokenizer):
        found[..., 1:] = False
    return found
