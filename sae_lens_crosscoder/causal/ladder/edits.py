"""Edits of the base model's activation: what latents write, controls of the same energy, means, the true difference."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.causal.patching.intervention import intervention
from sae_lens_crosscoder.crosscoders.two_models import TwoModels

Edit = Callable[[Float[Tensor, "row d_in"], Int[Tensor, " row"]], Float[Tensor, "row d_model"]]
"""From all models' unedited activations, and the place of each in the answer (0 for the decision token), to what is
added to the base model's."""
Conditions = Mapping[str, tuple[Edit, int]]
"""Edits, with the number of latents that write, by the condition's name."""


def biases_of(two: TwoModels) -> Float[Tensor, " d_model"]:
    """Difference of the decoder biases, `b^chat - b^base`."""
    base, chat = two.decoder_biases
    return chat - base


def written_by(two: TwoModels, ids: Sequence[int]) -> Edit:
    """Edit by what latents write of the difference, `sum_j f_j (d_j^chat - d_j^base)`, without the biases."""
    if not ids:
        return constant(torch.zeros_like(biases_of(two))[None])
    replace = intervention(two.crosscoder, list(ids), "replace", models=two.names)

    def edit(stacked: Tensor, places: Tensor) -> Tensor:
        delta = replace.deltas(stacked)[two.places[0]]
        assert delta is not None  # the base model is edited
        return delta

    return edit


def constant(vectors: Float[Tensor, "place d_model"]) -> Edit:
    """Edit by one vector per place of the answer; later places get the last one."""

    def edit(stacked: Tensor, places: Tensor) -> Tensor:
        return vectors[places.clamp(max=len(vectors) - 1).to(vectors.device)].to(stacked)

    return edit


def true_difference(two: TwoModels) -> Edit:
    """Edit by chat - base, so that the base model continues from the chat model's activation."""

    def edit(stacked: Tensor, places: Tensor) -> Tensor:
        base, chat = two.split(stacked)
        return chat - base

    return edit


def total(*edits: Edit, signs: Sequence[int] | None = None) -> Edit:
    """Sum of edits, each with its sign."""
    signed = list(zip(edits, signs or [1] * len(edits), strict=True))

    def edit(stacked: Tensor, places: Tensor) -> Tensor:
        parts = [sign * part(stacked, places) for part, sign in signed]
        return torch.stack([part.to(parts[0]) for part in parts]).sum(dim=0)

    return edit


def of_same_energy(like: Edit, direction: Edit) -> Edit:
    """Edit along `direction`, rescaled token by token to the length of `like`; zero where `direction` is."""

    def edit(stacked: Tensor, places: Tensor) -> Tensor:
        along = direction(stacked, places)
        length = torch.linalg.vector_norm(like(stacked, places), dim=-1, keepdim=True)
        norm = torch.linalg.vector_norm(along, dim=-1, keepdim=True)
        return torch.where(norm > 0, along * (length / norm), torch.zeros_like(along))

    return edit


def noise(two: TwoModels, seed: int) -> Edit:
    """Gaussian noise, drawn anew for every token."""
    generator = torch.Generator().manual_seed(seed)
    width = two.widths[0]

    def edit(stacked: Tensor, places: Tensor) -> Tensor:
        return torch.randn(len(stacked), width, generator=generator).to(stacked)

    return edit
