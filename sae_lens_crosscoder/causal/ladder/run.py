"""The models, prompts and readings of a causal ladder."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.activations.contrast_rows import contrast_rows
from sae_lens_crosscoder.causal.ladder.edited_answers import Request, answers, kl_at_decision, prompts_by_length
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

    def effects(
        self, conditions: Mapping[str, tuple[Edit | None, str]], on_others: Collection[str]
    ) -> dict[str, dict[str, Any]]:
        """KL and rates of conditions, each an edit and the model that writes.

        Args:
            on_others: conditions that are measured on negative prompts as well.
        """
        positive, negative = (self._prompts(held_out=True, positive=sign) for sign in (True, False))
        requests: dict[tuple[str, bool], list[Request]] = {}
        for name, (edit, writer) in conditions.items():
            requests[name, True] = [Request(prompt, edit, writer) for prompt in positive]
            if name in on_others:
                requests[name, False] = [Request(prompt, edit, writer) for prompt in negative]
        texts = dict(zip(requests, self._texts(list(requests.values())), strict=True))
        asked = [requests[name, True] for name in conditions]
        kl = kl_at_decision(self.pair, self.two, list(chain.from_iterable(asked)), self.batch_size)
        kl_of = dict(zip(conditions, kl.split([len(part) for part in asked]), strict=True))
        return {
            name: {
                "kl_nats": float(kl_of[name].mean()),
                "rate": self._rate(texts[name, True]),
                "rate_others": self._rate(texts[name, False]) if name in on_others else float("nan"),
                "answer": texts[name, True][0],
            }
            for name in conditions
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
        sums = torch.zeros(self.max_new_tokens, self.two.widths[0], dtype=torch.float64)
        n_answers = torch.zeros(self.max_new_tokens, dtype=torch.float64)
        prompts = self._prompts(held_out=False, positive=True)
        written = self._answers([Request(prompt, None, self.two.names[1]) for prompt in prompts])
        for length, group in groupby(zip(prompts, written, strict=True), key=lambda row: len(row[0])):
            for batch in torch.stack([torch.cat(row) for row in group]).split(self.batch_size):
                stacked = self.pair.activations(batch, hook_name)[:, length:]
                base, chat = self.two.split(stacked.cpu().double())
                is_written = until_end(batch[:, length:], self.pair.tokenizer.eos_token_id)
                sums += ((chat - base) * is_written[..., None]).sum(dim=0)
                n_answers += is_written.sum(dim=0)
        return [(total / n).float() for total, n in zip(sums, n_answers, strict=True) if n > 0]

    @cached_property
    def _rows(self) -> Float[Tensor, "prompt d_in"]:
        return contrast_rows(self.pair, self.contrast, hook_name_of(self.two.crosscoder), self.batch_size).activations

    def _prompts(self, held_out: bool, positive: bool) -> list[Int[Tensor, "_"]]:
        chosen = (self.contrast.held_out == held_out) & (self.contrast.positive == positive)
        return prompts_by_length(self.contrast, chosen)

    def _answers(self, requests: Sequence[Request]) -> list[Int[Tensor, " new"]]:
        options: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "batch_size": self.batch_size}
        return answers(self.pair, self.two, requests, **options)

    def _texts(self, groups: Sequence[Sequence[Request]]) -> list[list[str]]:
        """Answers as text, of all groups together."""
        decode = self.pair.tokenizer.decode
        written = iter(self._answers(list(chain.from_iterable(groups))))
        return [[decode(next(written).tolist(), skip_special_tokens=True) for _ in group] for group in groups]

    def _rate(self, texts: Sequence[str]) -> float:
        return sum(self.shows_behaviour(text) for text in texts) / len(texts)
