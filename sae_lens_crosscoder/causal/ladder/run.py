"""The models, prompts and readings of a causal ladder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.activations.contrast_rows import contrast_rows
from sae_lens_crosscoder.causal.ladder.edited_answers import answers, kl_at_decision, prompts_by_length
from sae_lens_crosscoder.causal.ladder.edits import Conditions, Edit, constant
from sae_lens_crosscoder.causal.patching.generation import until_end
from sae_lens_crosscoder.crosscoders.inference import hook_name_of
from sae_lens_crosscoder.crosscoders.two_models import TwoModels
from sae_lens_crosscoder.data.contrasts import Contrast
from sae_lens_crosscoder.models.pair import HookedModelPair

PER_PLACE = "mean difference per place"
_LEAST_ACTIVE = 0.02


@dataclass(frozen=True)
class LadderRun:
    """The models, the prompts and the reading of answers."""

    two: TwoModels
    pair: HookedModelPair
    contrast: Contrast
    shows_behaviour: Callable[[str], bool]
    max_new_tokens: int
    batch_size: int

    def effects(self, edit: Edit | None, on_others: bool, writer: str | None = None) -> dict[str, Any]:
        """KL and rates of one condition; None lets the base model write."""
        groups = self._groups(held_out=True, positive=True)
        texts = self._texts(groups, edit, writer)
        rate, rate_others = self._rate(texts), float("nan")
        if on_others:
            rate_others = self._rate(self._texts(self._groups(held_out=True, positive=False), edit, writer))
        return {
            "kl_nats": float(kl_at_decision(self.pair, self.two, groups, edit, self.batch_size).mean()),
            "rate": rate,
            "rate_others": rate_others,
            "answer": texts[0],
        }

    def active_latents(self) -> Int[Tensor, " latent"]:
        """Latents that are active on more than 2 % of the prompts to choose on."""
        crosscoder = self.two.crosscoder
        rows = self._rows[~self.contrast.held_out].to(crosscoder.W_dec)
        with torch.no_grad():
            frequency = (crosscoder.encode(rows) > 0).double().mean(dim=0)
        return (frequency > _LEAST_ACTIVE).nonzero()[:, 0].cpu()

    def mean_differences(self, per_place: bool) -> Conditions:
        """Mean chat - base of positive less negative prompts at the decision, and its means at places of the answer."""
        base, chat = self.two.split(self._rows)
        difference = chat - base
        chosen = ~self.contrast.held_out
        positive, negative = (difference[chosen & (self.contrast.positive == sign)] for sign in (True, False))
        at_decision = positive.mean(dim=0) - negative.mean(dim=0)
        found = {"mean difference": (constant(at_decision[None]), 0)}
        if per_place:
            places = torch.stack([at_decision, *self._means_in_answers()])
            found[PER_PLACE] = (constant(places), 0)
        return found

    @torch.no_grad()
    def _means_in_answers(self) -> list[Float[Tensor, " d_model"]]:
        """Mean chat - base at each token of chat's own answers to positive prompts, up to where an answer ends."""
        hook_name = hook_name_of(self.two.crosscoder)
        groups = self._groups(held_out=False, positive=True)
        sums = torch.zeros(self.max_new_tokens, self.two.widths[0], dtype=torch.float64)
        n_answers = torch.zeros(self.max_new_tokens, dtype=torch.float64)
        for prompts, answer in zip(groups, self._answers(groups, None, self.two.names[1]), strict=True):
            for batch in torch.cat([prompts, answer], dim=1).split(self.batch_size):
                stacked = self.pair.activations(batch, hook_name)[:, prompts.shape[1] :]
                base, chat = self.two.split(stacked.cpu().double())
                is_written = until_end(batch[:, prompts.shape[1] :], self.pair.tokenizer.eos_token_id)
                n_places = is_written.shape[1]
                sums[:n_places] += ((chat - base) * is_written[..., None]).sum(dim=0)
                n_answers[:n_places] += is_written.sum(dim=0)
        return [(total / n).float() for total, n in zip(sums, n_answers, strict=True) if n > 0]

    @cached_property
    def _rows(self) -> Float[Tensor, "prompt d_in"]:
        return contrast_rows(self.pair, self.contrast, hook_name_of(self.two.crosscoder), self.batch_size).activations

    def _groups(self, held_out: bool, positive: bool) -> list[Int[Tensor, "_ _"]]:
        chosen = (self.contrast.held_out == held_out) & (self.contrast.positive == positive)
        return prompts_by_length(self.contrast, chosen)

    def _answers(self, groups: Sequence[Tensor], edit: Edit | None, writer: str | None) -> list[Tensor]:
        options: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "batch_size": self.batch_size}
        return answers(self.pair, self.two, groups, edit, writer=writer or self.two.names[0], **options)

    def _texts(self, groups: Sequence[Tensor], edit: Edit | None, writer: str | None) -> list[str]:
        decode = self.pair.tokenizer.decode
        return [
            decode(row.tolist(), skip_special_tokens=True)
            for part in self._answers(groups, edit, writer)
            for row in part
        ]

    def _rate(self, texts: Sequence[str]) -> float:
        return sum(self.shows_behaviour(text) for text in texts) / len(texts)
