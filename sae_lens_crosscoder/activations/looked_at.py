"""LookedAt: the few contexts that the models of a pair are compared on before long work."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sae_lens_crosscoder.data.token_mask import right_padding
from sae_lens_crosscoder.models.pair import HookedModelPair

# Logits of a large vocabulary are big: 256 positions of 256,000 float32 are 0.26 GB per model.
KL_POSITIONS, _KL_TOKENS = 256, 256


@dataclass(frozen=True)
class LookedAt:
    """A few contexts that the models are compared on.

    Attributes:
        tokens: ids.
        used: True for tokens whose activations the run uses.
        special: True for special tokens.
    """

    tokens: Int[Tensor, "batch pos"]
    used: Bool[Tensor, "batch pos"]
    special: Bool[Tensor, "batch pos"]

    @classmethod
    def of(cls, tokens: Int[Tensor, "batch pos"], token_mask: Bool[Tensor, "batch pos"], tokenizer: Any) -> "LookedAt":
        """Find the special tokens of the contexts; if the mask uses no token, all count as used."""
        ids, used = tokens.cpu(), token_mask.cpu()
        special = torch.isin(ids, torch.tensor(list(getattr(tokenizer, "all_special_ids", ())), dtype=ids.dtype))
        return cls(ids, used if bool(used.any()) else torch.ones_like(used), special)

    @property
    def predicting(self) -> Bool[Tensor, "batch pos"]:
        """The tokens whose predictions are compared: some of the used ones, evenly spread."""
        row, position = self.used[:, :KL_POSITIONS].nonzero(as_tuple=True)
        step = -(-len(row) // _KL_TOKENS) or 1
        chosen = torch.zeros_like(self.used)
        chosen[row[::step], position[::step]] = True
        return chosen


def pair_looked_at(
    pair: HookedModelPair, tokens: Int[Tensor, "batch pos"], token_mask: Bool[Tensor, "batch pos"]
) -> LookedAt:
    """The contexts as `LookedAt.of` does, with tokens that another model has no token for neither used nor special."""
    aligned = pair.aligned(tokens).cpu()
    looked_at = LookedAt.of(tokens, token_mask.cpu() & aligned, pair.tokenizer)
    return LookedAt(looked_at.tokens, looked_at.used & aligned, looked_at.special & aligned)


def frac_aligned(pair: HookedModelPair, tokens: Int[Tensor, "batch pos"]) -> float | None:
    """The share of tokens, without padding, that end where a token of every model ends; None for one tokenizer.

    Raises:
        ValueError: if there is no such token.
    """
    if pair.has_one_tokenizer:
        return None
    aligned = pair.aligned(tokens)[~right_padding(tokens, pair.tokenizer)]
    if not bool(aligned.any()):
        raise ValueError(
            f"None of {aligned.numel()} tokens ends where a token of every model ends. Check that the rows are of the "
            "last model's tokenizer."
        )
    return float(aligned.float().mean())
