"""Cut windows around the peaks of latents: tokens, scores, and each model's share."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens_crosscoder.analysis.examples.kept_contexts import (
    KeptContexts,
    Peaks,
    Placed,
    in_order,
    peaks_of,
    random_keys,
)
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.crosscoders.sparse_step.kernels import indices_of
from sae_lens_crosscoder.crosscoders.sparse_step.pairs import ActivePairs, pairs_of
from sae_lens_crosscoder.data.token_mask import as_token_mask

# Activations that are gathered at a time, as numbers.
_CHUNK = 2**24


class TokenSpans:
    """First and last token of each token's document, for a batch of prompts in order.

    Both are masked tokens: the other tokens are in windows only between masked ones.

    Args:
        documents, token_mask: see `EvalData`.
        bos_id: where documents is None, the token that begins each; None for one document per prompt.

    Attributes:
        tokens, first, last: of every token; `first` and `last` are defined for masked tokens.
        row: index among the masked tokens; -1 for the others.
        place, context, is_text: of every masked token: its index among all tokens, the index of the first masked token
            of its context, and True if it is in a document.
    """

    def __init__(
        self,
        tokens: Int[Tensor, "batch pos"],
        documents: Int[Tensor, "batch pos"] | None,
        bos_id: int | None,
        token_mask: Bool[Tensor, "batch pos"] | None = None,
    ) -> None:
        mask = as_token_mask(tokens, token_mask)
        begins = torch.zeros_like(tokens, dtype=torch.bool)
        if documents is not None:
            begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
        elif bos_id is not None:
            begins = tokens == bos_id
        begins[:, 0] = True
        ends = begins.roll(-1, dims=1)  # the first token of a prompt begins a document, so its last one ends one
        index = torch.arange(tokens.numel(), device=tokens.device).view_as(tokens)
        self.tokens = tokens.flatten()
        self.first = _next(mask, index)[_last(begins, index)]
        self.last = _last(mask, index)[_next(ends, index)]
        self.row = (mask.flatten().cumsum(dim=0) - 1).masked_fill(~mask.flatten(), -1)
        self.place = indices_of(mask.flatten())
        self.context = self.row[self.first[self.place]]
        everywhere = torch.ones_like(begins) if documents is None else documents >= 0
        self.is_text: Bool[Tensor, " masked"] = everywhere.flatten()[self.place]


def _last(mask: Bool[Tensor, "batch pos"], index: Int[Tensor, "batch pos"]) -> Int[Tensor, " token"]:
    """Last token up to each token, in its prompt, at which the mask is true."""
    return torch.where(mask, index, 0).cummax(dim=1).values.flatten()


def _next(mask: Bool[Tensor, "batch pos"], index: Int[Tensor, "batch pos"]) -> Int[Tensor, " token"]:
    """First token from each token on, in its prompt, at which the mask is true."""
    return torch.where(mask, index, index.numel() - 1).flip(1).cummin(dim=1).values.flip(1).flatten()


class ExampleWindows:
    """Accumulates windows around the peaks of selected contexts, in constant memory.

    Slots hold the `n_top` contexts with the highest scores, then `n_sampled` drawn from all contexts in which the
    latent is active.
    """

    def __init__(
        self, crosscoder: InferenceCrosscoder, n_top: int, n_sampled: int, window: tuple[int, int], seed: int
    ) -> None:
        self._crosscoder, self._seed, self._before = crosscoder, seed, window[0]
        d_sae, device = crosscoder.cfg.d_sae, crosscoder.W_enc.device
        self.n_tokens = self._n_places = 0  # masked, and all
        self.n_contexts = torch.zeros(d_sae, dtype=torch.int64, device=device)
        self.top = KeptContexts(d_sae, n_top, crosscoder.dtype, device)
        self.sample = KeptContexts(d_sae, n_sampled, torch.int64, device)
        self._offsets = torch.arange(-window[0], window[1] + 1, device=device)
        shape = (d_sae, n_top + n_sampled, len(self._offsets))
        self.token_ids = torch.full(shape, -1, dtype=torch.int32, device=device)
        self.scores = torch.full(shape, torch.nan, device=device)
        self.shares = torch.full((*shape, crosscoder.layout.n_sources), torch.nan, device=device)

    @torch.no_grad()
    def add(self, activations: Float[Tensor, "token d_in"], spans: TokenSpans) -> None:
        """Add the masked tokens of complete prompts, in order."""
        pairs, scores = pairs_of(self._crosscoder.encode_sparse(activations))
        is_text = spans.is_text[pairs.token]
        pairs, scores = pairs[is_text], scores[is_text]
        peaks = peaks_of(pairs, scores, spans.context)
        self.n_contexts += peaks.latent.bincount(minlength=len(self.n_contexts))
        tokens = spans.place[peaks.token] + self._n_places
        keys = random_keys(self._seed, peaks.latent, peaks.context + self.n_tokens)
        in_top = self.top.add(peaks.latent, peaks.score, tokens)
        in_sample = self.sample.add(peaks.latent, keys, tokens)
        for placed, first_slot in ((in_top, 0), (in_sample, self.top.keys.shape[1])):
            self._write(placed, first_slot, peaks, activations, spans, pairs, scores)
        self.n_tokens += len(activations)
        self._n_places += len(spans.tokens)

    def _write(
        self,
        placed: Placed,
        first_slot: int,
        peaks: Peaks,
        activations: Float[Tensor, "token d_in"],
        spans: TokenSpans,
        pairs: ActivePairs,
        scores: Float[Tensor, " pairs"],
    ) -> None:
        """Write the windows of new contexts."""
        flat = pairs.token * pairs.d_sae + pairs.latent  # ascending
        n_at_once = max(1, _CHUNK // (len(self._offsets) * activations.shape[1]))
        for latent, slot, candidate in zip(*(column.split(n_at_once) for column in placed), strict=True):
            peak = spans.place[peaks.token[candidate, None]]
            token = peak + self._offsets
            outside = (token < spans.first[peak]) | (token > spans.last[peak])
            token = torch.where(outside, peak, token)
            row = spans.row[token]
            unknown = outside | (row < 0)
            row = row.clamp(min=0)
            pair = torch.searchsorted(flat, row * pairs.d_sae + latent[:, None]).clamp(max=len(flat) - 1)
            is_on = flat[pair] == row * pairs.d_sae + latent[:, None]
            at = (latent, first_slot + slot)
            self.token_ids[at] = spans.tokens[token].int().masked_fill(outside, -1)
            self.scores[at] = torch.where(is_on, scores[pair], 0).float().masked_fill(unknown, torch.nan)
            shares = self._shares(activations, row, latent)
            self.shares[at] = shares.float().masked_fill(unknown[..., None], torch.nan)

    def _shares(
        self,
        activations: Float[Tensor, "token d_in"],
        row: Int[Tensor, "window offset"],
        latent: Int[Tensor, " window"],
    ) -> Float[Tensor, "window offset model"]:
        """Shares `<e_j^m, h^m>`, at least in float32."""
        precision = torch.promote_types(activations.dtype, torch.float32)
        parts = zip(self._crosscoder.layout.split(activations), self._crosscoder.encoders, strict=True)
        shares = [part[row].to(precision) @ encoder[latent, :, None].to(precision) for part, encoder in parts]
        return torch.cat(shares, dim=-1)

    def tensors(self) -> dict[str, Tensor]:
        """Tensors with one row per latent: the top contexts, highest first, then the sample, lowest first."""
        n_top = self.top.keys.shape[1]
        peaks = self.scores[:, n_top:, self._before]
        rising = torch.where(self.sample.tokens < 0, -torch.inf, -peaks)  # empty slots last
        order = [in_order(self.top.keys, self.top.tokens), n_top + in_order(rising, self.sample.tokens)]
        row, slot = torch.arange(len(peaks), device=peaks.device)[:, None], torch.cat(order, dim=1)
        tokens = torch.cat([self.top.tokens, self.sample.tokens], dim=1)
        kept = {"token": tokens, "token_ids": self.token_ids, "scores": self.scores, "shares": self.shares}
        result = {name: tensor[row, slot].cpu() for name, tensor in kept.items()}
        b_enc = self._crosscoder.b_enc.detach().float().cpu()
        return {**result, "n_contexts": self.n_contexts.cpu(), "b_enc": b_enc}
