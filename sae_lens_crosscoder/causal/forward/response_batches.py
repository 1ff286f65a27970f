"""Batches of scored conversations, and the chat model's logits from any residual stream at the hook."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens_crosscoder.causal.forward.responses import Responses
from sae_lens_crosscoder.causal.forward.resume import resume_from
from sae_lens_crosscoder.crosscoders.inference import hook_name_of
from sae_lens_crosscoder.crosscoders.two_models import TwoModels
from sae_lens_crosscoder.data.token_mask import validate_padding
from sae_lens_crosscoder.models.hook_access import cached_activation, device_of
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.stacking import hook_of_model

_FIRST_HOOK = "blocks.0.hook_resid_pre"


@dataclass(frozen=True)
class ResponseBatch:
    """A batch of conversations; all but `stacked` and `rows` is on the chat model's device."""

    model: Any
    """The chat model."""
    hook_name: str
    """The chat model's."""
    rows: Int[Tensor, " row"]
    """The conversations' indices."""
    tokens: Int[Tensor, "row pos"]
    predicts: Bool[Tensor, "row pos"]
    """The positions that predict a scored token."""
    stacked: Float[Tensor, "row pos d_in"]
    """All models' activations at the hook."""
    places: tuple[int, int]
    """Places of the base and the chat model in the stack."""
    parts: tuple[Float[Tensor, "row pos d_model"], Float[Tensor, "row pos d_model"]]
    """The base and the chat model's activation; at tokens that dominate, both have the chat model's."""

    @property
    def targets(self) -> Int[Tensor, " selected"]:
        """The scored tokens."""
        return self.tokens.roll(-1, dims=1)[self.predicts]

    def chat_logits(self) -> Float[Tensor, "selected d_vocab"]:
        """Logits of the unpatched chat model, run from its embedding, so that no shortcut through the hook is taken."""
        _, cache = self.model.run_with_cache(self.tokens, names_filter=[_FIRST_HOOK], stop_at_layer=1)
        return self._resumed(_FIRST_HOOK, cached_activation(cache, _FIRST_HOOK), self.tokens, self.predicts)

    def logits(
        self, residual: Float[Tensor, "edited pos d_model"], rows: Int[Tensor, " edited"] | None = None
    ) -> Float[Tensor, "selected d_vocab"]:
        """Logits of the chat model's layers after the hook.

        Args:
            rows: the row of the batch each residual stream belongs to; None means one for every row.
        """
        if rows is None:
            return self._resumed(self.hook_name, residual, self.tokens, self.predicts)
        return self._resumed(self.hook_name, residual, self.tokens[rows], self.predicts[rows])

    def _resumed(self, hook_name: str, residual: Tensor, tokens: Tensor, predicts: Tensor) -> Tensor:
        options: dict[str, Any] = {"batch_size": len(residual), "progress": False}
        return resume_from(self.model, residual[None], hook_name, tokens, predicts, **options)[0].float()


def response_batches(
    two: TwoModels, pair: HookedModelPair, responses: Responses, batch_size: int, n_skipped: int = 0
) -> Iterator[ResponseBatch]:
    """Batches in order, with each model run once up to the hook; the first `n_skipped` batches are left out.

    Tokens that dominate are not handed over: the difference there is no latent's, and would decide every setup.
    """
    chat, hook_name, limits = pair.members[two.places[1]], hook_name_of(two.crosscoder), two.crosscoder.trained_limits
    validate_padding(responses.tokens, None, pair.tokenizer)
    device, hook_of_chat = device_of(chat), hook_of_model(hook_name, two.places[1])
    for rows in torch.arange(len(responses)).split(batch_size)[n_skipped:]:
        tokens = responses.tokens[rows.to(responses.tokens.device)]
        stacked = pair.activations(tokens, hook_name)
        of_base, of_chat = (part.to(device) for part in two.split(stacked))
        if limits.max_norms is not None:
            of_base = torch.where(limits.ordinary(stacked)[..., None].to(device), of_base, of_chat)
        response = responses.response[rows.to(responses.response.device)]
        predicts = response.roll(-1, dims=1)  # the first token is never scored, so nothing wraps around
        yield ResponseBatch(
            model=chat,
            hook_name=hook_of_chat,
            rows=rows,
            tokens=tokens.to(device),
            predicts=predicts.to(device),
            stacked=stacked,
            places=two.places,
            parts=(of_base, of_chat),
        )
