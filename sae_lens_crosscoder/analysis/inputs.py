"""Where an analysis gets its activations: batches, of which those it has seen before can be left out."""

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens_crosscoder.activations.cache.reader import ActivationCache
from sae_lens_crosscoder.activations.harvest import harvest, validate_activations
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, require_hook_name
from sae_lens_crosscoder.data.token_mask import as_token_mask
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.storage.checksums import fingerprint

# Tokens encoded at a time, and (at least) in one of the blocks that a bootstrap resamples.
BATCH_TOKENS = 2048
_SHARD_BLOCK = 256

Batches = Iterable[Float[Tensor, "_ d_in"]]
Activations = Float[Tensor, "token d_in"] | Batches


class HarvestedActivations:
    """Activations of given tokens, for which the models run; not for those that are left out."""

    def __init__(
        self, pair: HookedModelPair, tokens: Tensor, hook_name: str, batch_size_prompts: int, keep: Tensor | None
    ) -> None:
        self._pair, self._tokens, self._hook_name = pair, tokens, hook_name
        self._batch_size_prompts = batch_size_prompts
        self._keep = as_token_mask(tokens, keep)
        self.n_tokens = int(self._keep.sum())

    def fingerprint(self) -> str:
        """A text by which another source is told from this one."""
        return fingerprint([self._tokens, self._keep, torch.tensor(self._batch_size_prompts)])

    def after(self, n_batches: int) -> Batches:
        """All but the first batches."""
        rest = slice(n_batches * self._batch_size_prompts, None)
        tokens, keep = self._tokens[rest], self._keep[rest]
        if n_batches > 0 and len(tokens) == 0:
            return []
        return harvest(self._pair, tokens, self._hook_name, self._batch_size_prompts, keep)


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
    keep: Tensor | None = None,
) -> DataSource:
    """Whichever was given, a pair with tokens or activations, or a ValueError if that is neither or both."""
    if activations is not None:
        if pair is not None or tokens is not None:
            raise ValueError("Give either a pair with tokens or activations, not both.")
        if keep is not None:
            raise ValueError("keep says which tokens the models run for: of activations, give only those to be used.")
        if isinstance(activations, ActivationCache):
            metadata = crosscoder.cfg.metadata
            activations.validate_source((metadata.model_name, metadata.chat_model_name), metadata.hook_name)
        return GivenActivations(activations)
    if pair is None or tokens is None:
        raise ValueError(f"{purpose} needs data: give pair= and tokens= (batch, pos), or activations=.")
    metadata = crosscoder.cfg.metadata
    pair.validate_trained_on(metadata.model_name, metadata.chat_model_name)
    return HarvestedActivations(pair, tokens, require_hook_name(crosscoder), batch_size_prompts, keep)


class PromptSource:
    """Activations of whole prompts at a time, with their tokens: what asks which token is beside which reads this.

    Iterating gives rows of `tokens`, some at a time and in order, and the activations of those of their tokens that
    are kept.

    Args:
        source: the activations of the tokens that are kept.
    """

    def __init__(
        self,
        source: DataSource,
        tokens: Int[Tensor, "batch pos"],
        keep: Bool[Tensor, "batch pos"],
        batch_size_prompts: int,
    ) -> None:
        self.tokens, self.keep = tokens, keep
        self._source, self._batch_size_prompts = source, batch_size_prompts

    def __len__(self) -> int:
        """How many times it gives some."""
        return -(-len(self.tokens) // self._batch_size_prompts)

    def __iter__(self) -> Iterator[tuple[slice, Float[Tensor, "_ d_in"]]]:
        stream = iter(self._source.after(0))
        rest = next(stream)
        for start in range(0, len(self.tokens), self._batch_size_prompts):
            rows = slice(start, start + self._batch_size_prompts)
            n_kept = int(self.keep[rows].sum())
            parts = [rest]
            while sum(map(len, parts)) < n_kept:
                parts.append(next(stream))
            parts = [part for part in parts if len(part)] or parts[:1]
            here = parts[0] if len(parts) == 1 else torch.cat(parts)
            yield rows, here[:n_kept]
            rest = here[n_kept:]


def prompt_source(
    crosscoder: InferenceCrosscoder,
    pair: HookedModelPair | None,
    tokens: Tensor | None,
    activations: ActivationCache | None,
    batch_size_prompts: int,
    purpose: str,
    keep: Tensor | None = None,
) -> PromptSource:
    """What `data_source` gives, by prompts; of activations only a cache knows which prompts they are from."""
    source = data_source(crosscoder, pair, tokens, activations, batch_size_prompts, purpose, keep)
    return PromptSource(source, *contexts_of(tokens, keep, activations), batch_size_prompts)


def contexts_of(
    tokens: Tensor | None, keep: Tensor | None, activations: ActivationCache | None
) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
    """The prompts of a data source, and which of their tokens are kept; a ValueError if none is."""
    if activations is not None:
        return activations.contexts
    assert tokens is not None  # or there is no data source
    keep = as_token_mask(tokens, keep)
    if not keep.any():
        raise ValueError(f"Of {keep.numel()} tokens keep leaves out every one: there is nothing to look at.")
    return tokens, keep


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
    validate_activations(batch.to(crosscoder.W_dec), crosscoder.layout, f"after the first {n_seen}")
    for part in batch.split(BATCH_TOKENS):
        part = part.to(crosscoder.W_dec)  # which may overflow
        feature_acts = crosscoder.encode_sparse(part)
        yield Encoded(part, feature_acts, crosscoder.decode(feature_acts))


def shard_block(tokens: Tensor | None, keep: Tensor | None = None) -> int:
    """How many consecutive tokens a bootstrap keeps together, whole contexts if they are known.

    Tokens of one context are not independent, so a context must not be spread over shards. Where some tokens are left
    out, contexts differ in length, and a block is as long as so many of the longest ones.
    """
    context_size = 1 if tokens is None else int(as_token_mask(tokens, keep).sum(dim=-1).max())
    context_size = max(1, context_size)
    return max(1, _SHARD_BLOCK // context_size) * context_size
