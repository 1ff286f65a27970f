"""Codes and reconstructions of batches of activations."""

from collections.abc import Iterator
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.activations.harvest import validate_activations
from sae_lens_crosscoder.analysis.inputs import BATCH_TOKENS
from sae_lens_crosscoder.crosscoders.compared import ComparedSources, cut_to
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder


class Encoded(NamedTuple):
    """Activations, and the crosscoder's encoding and reconstruction of them."""

    activations: Float[Tensor, "token d_in"]
    feature_acts: Float[Tensor, "token d_sae"]
    """Sparse."""
    reconstruction: Float[Tensor, "token d_in"]


class Code(NamedTuple):
    """Activations, and the crosscoder's encoding of them."""

    activations: Float[Tensor, "token d_in"]
    feature_acts: Float[Tensor, "token d_sae"]
    """Sparse."""


def of_compared(part: Encoded, crosscoder: InferenceCrosscoder, compared: ComparedSources | None) -> Encoded:
    """The tokens as two compared sources see them, with the code of all; None changes nothing."""
    if compared is None:
        return part
    activations, reconstruction = (
        cut_to(stacked, crosscoder, compared.places) for stacked in (part.activations, part.reconstruction)
    )
    return Encoded(activations, part.feature_acts, reconstruction)


def encoded(crosscoder: InferenceCrosscoder, batch: Float[Tensor, "_ d_in"], n_seen: int) -> Iterator[Encoded]:
    """Encode and reconstruct a batch, as `codes` does in parts."""
    for code in codes(crosscoder, batch, n_seen):
        yield Encoded(*code, crosscoder.decode(code.feature_acts))


def codes(crosscoder: InferenceCrosscoder, batch: Float[Tensor, "_ d_in"], n_seen: int) -> Iterator[Code]:
    """Encode a batch in parts of at most 2048 tokens, in the crosscoder's precision and on its device.

    Raises:
        ValueError: for activations that are NaN or infinite; `n_seen` tokens before them were not.
    """
    validate_activations(batch.to(crosscoder.W_dec), crosscoder.layout, f"after the first {n_seen}")
    for part in batch.split(BATCH_TOKENS) if len(batch) else ():
        part = part.to(crosscoder.W_dec)  # which may overflow
        yield Code(part, crosscoder.encode_sparse(part))
