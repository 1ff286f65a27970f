"""Where an analysis gets its activations: batches, of which those it has seen before can be left out."""

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.activations.cache import ActivationCache
from sae_lens_crosscoder.activations.checks import require_finite
from sae_lens_crosscoder.activations.fingerprint import fingerprint
from sae_lens_crosscoder.activations.harvest import harvest
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, require_hook_name
from sae_lens_crosscoder.models.pair import HookedModelPair

# Tokens encoded at a time, and (at least) in one of the blocks that a bootstrap resamples.
BATCH_TOKENS = 2048
_SHARD_BLOCK = 256

Batches = Iterable[Float[Tensor, "_ d_in"]]
Activations = Float[Tensor, "token d_in"] | Batches


class HarvestedActivations:
    """Activations of given tokens, for which the models run; not for those that are left out."""

    def __init__(self, pair: HookedModelPair, tokens: Tensor, hook_name: str, batch_size_prompts: int) -> None:
        self._pair, self._tokens, self._hook_name = pair, tokens, hook_name
        self._batch_size_prompts = batch_size_prompts
        self.n_tokens = tokens.numel()

    def fingerprint(self) -> str:
        """A text by which another source is told from this one."""
        return fingerprint([self._tokens, torch.tensor(self._batch_size_prompts)])

    def after(self, n_batches: int) -> Batches:
        """All but the first batches."""
        rest = self._tokens[n_batches * self._batch_size_prompts :]
        if n_batches > 0 and len(rest) == 0:
            return []
        return harvest(self._pair, rest, self._hook_name, self._batch_size_prompts)


class GivenActivations:
    """Activations that someone else made; those that are left out are read all the same if they come one by one.

    Args:
        batch_size: tokens in a batch of a tensor.
    """

    def __init__(self, activations: Activations, batch_size: int = BATCH_TOKENS) -> None:
        self.n_tokens = len(activations) if isinstance(activations, Tensor | ActivationCache) else None
        self._batches = iter(activations.split(batch_size) if isinstance(activations, Tensor) else activations)

    def fingerprint(self) -> str:
        """As far as the number of tokens and the first batch tell."""
        first = list(islice(self._batches, 1))
        self._batches = chain(first, self._batches)
        return f"{self.n_tokens} {fingerprint(first)}"

    def after(self, n_batches: int) -> Batches:
        n_skipped = sum(1 for _ in islice(self._batches, n_batches))
        if n_skipped < n_batches:
            raise ValueError(
                f"The checkpoint holds {n_batches} batches, but the activations are only {n_skipped}: go on with the "
                "same activations, or delete the checkpoint to start anew."
            )
        return self._batches


DataSource = HarvestedActivations | GivenActivations


def data_source(
    crosscoder: InferenceCrosscoder,
    pair: HookedModelPair | None,
    tokens: Tensor | None,
    activations: Activations | None,
    batch_size_prompts: int,
    purpose: str,
) -> DataSource:
    """Whichever was given, a pair with tokens or activations, or a ValueError if that is neither or both."""
    if activations is not None:
        if pair is not None or tokens is not None:
            raise ValueError("Give either a pair with tokens or activations, not both.")
        if isinstance(activations, ActivationCache):
            metadata = crosscoder.cfg.metadata
            activations.require_of((metadata.model_name, metadata.chat_model_name), metadata.hook_name)
        return GivenActivations(activations)
    if pair is None or tokens is None:
        raise ValueError(f"{purpose} needs data: give pair= and tokens= (batch, pos), or activations=.")
    metadata = crosscoder.cfg.metadata
    pair.require_trained_on(metadata.model_name, metadata.chat_model_name)
    return HarvestedActivations(pair, tokens, require_hook_name(crosscoder), batch_size_prompts)


class Encoded(NamedTuple):
    """Tokens, and what a crosscoder makes of them."""

    activations: Float[Tensor, "token d_in"]
    feature_acts: Float[Tensor, "token d_sae"]
    """Sparse."""
    reconstruction: Float[Tensor, "token d_in"]


def encoded(crosscoder: InferenceCrosscoder, batch: Float[Tensor, "_ d_in"], n_seen: int) -> Iterator[Encoded]:
    """A batch in parts that are small enough to encode, in the crosscoder's precision and on its device.

    Raises:
        ValueError: for activations that are NaN or infinite; `n_seen` tokens before them were not.
    """
    require_finite(batch.to(crosscoder.W_dec), crosscoder.layout, f"after the first {n_seen}")
    for part in batch.split(BATCH_TOKENS):
        part = part.to(crosscoder.W_dec)  # which may overflow
        feature_acts = crosscoder.encode_sparse(part)
        yield Encoded(part, feature_acts, crosscoder.decode(feature_acts))


def shard_block(tokens: Tensor | None) -> int:
    """How many consecutive tokens a bootstrap keeps together, whole contexts if they are known.

    Tokens of one context are not independent, so a context must not be spread over shards.
    """
    context_size = 1 if tokens is None else tokens.shape[-1]
    return max(1, _SHARD_BLOCK // context_size) * context_size
