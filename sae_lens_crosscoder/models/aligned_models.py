"""Models with different tokenizers that run as one: they read one text, and tokens with the same end are paired."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.models.alignment import TokenAlignment
from sae_lens_crosscoder.models.generation import context_limit
from sae_lens_crosscoder.models.hook_access import activations_at, stack
from sae_lens_crosscoder.models.loading import tokenizer_difference
from sae_lens_crosscoder.models.splicing import SplicedModels
from sae_lens_crosscoder.stacking import hook_of_model

Alignments = tuple[TokenAlignment | None, ...]


class AlignedModels(SplicedModels):
    """Models that read the same text, each as its own tokenizer writes it."""

    alignments: Alignments
    """For each model, what it reads in place of the last model's tokens; None for these themselves."""

    @property
    def has_one_tokenizer(self) -> bool:
        """True if all models read the same token ids."""
        return not any(self.alignments)

    @validate_arguments
    def aligned(self, tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """True for tokens that end where a token of every other model ends; all, if the models share a tokenizer."""
        kept = torch.ones_like(tokens, dtype=torch.bool)
        for alignment in self.alignments:
            if alignment is not None:
                kept &= (alignment(tokens).places >= 0).to(kept.device)
        return kept

    def validate_aligned(self, tokens: Int[Tensor, "batch pos"], token_mask: Bool[Tensor, "batch pos"]) -> None:
        """Raise a ValueError if the mask has a token that another model has no token for."""
        unpaired = token_mask.to(tokens.device) & ~self.aligned(tokens)
        if bool(unpaired.any()):
            row, position = unpaired.nonzero()[0].tolist()
            raise ValueError(
                f"{int(unpaired.sum())} of {int(token_mask.sum())} tokens end where no token of another model ends, "
                f"such as {self.tokenizer.decode([int(tokens[row, position])])!r} in row {row}, position {position}. "
                "Leave them out: token_mask & pair.aligned(tokens). EvalData does."
            )

    def validate_one_tokenizer(self, purpose: str) -> None:
        """Raise a ValueError for models with different tokenizers, whose tokens and predictions `purpose` compares."""
        if not self.has_one_tokenizer:
            raise ValueError(
                f"{purpose} needs models that read the same token ids, but their tokenizers differ. Activations of "
                "such models can be harvested, trained on, diagnosed and explored; edits and predictions cannot be "
                "compared token by token."
            )

    def _aligned_activations(
        self, tokens: Int[Tensor, "batch pos"], hook_name: str, options: dict[str, Any]
    ) -> Float[Tensor, "batch pos d_in"]:
        """Stacked activations at the places of the last model's tokens; nan for a model without such a token."""
        self._validate_unedited()
        members: list[Any] = list(self.members)
        parts: list[Tensor] = []
        for m, (model, alignment) in enumerate(zip(members, self.alignments, strict=True)):
            parts += aligned_activations_at(model, tokens, hook_of_model(hook_name, m), alignment, **options)
        return stack(parts)

    def _validate_unedited(self) -> None:
        if self.splices or any(point.has_hooks(dir="fwd") for point in self.hook_dict.values()):
            self.validate_one_tokenizer("A hook or an SAE on the pair")


def aligned_activations_at(
    model: Any, tokens: Int[Tensor, "batch pos"], hook_name: str, alignment: TokenAlignment | None, **options: Any
) -> list[Float[Tensor, "batch pos _"]]:
    """One model's activation at each of joined hooks, from the text of the tokens as its own tokenizer writes it."""
    if alignment is None:
        return activations_at(model, tokens, hook_name, **options)
    aligned = alignment(tokens)
    return [aligned.gather(part) for part in activations_at(model, aligned.ids, hook_name, **options)]


def alignments_of(models: Sequence[Any], tokenizers: Sequence[Any], replaced: Collection[int]) -> Alignments:
    """The alignment of each model with the last one's tokens.

    Raises:
        ValueError: for a model without a tokenizer, or with a slow one, and for tokens that are replaced as well.
    """
    if replaced:
        raise ValueError(
            "Pass either token_replacements, for one tokenizer, or align_tokens=True, for several, not both."
        )
    if any(tokenizer is None for tokenizer in tokenizers):
        raise ValueError("align_tokens=True needs every model's tokenizer, but one has none. Load it with the model.")
    *_, last = tokenizers
    return tuple(
        None
        if tokenizer is last or tokenizer_difference(last, tokenizer, ()) is None
        else TokenAlignment(last, tokenizer, context_limit(model))
        for model, tokenizer in zip(models, tokenizers, strict=True)
    )
