"""Batches of activations from EvalData for one crosscoder."""

from collections.abc import Iterator, Mapping
from itertools import chain, islice
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lens_crosscoder.activations.cache.reader import ActivationCache
from sae_lens_crosscoder.activations.dominant_tokens import DominantTokens, NormLimits, token_norms
from sae_lens_crosscoder.activations.eval_data import Activations, Batches, EvalData
from sae_lens_crosscoder.activations.harvest import harvest
from sae_lens_crosscoder.activations.looked_at import frac_aligned
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.crosscoders.origin import validate_pair
from sae_lens_crosscoder.data.token_mask import as_token_mask
from sae_lens_crosscoder.storage.checksums import fingerprint

# Tokens encoded at a time, and (at least) in one of the blocks that a bootstrap resamples.
BATCH_TOKENS = 2048
_SHARD_BLOCK = 256


class HarvestedActivations:
    """Activations of the masked tokens, for which the models run batch by batch, unless the data keeps them."""

    def __init__(self, data: EvalData, hook_name: str) -> None:
        assert data.pair is not None
        assert data.tokens is not None
        self._pair, self._tokens, self._hook_name, self._batch_size = data.pair, data.tokens, hook_name, data.batch_size
        self._token_mask = as_token_mask(data.tokens, data.token_mask)
        self._kept = data.kept_batches.get(hook_name)
        self.frac_aligned = frac_aligned(data.pair, data.tokens)
        self.n_tokens = int(self._token_mask.sum())
        self._begun: Iterator[Tensor] | None = None
        """The stream, if its start was read to measure limits."""

    def fingerprint(self) -> str:
        """Digest of the tokens, the mask and the batch size."""
        return fingerprint([self._tokens, self._token_mask, torch.tensor(self._batch_size)])

    def first(self, n_tokens: int) -> list[Float[Tensor, "_ d_in"]]:
        """The first `n_tokens` tokens; the models do not run again for them."""
        stream = iter(self.after(0))
        read, first = _read_first(stream, n_tokens)
        self._begun = chain(read, stream)
        return first

    def after(self, n_batches: int) -> Batches:
        """All batches but the first `n_batches`, for which the models do not run."""
        begun, self._begun = self._begun, None
        if begun is not None and n_batches == 0:
            return begun
        if self._kept is not None:
            return iter(self._kept[n_batches:])
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

    frac_aligned: float | None = None
    """Share of tokens that are aligned, of a cache of models with different tokenizers."""

    def __init__(self, activations: Activations, batch_size: int = BATCH_TOKENS) -> None:
        self.n_tokens = len(activations) if isinstance(activations, Tensor | ActivationCache) else None
        if isinstance(activations, ActivationCache):
            self.frac_aligned = (activations.manifest.pair_check or {}).get("frac_aligned")
        self._batches = iter(activations.split(batch_size) if isinstance(activations, Tensor) else activations)

    def first(self, n_tokens: int) -> list[Float[Tensor, "_ d_in"]]:
        """The first `n_tokens` tokens; they are not used up."""
        read, first = _read_first(self._batches, n_tokens)
        self._batches = chain(read, self._batches)
        return first

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


def _read_first(batches: Iterator[Tensor], n_tokens: int) -> tuple[list[Tensor], list[Tensor]]:
    """Batches with at least `n_tokens` tokens, and these tokens, however they are cut into batches."""
    read, first = list[Tensor](), list[Tensor]()
    while n_tokens > 0 and (batch := next(batches, None)) is not None:
        read.append(batch)
        first.append(batch[:n_tokens])
        n_tokens -= len(first[-1])
    return read, first


RawSource = HarvestedActivations | GivenActivations


class TokenBatch(NamedTuple):
    """A batch of activations, and True for the tokens that are used: those that do not dominate."""

    activations: Float[Tensor, "_ d_in"]
    ordinary: Bool[Tensor, " _"]

    @property
    def used(self) -> Float[Tensor, "_ d_in"]:
        """The ordinary tokens."""
        return self.activations if bool(self.ordinary.all()) else self.activations[self.ordinary]

    @property
    def left_out(self) -> Float[Tensor, "_ d_in"]:
        """The tokens that dominate."""
        return self.activations[~self.ordinary]


class DataSource:
    """Activations of evaluation data, in which the tokens that dominate are told apart.

    A resumable accumulator: its state is the limits, and the counts of the tokens read so far (`dominant`).
    """

    def __init__(self, raw: RawSource, crosscoder: InferenceCrosscoder, max_norm_ratio: float | None) -> None:
        self._raw, self._layout = raw, crosscoder.layout
        self.n_tokens = raw.n_tokens
        """Number of tokens, those that dominate included; None if unknown."""
        self.max_norm_ratio = max_norm_ratio
        self._limits = crosscoder.norm_limits(max_norm_ratio)
        self.dominant = DominantTokens(crosscoder.layout)

    @property
    def limits(self) -> NormLimits:
        """Those of the crosscoder's training, for the ratio of the data.

        If the crosscoder knows none, they are measured on the first 2048 tokens.
        """
        if self._limits is None:
            assert self.max_norm_ratio is not None  # or the crosscoder would have limits that keep all tokens
            first = [token_norms(self._fitting(part), self._layout) for part in self._raw.first(BATCH_TOKENS)]
            norms = torch.cat(first) if first else torch.zeros(0, self._layout.n_sources)
            self._limits = NormLimits.measured(self._layout, norms, self.max_norm_ratio)
        return self._limits

    def first(self, n_tokens: int) -> list[TokenBatch]:
        """The first `n_tokens` tokens; they are not used up."""
        limits = self.limits
        return [TokenBatch(part, limits.ordinary(self._fitting(part))) for part in self._raw.first(n_tokens)]

    def fingerprint(self) -> str:
        """Digest of the data, the ratio and the limits that training measured."""
        return f"{self._raw.fingerprint()} {self.max_norm_ratio} {self._limits}"

    def state_dict(self) -> dict[str, Tensor]:
        """The limits and the counts."""
        max_norms = torch.tensor(self.limits.max_norms or (), dtype=torch.float64)
        return {**self.dominant.state_dict(), "max_norms": max_norms}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue with the limits and counts of a state; the models do not run to measure them again."""
        self._limits = NormLimits(self._layout, tuple(state["max_norms"].tolist()) or None)
        self.dominant.load_state_dict(state)

    def batches(self, n_skipped: int = 0, counted: Bool[Tensor, " token"] | None = None) -> Iterator[TokenBatch]:
        """All batches but the first `n_skipped`, for which the models do not run.

        Args:
            counted: True for the tokens to count in `dominant`; None for all.
        """
        limits, n = self.limits, 0  # before the stream is read from
        for batch in self._raw.after(n_skipped):
            norms = token_norms(self._fitting(batch), self._layout)
            ordinary = limits.ordinary_norms(norms)
            rows = slice(None) if counted is None else counted[n : n + len(batch)].nonzero().flatten().to(norms.device)
            self.dominant.add(norms[rows], ordinary[rows])
            n += len(batch)
            yield TokenBatch(batch, ordinary)

    def _fitting(self, batch: Tensor) -> Float[Tensor, "_ d_in"]:
        """The batch, or a ValueError if the crosscoder cannot read it."""
        if batch.ndim != 2:
            raise ValueError(
                f"activations has shape {tuple(batch.shape)}, expected (token, d_in). Flatten (batch, pos, d_in) with "
                "activations.flatten(0, 1)."
            )
        if batch.shape[-1] != self._layout.d_in:
            raise ValueError(
                f"The activations are {batch.shape[-1]} wide, but the crosscoder reads {self._layout.d_in}: widths "
                f"{self._layout.d_models} side by side. Pass data of the pair and the hook that it was trained on."
            )
        return batch

    def manifest(self) -> dict[str, Any]:
        """Entries for a manifest: the ratio, the limits, and how much was left out.

        Of models with different tokenizers, also the share of tokens that are aligned.
        """
        limits = self.limits.max_norms
        return {
            "max_norm_ratio": self.max_norm_ratio,
            "max_norms": None if limits is None else list(limits),
            "dominant_tokens": None if limits is None else self.dominant.summary(),
            **({} if self._raw.frac_aligned is None else {"frac_aligned": self._raw.frac_aligned}),
        }


def data_source(crosscoder: InferenceCrosscoder, data: EvalData) -> DataSource:
    """Batches of the data's activations at the crosscoder's hook.

    Raises:
        ValueError: for another pair or hook than the crosscoder was trained on.
    """
    return DataSource(_raw_source(crosscoder, data), crosscoder, data.max_norm_ratio)


def _raw_source(crosscoder: InferenceCrosscoder, data: EvalData) -> RawSource:
    metadata = crosscoder.cfg.metadata
    if data.activations is not None:
        if isinstance(data.activations, ActivationCache):
            data.activations.validate_source(crosscoder.model_names, metadata.hook_name)
        return GivenActivations(data.activations)
    assert data.pair is not None  # EvalData validates itself
    return HarvestedActivations(data, validate_pair(crosscoder, data.pair))


class PromptSource:
    """Activations of whole prompts, for analyses that need to know the neighbours of each token.

    Iterating gives, in order, slices of rows of `tokens` with the mask and the activations of their used tokens: those
    of `token_mask` that do not dominate.
    """

    def __init__(self, crosscoder: InferenceCrosscoder, data: EvalData) -> None:
        self._source = data_source(crosscoder, data)
        self.tokens, self.token_mask = data.contexts
        self._batch_size = data.batch_size

    @property
    def limits(self) -> NormLimits:
        """Limits that tell the tokens that dominate apart."""
        return self._source.limits

    def __len__(self) -> int:
        """Number of slices."""
        return -(-len(self.tokens) // self._batch_size)

    def __iter__(self) -> Iterator[tuple[slice, Bool[Tensor, "batch pos"], Float[Tensor, "_ d_in"]]]:
        stream = self._source.batches()
        rest = next(stream)
        for start in range(0, len(self.tokens), self._batch_size):
            rows = slice(start, start + self._batch_size)
            used = self.token_mask[rows].clone()
            n_tokens = int(used.sum())
            parts = [rest]
            while sum(len(part.activations) for part in parts) < n_tokens:
                parts.append(next(stream))
            parts = [part for part in parts if len(part.activations)] or parts[:1]
            joined = parts[0] if len(parts) == 1 else TokenBatch(*map(torch.cat, zip(*parts, strict=True)))
            batch = TokenBatch(joined.activations[:n_tokens], joined.ordinary[:n_tokens])
            used[used.clone()] = batch.ordinary.to(used.device)
            yield rows, used, batch.used
            rest = TokenBatch(joined.activations[n_tokens:], joined.ordinary[n_tokens:])


def shard_block(data: EvalData) -> int:
    """Consecutive tokens that the bootstrap keeps together: whole contexts, where they are known.

    Tokens of one context are not independent, so a context must not be spread over shards. Where tokens are masked,
    contexts differ in length, and a block is a multiple of the longest one.
    """
    longest = 1 if data.tokens is None else max(1, int(as_token_mask(data.tokens, data.token_mask).sum(dim=-1).max()))
    return max(1, _SHARD_BLOCK // longest) * longest
