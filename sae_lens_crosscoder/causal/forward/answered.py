"""Answered conversations, batch by batch, and what the chat model's later layers make of any residual stream there."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens_crosscoder.causal.forward.resume import resume_from
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, require_hook_name
from sae_lens_crosscoder.models.hook_access import cached_activation, device_of
from sae_lens_crosscoder.models.pair import HookedModelPair

_FIRST = "blocks.0.hook_resid_pre"


@dataclass(frozen=True)
class AnsweredBatch:
    """Some conversations; all but `stacked` and `rows` is on the chat model's device."""

    model: Any
    hook_name: str
    rows: Int[Tensor, " row"]
    """Which conversations."""
    tokens: Int[Tensor, "row pos"]
    predicts: Bool[Tensor, "row pos"]
    """The positions that predict a scored token."""
    stacked: Float[Tensor, "row pos d_in"]
    """Both models' activations at the hook."""
    parts: tuple[Float[Tensor, "row pos d_model"], ...]
    """Each model's, base first."""

    @property
    def following(self) -> Int[Tensor, " selected"]:
        """The scored tokens."""
        return self.tokens.roll(-1, dims=1)[self.predicts]

    def chat_logits(self) -> Float[Tensor, "selected d_vocab"]:
        """Those of the chat model as it is, from its embedding on, so that no shortcut through the hook is taken."""
        _, cache = self.model.run_with_cache(self.tokens, names_filter=[_FIRST], stop_at_layer=1)
        return self._from(_FIRST, cached_activation(cache, _FIRST), self.tokens, self.predicts)

    def logits(
        self, residual: Float[Tensor, "edited pos d_model"], of: Int[Tensor, " edited"] | None = None
    ) -> Float[Tensor, "selected d_vocab"]:
        """Those of the chat model's layers after the hook.

        Args:
            of: of which row of the batch each residual stream is; None means one for every row.
        """
        if of is None:
            return self._from(self.hook_name, residual, self.tokens, self.predicts)
        return self._from(self.hook_name, residual, self.tokens[of], self.predicts[of])

    def _from(self, hook_name: str, residual: Tensor, tokens: Tensor, predicts: Tensor) -> Tensor:
        options: dict[str, Any] = {"batch_size": len(residual), "progress": False}
        return resume_from(self.model, residual[None], hook_name, tokens, predicts, **options)[0].float()


def answered_batches(
    pair: HookedModelPair,
    crosscoder: InferenceCrosscoder,
    tokens: Int[Tensor, "conversation pos"],
    response: Bool[Tensor, "conversation pos"],
    batch_size: int,
    n_before: int = 0,
) -> Iterator[AnsweredBatch]:
    """Conversations in order, each model run once, up to the hook; without the first `n_before` batches."""
    hook_name, device = require_hook_name(crosscoder), device_of(pair.chat)
    for rows in torch.arange(len(tokens)).split(batch_size)[n_before:]:
        some = tokens[rows.to(tokens.device)]
        stacked = pair.activations(some, hook_name)
        parts = tuple(part.to(device) for part in crosscoder.layout.split(stacked))
        predicts = response[rows.to(response.device)].roll(-1, dims=1)  # none is at position 0, so nothing wraps around
        yield AnsweredBatch(pair.chat, hook_name, rows, some.to(device), predicts.to(device), stacked, parts)
