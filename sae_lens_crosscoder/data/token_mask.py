"""Token masks: True for the tokens a run uses, False for padding and everything the config leaves out."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from sae_lens.util import get_special_token_ids
from torch import Tensor

from sae_lens_crosscoder.data.constant_prefix import occurrences, template_prefix


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


@dataclass(frozen=True)
class TokenRule:
    """A runner config's rule for the tokens that it uses.

    >>> TokenRule((1, None), excluded=torch.tensor([0])).mask(torch.tensor([[1, 5, 6, 0]]))
    tensor([[False,  True,  True, False]])
    """

    seqpos_slice: tuple[int | None, ...]
    """The positions of a context to use, as the arguments of `slice`."""
    excluded: Int[Tensor, " excluded"] | None = None
    """Ids to leave out."""
    prefix: Int[Tensor, " prefix"] | None = None
    """A sequence of ids to leave out wherever it stands: what the chat template writes before a user's first words."""

    @classmethod
    def from_config(cls, cfg: Any, tokenizer: Any) -> "TokenRule":
        """The rule of a runner config; SAELens's own configs have no prefix and no padding."""
        return cls(tuple(cfg.seqpos_slice), excluded_ids(cfg, tokenizer), _excluded_prefix(cfg, tokenizer))

    def mask(self, tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """True for tokens to use: inside the slice, of other ids, and not part of the prefix."""
        token_mask = torch.zeros_like(tokens, dtype=torch.bool)
        token_mask[:, slice(*self.seqpos_slice)] = True
        if self.excluded is not None:
            token_mask &= ~torch.isin(tokens, self.excluded.to(tokens.device))
        return token_mask if self.prefix is None else token_mask & ~occurrences(tokens, self.prefix)


def _excluded_prefix(cfg: Any, tokenizer: Any) -> Int[Tensor, " prefix"] | None:
    sources: Any = getattr(getattr(cfg, "mix", None), "sources", ())
    excludes = getattr(cfg, "exclude_constant_prefix", False)
    if excludes is None:
        excludes = any(source.kind == "answers" for source in sources)
    return template_prefix(tokenizer) if excludes else None


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


def right_padding(tokens: Int[Tensor, "batch pos"], tokenizer: Any) -> Bool[Tensor, "batch pos"]:
    """True for padding: the tokenizer's padding id, repeated up to the end of a row.

    Where that id also ends documents, the first of these tokens is the document's end.

    >>> from types import SimpleNamespace
    >>> tokens = torch.tensor([[5, 0, 7, 0, 0]])
    >>> right_padding(tokens, SimpleNamespace(pad_token_id=0, eos_token_id=1)).tolist()
    [[False, False, False, True, True]]
    >>> right_padding(tokens, SimpleNamespace(pad_token_id=0, eos_token_id=0)).tolist()
    [[False, False, False, False, True]]
    """
    padding = getattr(tokenizer, "pad_token_id", None)
    if padding is None:
        return torch.zeros_like(tokens, dtype=torch.bool)
    trailing = (tokens == padding).flip(1).long().cumprod(dim=1).flip(1).bool()
    if padding in (getattr(tokenizer, name, None) for name in ("bos_token_id", "eos_token_id")):
        before = torch.zeros_like(trailing)
        before[:, 1:] = trailing[:, :-1]
        return trailing & before
    return trailing
