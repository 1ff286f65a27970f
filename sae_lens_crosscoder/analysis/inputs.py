"""Batches of activations from EvalData for one crosscoder, and their encodings."""

from collections.abc import Iterator
from itertools import chain, islice
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.activations.cache.reader import ActivationCache
from sae_lens_crosscoder.activations.eval_data import Activations, Batches, EvalData
from sae_lens_crosscoder.activations.harvest import harvest, validate_activations
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, hook_name_of
from sae_lens_crosscoder.data.token_mask import as_token_mask
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.storage.checksums import fingerprint

# Tokens encoded at a time, and (at least) in one of the blocks that a bootstrap resamples.
BATCH_TOKENS = 2048
_SHARD_BLOCK = 256


class HarvestedActivations:
    """Activations of the masked tokens, for which the models run batch by batch."""

    def __init__(
        self, pair: HookedModelPair, tokens: Tensor, token_mask: Tensor | None, hook_name: str, batch_size: int
    ) -> None:
        self._pair, self._tokens, self._hook_name, self._batch_size = pair, tokens, hook_name, batch_size
        self._token_mask = as_token_mask(tokens, token_mask)
        self.n_tokens = int(self._token_mask.sum())

    def fingerprint(self) -> str:
        """Digest of the tokens, the mask and the batch size."""
        return fingerprint([self._tokens, self._token_mask, torch.tensor(self._batch_size)])

    def after(self, n_batches: int) -> Batches:
        """All batches but the first `n_batches`, for which the models do not run."""
        rows = slice(n_batches * self._batch_size, None)
        tokens, token_mask = self._tokens[rows], self._token_mask[rows]
        if n_batches > 0 and len(tokens) == 0:
            return []
        return harvest(self._pair, tokens, self._hook_name, self._batch_size, token_mask)


class GivenActivations:
    """Activations that the caller passed: a tensor, or batches that are read one after the other.

    Args:
        batch_size: tokens per batch of a tensor.
    """

    def __init__(self, activations: Activations, batch_size: int = BATCH_TOKENS) -> None:
        self.n_tokens = len(activations) if isinstance(activations, Tensor | ActivationCache) else None
        self._batches = iter(activations.split(batch_size) if isinstance(activations, Tensor) else activations)

    def fingerprint(self) -> str:
        """Number of tokens and digest of the first batch: the rest is not read for it."""
        first = list(islice(self._batches, 1))
        self._batches = chain(first, self._batches)
        return f"{self.n_tokens} {fingerprint(first)}"

    def after(self, n_batches: int) -> Batches:
        """All batches but the first `n_batches`, which are read and dropped."""
        n_skipped = sum(1 for _ in islice(self._batches, n_batches))
        if n_skipped < n_batches:
            raise ValueError(
                f"The checkpoint has {n_batches} batches, but the activations only {n_skipped}. Resume with the same "
                "activations, or delete the checkpoint to start over."
            )
        return self._batches


DataSource = HarvestedActivations | GivenActivations


def data_source(crosscoder: InferenceCrosscoder, data: EvalData) -> DataSource:
    """Batches of the data's activations at the crosscoder's hook.

    Raises:
        ValueError: for another pair or hook than the crosscoder was trained on.
    """
    metadata = crosscoder.cfg.metadata
    if data.activations is not None:
        if isinstance(data.activations, ActivationCache):
            data.activations.validate_source((metadata.model_name, metadata.chat_model_name), metadata.hook_name)
        return GivenActivations(data.activations)
    assert data.pair is not None  # EvalData validates itself
    assert data.tokens is not None
    data.pair.validate_trained_on(metadata.model_name, metadata.chat_model_name)
    return HarvestedActivations(data.pair, data.tokens, data.token_mask, hook_name_of(crosscoder), data.batch_size)


class PromptSource:
    """Activations of whole prompts, for analyses that need to know the neighbours of each token.

    Iterating gives slices of rows of `tokens`, in order, and the activations of the masked tokens in these rows.
    """

    def __init__(self, crosscoder: InferenceCrosscoder, data: EvalData) -> None:
        self._source = data_source(crosscoder, data)
        self.tokens, self.token_mask = data.contexts
        self._batch_size = data.batch_size

    def __len__(self) -> int:
        """Number of slices."""
        return -(-len(self.tokens) // self._batch_size)

    def __iter__(self) -> Iterator[tuple[slice, Float[Tensor, "_ d_in"]]]:
        stream = iter(self._source.after(0))
        rest = next(stream)
        for start in range(0, len(self.tokens), self._batch_size):
            rows = slice(start, start + self._batch_size)
            n_tokens = int(self.token_mask[rows].sum())
            parts = [rest]
            while sum(map(len, parts)) < n_tokens:
                parts.append(next(stream))
            parts = [part for part in parts if len(part)] or parts[:1]
            joined = parts[0] if len(parts) == 1 else torch.cat(parts)
            yield rows, joined[:n_tokens]
            rest = joined[n_tokens:]


class Encoded(NamedTuple):
    """Activations, and the crosscoder's encoding and reconstruction of them."""

    activations: Float[Tensor, "token d_in"]
    feature_acts: Float[Tensor, "token d_sae"]
    """Sparse."""
    reconstruction: Float[Tensor, "token d_in"]


def encoded(crosscoder: InferenceCrosscoder, batch: Float[Tensor, "_ d_in"], n_seen: int) -> Iterator[Encoded]:
    """Encode a batch in parts of at most 2048 tokens, in the crosscoder's precision and on its device.

    Raises:
        ValueError: for activations that are NaN or infinite; `n_seen` tokens before them were not.
    """
    validate_activations(batch.to(crosscoder.W_dec), crosscoder.layout, f"after the first {n_seen}")
    for part in batch.split(BATCH_TOKENS):
        part = part.to(crosscoder.W_dec)  # which may overflow
        feature_acts = crosscoder.encode_sparse(part)
        yield Encoded(part, feature_acts, crosscoder.decode(feature_acts))


def shard_block(data: EvalData) -> int:
    """Consecutive tokens that the bootstrap keeps together: whole contexts, where they are known.

    Tokens of one context are not independent, so a context must not be spread over shards. Where tokens are masked,
    contexts differ in length, and a block is a multiple of the longest one.
    """
    context_size = 1 if data.tokens is None else int(as_token_mask(data.tokens, data.token_mask).sum(dim=-1).max())
    context_size = max(1, context_size)
    return max(1, _SHARD_BLOCK // context_size) * context_size
