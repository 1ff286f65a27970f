"""Polish in the middle of a training run, at `polish_at` of its steps."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.crosscoders.batchtopk import BatchTopKTrainingCrosscoder
from sae_lens_crosscoder.training.polishing.feed_forward import take_dictionary
from sae_lens_crosscoder.training.polishing.latent_hooks import LatentHooks
from sae_lens_crosscoder.training.polishing.rounds import (
    PolishState,
    default_candidates,
    polish_round,
    tokens_of_rounds,
)
from sae_lens_crosscoder.training.trainer import StepTrainer

_N_ROUNDS = 8


def validate_polish(trainers: Mapping[str, StepTrainer]) -> None:
    """Raise a ValueError if a crosscoder that several processes train is to be polished."""
    for trainer in trainers.values():
        polish_at, n_processes = getattr(trainer.sae.cfg, "polish_at", None), trainer.collectives.n_processes
        if polish_at is not None and n_processes > 1:
            raise ValueError(
                f"polish_at={polish_at} is not available on {n_processes} processes. Train without it, and polish the "
                "result with slc.training.polish."
            )


def polish_is_due(trainer: StepTrainer) -> bool:
    """True if the next step is the first after `polish_at` of all steps."""
    polish_at = getattr(trainer.sae.cfg, "polish_at", None)
    if polish_at is None:
        return False
    return trainer.n_training_steps == max(1, round(polish_at * trainer.cfg.total_training_steps))


@torch.no_grad()
def polish_in_training(trainer: StepTrainer, batches: Iterator[Float[Tensor, "batch d_in"]]) -> None:
    """Polish the trainer's crosscoder on the next batches, which it does not train on, in place.

    Adam's moments, the counts of dead latents and the threshold's average begin anew, as they belong to the old
    dictionary. Nothing is changed before the last round is done.

    Raises:
        ValueError: if the stream ends first. The tokens read until then are not read again on resuming.
    """
    crosscoder = trainer.sae
    assert isinstance(crosscoder, BatchTopKTrainingCrosscoder)  # whose config alone has polish_at
    cfg = crosscoder.cfg
    state = PolishState(crosscoder.W_dec, crosscoder.b_dec, LatentHooks.of(crosscoder))
    n_candidates = default_candidates(cfg.d_sae, cfg.k)
    rounds = tokens_of_rounds(batches, cfg.polish_tokens_per_round, _N_ROUNDS)
    for raw in tqdm(rounds, total=_N_ROUNDS, desc="Polishing", unit="round", leave=False):
        x = crosscoder.run_time_activation_norm_fn_in(raw.to(crosscoder.W_dec))
        polish_round(state, x, cfg.k, _N_ROUNDS, "k", n_candidates)
    take_dictionary(crosscoder, state)
    crosscoder.forget_scores()
    optimizer: Any = trainer.optimizer
    for moments in optimizer.state.values():
        for moment in moments.values():
            moment.zero_()
    trainer.n_forward_passes_since_fired[:] = 0
