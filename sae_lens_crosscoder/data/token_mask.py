"""Token masks: True for the tokens a run uses, False for padding and everything the config leaves out."""

from typing import Any

import torch
from jaxtyping import Bool, Int
from sae_lens.util import get_special_token_ids
from torch import Tensor


def padding_id(cfg: Any, tokenizer: Any) -> int:
    """The id that pads a context after its only document; tokens with this id are masked everywhere.

    Args:
        cfg: a runner config; its `padding_token` is an id, or None for the tokenizer's own.

    Raises:
        ValueError: without such an id, or for one that documents contain.
    """
    padding = cfg.padding_token
    if padding is None:
        padding = getattr(tokenizer, "pad_token_id", None)
    ends = (getattr(tokenizer, name, None) for name in ("bos_token_id", "eos_token_id"))
    document_ids = {int(token) for token in ends if token is not None}
    if padding is None or padding in document_ids:
        raise ValueError(
            f"packing='one_document' needs a padding id that no document contains, got {padding} (beginning and end "
            f"of text are {sorted(document_ids)}). Set padding_token to an unused id."
        )
    return int(padding)


def excluded_ids(cfg: Any, tokenizer: Any) -> Int[Tensor, " excluded"] | None:
    """Token ids that a runner config leaves out: `exclude_special_tokens` and padding; None if there are none."""
    excluded: list[int] = []
    if cfg.exclude_special_tokens is True:
        excluded += get_special_token_ids(tokenizer)
    elif cfg.exclude_special_tokens:
        excluded += cfg.exclude_special_tokens
    if getattr(cfg, "packing", None) == "one_document":  # SAELens's own configs have no `packing`
        excluded.append(padding_id(cfg, tokenizer))
    return torch.tensor(sorted(set(excluded))) if excluded else None


def make_token_mask(
    tokens: Int[Tensor, "batch pos"], seqpos_slice: tuple[int | None, ...], excluded: Int[Tensor, " excluded"] | None
) -> Bool[Tensor, "batch pos"]:
    """True for tokens inside the slice of positions whose id is not excluded.

    >>> make_token_mask(torch.tensor([[1, 5, 6, 0]]), seqpos_slice=(1, None), excluded=torch.tensor([0]))
    tensor([[False,  True,  True, False]])
    """
    token_mask = torch.zeros_like(tokens, dtype=torch.bool)
    token_mask[:, slice(*seqpos_slice)] = True
    return token_mask if excluded is None else token_mask & ~torch.isin(tokens, excluded.to(tokens.device))


def as_token_mask(tokens: Int[Tensor, "batch pos"], token_mask: Tensor | None) -> Bool[Tensor, "batch pos"]:
    """The mask itself, or True everywhere for None.

    Raises:
        ValueError: for a mask of another shape than the tokens.
    """
    if token_mask is None:
        return torch.ones_like(tokens, dtype=torch.bool)
    if token_mask.shape != tokens.shape:
        raise ValueError(
            f"token_mask has shape {tuple(token_mask.shape)}, expected {tuple(tokens.shape)}: one entry per token."
        )
    return token_mask


def validate_padding(tokens: Int[Tensor, "batch pos"], token_mask: Bool[Tensor, "_ _"] | None, tokenizer: Any) -> None:
    """Raise a ValueError for padding on the left, which moves the other tokens to later positions.

    Padding is the tokenizer's padding id, masked or repeated. Where that id also begins or ends documents, and without
    a tokenizer, padding is an id that is masked and stands at the start of a row three times or more.
    """
    if tokens.ndim != 2 or tokens.numel() == 0:
        return
    masked = ~as_token_mask(tokens, token_mask).to(tokens.device)
    padding = getattr(tokenizer, "pad_token_id", None)
    ends = (getattr(tokenizer, name, None) for name in ("bos_token_id", "eos_token_id"))
    if padding is not None and padding not in ends:
        is_padding = tokens == padding
        starts = is_padding[:, 0] & (masked[:, 0] | is_padding[:, :2].all(dim=1))
    else:
        is_padding = (tokens == tokens[:, :1]) & masked & (padding is None or tokens[:, :1] == padding)
        starts = is_padding[:, :3].all(dim=1)
    is_padded = starts & ~is_padding.all(dim=1)
    if bool(is_padded.any()):
        row = int(is_padded.nonzero()[0])
        raise ValueError(
            f"Row {row} of tokens starts with padding (id {int(tokens[row, 0])}). Padding on the left changes the "
            "positions and activations of all later tokens, masked or not: pad on the right."
        )
