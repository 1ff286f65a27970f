"""Which tokens of a context count: not padding, and nothing that the run leaves out."""

from typing import Any

import torch
from jaxtyping import Bool, Int
from sae_lens.util import get_special_token_ids
from torch import Tensor


def padding_id(cfg: Any, tokenizer: Any) -> int:
    """The id that fills a context after its only document; tokens with this id are left out wherever they stand.

    Args:
        cfg: a runner config; its `padding_token` is an id, or None for the tokenizer's own.

    Raises:
        ValueError: when there is none, or it is one that documents hold.
    """
    found = cfg.padding_token
    if found is None:
        found = getattr(tokenizer, "pad_token_id", None)
    ends = (getattr(tokenizer, name, None) for name in ("bos_token_id", "eos_token_id"))
    documents_hold = {int(token) for token in ends if token is not None}
    if found is None or found in documents_hold:
        raise ValueError(
            f"packing='one_document' needs an id for padding that no document holds, but this one is {found} "
            f"(beginning and end of text are {sorted(documents_hold)}): set padding_token to an unused id."
        )
    return int(found)


def excluded_tokens(cfg: Any, tokenizer: Any) -> Int[Tensor, " excluded"] | None:
    """Ids that a runner config leaves out: `exclude_special_tokens` and padding; None if there are none."""
    excluded: list[int] = []
    if cfg.exclude_special_tokens is True:
        excluded += get_special_token_ids(tokenizer)
    elif cfg.exclude_special_tokens:
        excluded += cfg.exclude_special_tokens
    if getattr(cfg, "packing", None) == "one_document":  # which SAELens's own configs know nothing of
        excluded.append(padding_id(cfg, tokenizer))
    return torch.tensor(sorted(set(excluded))) if excluded else None


def kept_tokens(
    tokens: Int[Tensor, "batch pos"], seqpos_slice: tuple[int | None, ...], excluded: Int[Tensor, " excluded"] | None
) -> Bool[Tensor, "batch pos"]:
    """The tokens of which activations are used.

    >>> kept_tokens(torch.tensor([[1, 5, 6, 0]]), seqpos_slice=(1, None), excluded=torch.tensor([0]))
    tensor([[False,  True,  True, False]])
    """
    kept = torch.zeros_like(tokens, dtype=torch.bool)
    kept[:, slice(*seqpos_slice)] = True
    return kept if excluded is None else kept & ~torch.isin(tokens, excluded.to(tokens.device))


def kept_or_all(tokens: Tensor, keep: Tensor | None) -> Bool[Tensor, "batch pos"]:
    """Which tokens are kept, where None stands for all; a ValueError for a `keep` of another shape."""
    if keep is None:
        return torch.ones_like(tokens, dtype=torch.bool)
    if keep.shape != tokens.shape:
        raise ValueError(f"keep has shape {tuple(keep.shape)}, but tokens {tuple(tokens.shape)}: give one for each.")
    return keep
