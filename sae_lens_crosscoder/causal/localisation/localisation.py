"""Localisation: KL between the models, and how much of it patching chat's activation into base brings back, by hook."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.arguments import validate_arguments


@dataclass(frozen=True, kw_only=True)
class Localisation:
    """Measurements of `locate_difference`: KL in nats, from the chat model's prediction to the base model's.

    The last token of a prompt is the one that predicts the answer's first token.
    """

    hook_names: tuple[str, ...]
    """In the order of execution."""
    last: Int[Tensor, " prompt"]
    """Position of each prompt's last token."""
    kl: Float[Tensor, "prompt pos"]
    """`KL(p_chat || p_base)` after every token; nan outside the mask."""
    patched_last: Float[Tensor, "hook prompt"]
    """The KL that is left at the last token if base gets chat's activation there."""
    patched_all: Float[Tensor, "hook prompt"]
    """The KL that is left at the last token if base gets chat's activation at all tokens."""
    patched_sum: Float[Tensor, "hook prompt"]
    """The KL that is left after all tokens together if base gets chat's activation at all tokens."""
    norms: Float[Tensor, "hook prompt pos model"]
    """Norm of the activation, base first; nan outside the mask."""
    difference: Float[Tensor, "hook prompt pos"]
    """Norm of chat - base; nan outside the mask."""
    last_activations: Float[Tensor, "hook prompt model d_model"]
    """Activations at the last token."""
    top_ids: Int[Tensor, "prompt pos model top"]
    """The most likely next tokens of both models; -1 where the KL is not among the largest, but for the last token."""
    top_probs: Float[Tensor, "prompt pos model top"]

    @property
    def kl_last(self) -> Float[Tensor, " prompt"]:
        """KL after each prompt's last token."""
        return self.kl[torch.arange(len(self.kl)), self.last]

    @property
    def kl_sum(self) -> Float[Tensor, " prompt"]:
        """Sum of the KL over each prompt's tokens."""
        return self.kl.nansum(dim=-1)

    def differences_last(self) -> Float[Tensor, "hook prompt d_model"]:
        """chat - base at the last token."""
        return self.last_activations[:, :, -1] - self.last_activations[:, :, 0]


@validate_arguments
def share_brought_back(
    patched: Float[Tensor, "*rows prompt"], kl: Float[Tensor, " prompt"], weights: Float[Tensor, "*resample prompt"]
) -> Float[Tensor, "..."]:
    """Share of the KL that a patch brings back, `1 - sum KL(chat || patched) / sum KL(chat || base)`, over prompts.

    1 means that the patched base model predicts as the chat model does, 0 that the patch does nothing, below 0 that it
    leads away. It is nan where the models do not differ.

    Args:
        patched: KL that is left under the patch.
        kl: KL between the models.
        weights: 1 for each prompt to use, 0 for the others; a bootstrap passes the counts of its resamples.

    Returns:
        A share per row of `patched`; for several resamples, these are its first axis.

    >>> share_brought_back(torch.tensor([1.0, 9.0]), torch.tensor([4.0, 9.0]), torch.tensor([1.0, 0.0]))
    tensor(0.7500, dtype=torch.float64)
    """
    weights = weights.double()
    rows, resamples = patched.shape[:-1], weights.shape[:-1]
    left = weights @ patched.double().reshape(-1, patched.shape[-1]).T
    total = weights @ kl.double()
    return (1 - left / total[..., None]).reshape((*resamples, *rows))
