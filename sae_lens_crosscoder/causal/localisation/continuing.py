"""Base, continued from each hook with chat's activation there; tokens that all prompts begin with run once."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens_crosscoder.causal.forward.later_layers import LaterLayers, later_layers_of
from sae_lens_crosscoder.causal.forward.resume import can_resume, first_layer, resume_from
from sae_lens_crosscoder.models.hook_access import device_of, replaced_activations
from sae_lens_crosscoder.models.kl import kl_divergence, log_probs

EMBEDDED = "blocks.0.hook_resid_pre"
"""The hook that the keys and values of all layers are computed from."""


class Continuation:
    """KL that is left if base gets chat's activation at a hook, at the last token or at all tokens.

    Of hosts that can resume, base's own keys and values of the tokens before the first last token are computed once for
    all hooks, and the tokens that all prompts begin with, such as a system prompt, run once per hook.

    Args:
        tokens: prompts, padded on the right.
        mask: the tokens to measure.
        is_last: each prompt's last token.
        chat_log: chat's log-probabilities at the masked tokens.
        embedded: base's activation at `EMBEDDED`; None for a host that cannot resume.
    """

    def __init__(
        self,
        model: Any,
        tokens: Int[Tensor, "row pos"],
        mask: Bool[Tensor, "row pos"],
        is_last: Bool[Tensor, "row pos"],
        chat_log: Float[Tensor, "selected d_vocab"],
        embedded: Float[Tensor, "row pos d_model"] | None,
    ) -> None:
        self.model, self.mask, self.is_last, self.chat_log = model, mask, is_last, chat_log
        self.tokens = tokens.to(device_of(model))
        self.place = torch.full(mask.shape, -1)
        self.place[mask] = torch.arange(int(mask.sum()))
        self.n_before = int(is_last.long().argmax(dim=1).min())
        self.n_common = 0
        self.past: Any = None
        if embedded is not None and self.n_before > 0:
            n = self.n_before
            same = (tokens[:, :n] == tokens[:1, :n]) & (mask[:, :n] == mask[:1, :n])
            self.n_common = int(same.all(dim=0).long().cumprod(dim=0).sum()) if len(tokens) > 1 else 0
            self.past = later_layers_of(model, 0).keys_and_values(embedded[:, :n], self.tokens[:, :n])

    def left_at_last(self, hook_name: str, residual: Float[Tensor, "row pos d_model"]) -> Float[Tensor, " row"]:
        """KL at the last tokens, for a residual stream that differs from base's own there only."""
        if self.past is None:
            logs = patched_logs(self.model, residual[None], hook_name, self.tokens, self.is_last, self.chat_log)[0]
        else:
            n, later = self.n_before, later_layers_of(self.model, first_layer(self.model, hook_name))
            rows = torch.arange(len(self.tokens), device=self.tokens.device)
            with later.alone():
                logs = self._logs(later, residual, slice(n, None), rows, self.is_last, self.past)
        return kl_divergence(self.chat_log[self.place[self.is_last]], logs).cpu()

    def left_everywhere(self, hook_name: str, residual: Float[Tensor, "row pos d_model"]) -> Float[Tensor, " selected"]:
        """KL at all masked tokens, for any residual stream that is the same in the tokens the prompts share."""
        n = self.n_common
        if n == 0:
            logs = patched_logs(self.model, residual[None], hook_name, self.tokens, self.mask, self.chat_log)[0]
            return kl_divergence(self.chat_log, logs).cpu()
        later = later_layers_of(self.model, first_layer(self.model, hook_name))
        past = later.keys_and_values(residual[:1, :n], self.tokens[:1, :n])
        first_rows = torch.zeros(len(self.tokens), dtype=torch.long, device=self.tokens.device)
        left = torch.zeros(self.mask.shape)
        with later.alone():
            prefix = self._logs(later, residual[:1], slice(0, n), first_rows[:1], self.mask[:1], None)
            rest = self._logs(later, residual, slice(n, None), first_rows, self.mask, past)
        shared, own = self.mask[0, :n], self.mask[:, n:]
        left[:, :n][:, shared] = kl_divergence(self.chat_log[self.place[0, :n][shared]], prefix).cpu()
        left[:, n:][own] = kl_divergence(self.chat_log[self.place[:, n:][own]], rest).cpu()
        return left[self.mask]

    def _logs(
        self, later: LaterLayers, residual: Tensor, part: slice, prompts: Tensor, selected: Tensor, past: Any
    ) -> Float[Tensor, "selected d_vocab"]:
        """Log-probabilities over the common ids at the selected tokens of a part of the positions."""
        tokens = self.tokens[: len(residual), part]
        chosen = selected[:, part].to(tokens.device)
        logits = later.logits(residual[:, part].to(tokens.device), tokens, chosen, past, prompts)
        return log_probs(logits[..., : self.chat_log.shape[-1]]).to(self.chat_log.device)


def patched_logs(
    model: Any,
    residual: Float[Tensor, "edit prompt pos d_model"],
    hook_name: str,
    tokens: Int[Tensor, "prompt pos"],
    positions: Bool[Tensor, "prompt pos"],
    like: Float[Tensor, "_ d_vocab"],
) -> Float[Tensor, "edit selected d_vocab"]:
    """Log-probabilities of a model that continues from each given residual stream.

    Args:
        positions: mask of the positions to predict after, prompt by prompt.
        like: log-probabilities to compare with; the result is over their ids, on their device.
    """
    if can_resume(model, hook_name):
        logits = resume_from(model, residual, hook_name, tokens, positions, progress=False)
    else:  # by full passes
        device = device_of(model)
        edits: list[Tensor] = []
        for edited in residual:
            with replaced_activations(model, {hook_name: edited.to(device)}):
                edits.append(model(tokens.to(device), return_type="logits")[positions.to(device)])
        logits = torch.stack(edits)
    return log_probs(logits[..., : like.shape[-1]]).to(like.device)
