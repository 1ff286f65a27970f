"""Activations of an audit: both models on both models' answers, at one hook."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens_crosscoder.activations.contrast_rows import ContrastRows
from sae_lens_crosscoder.activations.drawn_batches import DrawnBatches
from sae_lens_crosscoder.activations.harvest import harvest
from sae_lens_crosscoder.activations.variance import VarianceExplained
from sae_lens_crosscoder.analysis.answers.behaviour import Behaviour
from sae_lens_crosscoder.crosscoders.batchtopk_config import BatchTopKCrosscoderTrainingConfig
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.data.answers import Answers
from sae_lens_crosscoder.data.contrasts import Contrast
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.training.recipe import TrainingRecipe
from sae_lens_crosscoder.training.trainer_config import CrosscoderTrainerConfig
from sae_lens_crosscoder.workflows.auditing.prompts import AuditPrompts

DECISION_WEIGHT = 8.0
"""How often a decision's row is drawn in training, relative to others."""
_LEAST_OTHERS, _MOST_OTHERS = 20, 400
_D_SAE, _K, _BATCH, _STEPS = 512, 16, 384, 500


def audit_recipe(d_model: int, device: str = "cpu") -> TrainingRecipe:
    """Training that carried the largest share of a fine-tune's contrast on three seeds (docs/own-models.md)."""
    crosscoder = BatchTopKCrosscoderTrainingConfig(
        d_model=d_model, d_sae=_D_SAE, k=_K, activation_scaling="per_model", device=device
    )
    trainer = CrosscoderTrainerConfig(
        total_training_samples=_STEPS * _BATCH,
        train_batch_size_samples=_BATCH,
        lr=2e-3,
        lr_warm_up_steps=_STEPS // 20,
        lr_decay_steps=_STEPS // 5,
        dead_feature_window=30,
        log_frequency=_STEPS,
        n_batches_for_norm_estimate=50,
        device=device,
    )
    return TrainingRecipe(crosscoder, trainer)


@dataclass(frozen=True)
class AuditRows:
    """Stacked activations of prompts and answers, without what all prompts begin with and special tokens."""

    activations: Float[Tensor, "row d_in"]
    decision_rows: Int[Tensor, " prompt"]
    """The row of each prompt's decision token, which predicts the answer's first token."""
    held_out: Bool[Tensor, " prompt"]
    hook_name: str

    @classmethod
    def harvested(
        cls, pair: HookedModelPair, prompts: AuditPrompts, answers: Answers, hook_name: str, batch_size: int
    ) -> "AuditRows":
        """Run both models on every row of the answers, and keep each prompt once."""
        first = torch.zeros(len(answers), dtype=torch.bool)
        first[answers.decision_rows] = True
        mask = answers.token_mask & (first[:, None] | answers.is_answer)
        mask &= ~torch.isin(answers.tokens, torch.tensor(prompts.end_ids))
        mask |= answers.is_decision & first[:, None]
        parts: list[Tensor] = []
        places: list[Tensor] = []
        # Rows of similar length go together, so that little padding is read.
        for rows in answers.lengths.argsort(stable=True).split(batch_size):
            end = int(answers.lengths[rows].max())
            chosen = mask[rows, :end]
            parts += [part.cpu() for part in harvest(pair, answers.tokens[rows, :end], hook_name, batch_size, chosen)]
            row, position = chosen.nonzero(as_tuple=True)
            places.append(torch.stack([rows[row], position]))
        row, position = torch.cat(places, dim=1)
        is_decision = (answers.is_decision & first[:, None])[row, position]
        decision_rows = torch.empty(len(prompts), dtype=torch.long)
        decision_rows[answers.prompts[row[is_decision]]] = is_decision.nonzero()[:, 0]
        return cls(torch.cat(parts), decision_rows, prompts.held_out, hook_name)

    def batches(self, activations: Float[Tensor, "row d_in"], seed: int) -> Iterator[Float[Tensor, "batch d_in"]]:
        """Training batches of these or of changed activations, with decisions drawn more often."""
        weights = torch.ones(len(activations))
        weights[self.decision_rows] = DECISION_WEIGHT
        return iter(DrawnBatches(activations, _BATCH, seed, weights))

    def contrast(self, behaviour: Behaviour, others: list[int]) -> ContrastRows:
        """The prompts with a change of behaviour against others, at their decisions."""
        prompts = torch.tensor([*behaviour.prompts, *others])
        return ContrastRows(
            name=behaviour.text,
            activations=self.activations[self.decision_rows[prompts]],
            positive=torch.arange(len(prompts)) < len(behaviour.prompts),
            held_out=self.held_out[prompts],
            model=behaviour.writer,
        )

    @torch.no_grad()
    def fve(self, crosscoder: InferenceCrosscoder) -> tuple[float, ...]:
        """Fraction of variance explained of each model."""
        explained = VarianceExplained(crosscoder.layout)
        for part in self.activations.split(4096):
            explained.add(part, crosscoder(part.to(crosscoder.W_dec)).cpu())
        return tuple(explained.per_source().values())


def other_prompts(behaviour: Behaviour, base: list[str], chat: list[str], prompts: AuditPrompts) -> list[int]:
    """Prompts to which neither model answers with the phrase, at most 400 in equal steps.

    Where enough are left, these end in a token with which prompts with the change end: otherwise the difference between
    a conversation and a text would be part of every change.
    """
    without = [i for i in range(len(base)) if not (behaviour.is_in(base[i]) or behaviour.is_in(chat[i]))]
    last = [int(chat.input_ids[-1]) for chat in prompts.chats]
    ends = {last[i] for i in behaviour.prompts}
    alike = [i for i in without if last[i] in ends]
    chosen = alike if len(alike) >= _LEAST_OTHERS else without
    if len(chosen) <= _MOST_OTHERS:
        return chosen
    return [chosen[i] for i in torch.linspace(0, len(chosen) - 1, _MOST_OTHERS).round().long().tolist()]


def contrast_of(behaviour: Behaviour, others: list[int], prompts: AuditPrompts, n_causal: int) -> Contrast:
    """The same contrast as prompts for the causal check, with at most `n_causal` of each group in each part."""
    groups = [_thinned(rows, n_causal, prompts.held_out) for rows in (list(behaviour.prompts), others)]
    chosen = [i for group in groups for i in group]
    ids = [[prompts.chats[i].input_ids for i in group] for group in groups]
    held_out = prompts.held_out[torch.tensor(chosen)]
    return Contrast.from_tokens(
        behaviour.text, ids[0], ids[1], held_out=held_out, model=behaviour.writer, padding_id=prompts.end_ids[0]
    )


def contrast_with_earlier(behaviour: Behaviour, prompts: AuditPrompts, n: int) -> Contrast:
    """The decisions of its prompts against the middle of the same prompts' own words, at most `n` in each part.

    A change that shows on nearly every prompt has no others to be set apart from.
    """
    chosen = _thinned(list(behaviour.prompts), n, prompts.held_out)
    chats = [prompts.chats[i] for i in chosen]
    middles = [int(own[len(own) // 2]) for own in ((chat.message >= 0).nonzero()[:, 0] for chat in chats)]
    earlier = [chat.input_ids[: middle + 1] for chat, middle in zip(chats, middles, strict=True)]
    held_out = prompts.held_out[torch.tensor([*chosen, *chosen])]
    return Contrast.from_tokens(
        behaviour.text,
        [chat.input_ids for chat in chats],
        earlier,
        held_out=held_out,
        model=behaviour.writer,
        padding_id=prompts.end_ids[0],
    )


def _thinned(prompts: list[int], n: int, held_out: Bool[Tensor, " prompt"]) -> list[int]:
    """At most n of the prompts that are not held out, and of those that are, in equal steps."""
    parts = [[i for i in prompts if bool(held_out[i]) == held] for held in (False, True)]
    return [part[j] for part in parts for j in sorted({round(s * (len(part) - 1) / max(1, n - 1)) for s in range(n)})]
