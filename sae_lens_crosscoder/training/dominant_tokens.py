"""Leaves the tokens that dominate out of a training run, and records what was left out."""

from collections.abc import Mapping

from sae_lens_crosscoder.activations.dominant_tokens import (
    DominantTokens,
    NormLimits,
    describe_dominant_tokens,
    token_norms,
)
from sae_lens_crosscoder.activations.ordinary_batches import OrdinaryBatches
from sae_lens_crosscoder.activations.training_batches import TrainingBatches
from sae_lens_crosscoder.storage.notes import write_note
from sae_lens_crosscoder.training.trainer import StepTrainer
from sae_lens_crosscoder.training.validation import stream_ended


def leave_out_dominant_tokens(trainers: Mapping[str, StepTrainer], batches: TrainingBatches) -> None:
    """Measure the limits on the first batch of all processes, unless a checkpoint brought them, and apply them.

    Every crosscoder's metadata gets them, in raw units: `max_norms` and `max_norm_ratio`.
    """
    lead, stream = next(iter(trainers.values())), batches.ordinary
    if stream.limits is None:
        _measure_and_start(lead, stream)
    assert stream.limits is not None
    max_norms = stream.limits.max_norms
    for trainer in trainers.values():
        metadata = trainer.sae.cfg.metadata
        metadata.max_norm_ratio = lead.cfg.max_norm_ratio
        metadata.max_norms = None if max_norms is None else list(max_norms)


def _measure_and_start(lead: StepTrainer, stream: OrdinaryBatches) -> None:
    collectives, layout, ratio = lead.collectives, lead.sae.layout, lead.cfg.max_norm_ratio
    if ratio is None:
        stream.start(NormLimits(layout, None))
        return
    with collectives.fail_together():
        try:
            norms = token_norms(stream.first(), layout)
        except StopIteration:
            raise stream_ended(lead.n_training_samples, lead.cfg.total_training_samples) from None
    limits = NormLimits.measured(layout, collectives.all_gather(norms, "all"), ratio)
    stream.start(limits)
    assert stream.left_out is not None
    if collectives.is_lead:
        write_note(describe_dominant_tokens(stream.left_out.summary(), limits.max_norms))


def record_dominant_tokens(trainers: Mapping[str, StepTrainer], batches: TrainingBatches) -> None:
    """Record what the run left out, on all processes together, in every crosscoder's `metadata.dominant_tokens`."""
    lead, left_out = next(iter(trainers.values())), batches.ordinary.left_out
    if left_out is None:
        return
    total = DominantTokens(lead.sae.layout)
    total.load_state_dict({name: lead.collectives.sum(part, "all") for name, part in left_out.state_dict().items()})
    for trainer in trainers.values():
        trainer.sae.cfg.metadata.dominant_tokens = total.summary()
