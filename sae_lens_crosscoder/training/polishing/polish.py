"""Polish of a trained crosscoder: matching pursuit finds concepts that BatchTopK merged or missed."""

import copy
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.activations.dominant_tokens import (
    MAX_NORM_RATIO,
    NormLimits,
    token_norms,
    validate_max_norm_ratio,
)
from sae_lens_crosscoder.activations.variance import VarianceExplained
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.batchtopk import BatchTopKTrainingCrosscoder
from sae_lens_crosscoder.crosscoders.training import TrainingCrosscoder
from sae_lens_crosscoder.storage.accumulators import AccumulatorCheckpoint
from sae_lens_crosscoder.storage.checksums import named_fingerprint
from sae_lens_crosscoder.training.loop import CrosscoderTrainer
from sae_lens_crosscoder.training.polishing.feed_forward import take_dictionary
from sae_lens_crosscoder.training.polishing.latent_hooks import LatentHooks
from sae_lens_crosscoder.training.polishing.rounds import (
    PolishState,
    Stop,
    default_candidates,
    polish_round,
    tokens_of_rounds,
)
from sae_lens_crosscoder.training.trainer_config import CrosscoderTrainerConfig

_ROUNDS_VERSION = "2"
"""Of what a checkpoint holds between rounds; 2 since it knows atoms that their hook does not show."""
_MOST_OFF = 4
"""Factor beyond which the number of atoms that the noise allows is no better k: a poor dictionary looks like noise."""


@dataclass(frozen=True, kw_only=True)
class PolishConfig:
    """Settings of a polish."""

    lr: float
    """Peak learning rate of the last steps: a fifth of the training's."""
    stop: Stop = "k"
    """When a token has enough atoms. `k`: as many as the crosscoder's k, on average. `noise`: when no atom explains
    more than chance would, for data with a noise floor, such as planted worlds. k may then be wrong by up to a factor
    of 4: the result's k is the mean number of atoms."""
    n_rounds: int = 8
    n_tokens_per_round: int = 12_288
    """Fresh tokens per round."""
    n_steps: int = 600
    """BatchTopK steps at the end, which train the encoder to find what pursuit found."""
    n_candidates: int | None = None
    """Atoms that a token may choose from; None means all of up to 4,096 latents, else 16 k."""
    max_norm_ratio: float | None = MAX_NORM_RATIO
    """Tokens whose norm exceeds this many times the model's median are left out; None keeps all."""

    def __post_init__(self) -> None:
        for name in ("lr", "n_rounds", "n_tokens_per_round", "n_steps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive.")
        if self.n_candidates is not None and self.n_candidates < 1:
            raise ValueError(f"n_candidates={self.n_candidates} must be at least 1, or None.")
        if self.stop not in get_args(Stop):
            raise ValueError(f"stop={self.stop!r} is not one of {get_args(Stop)}.")
        validate_max_norm_ratio(self.max_norm_ratio)


@validate_arguments
def polish(
    crosscoder: TrainingCrosscoder,
    activations: Iterator[Float[Tensor, "batch d_in"]],
    cfg: PolishConfig,
    *,
    checkpoint_path: str | Path | None = None,
) -> BatchTopKTrainingCrosscoder:
    """Improve a trained crosscoder's dictionary, and train a few last steps from it.

    Each round codes fresh tokens by non-negative orthogonal matching pursuit over the decoder's rows, fits decoder
    and bias to these codes by least squares, takes what a latent that fires only where another one does says about
    that other one out of it (with `stop="noise"` it also finds that other one from the tokens on which it is
    alone), and puts directions that many poorly explained tokens share in the place of unused and duplicate rows.
    The encoder starts as the best linear reading of the codes. Weakly causal latents keep their hooks: only what they
    may read and write is fitted, a direction takes the place of a latent of the hook at which it starts, and a latent
    whose hook does not show its code is free. BatchTopK steps then train it alone, with
    `score="l2"`, the energy by which a pursuit chooses, and without revival. Latents keep their ids unless they
    were replaced. A warning says if the result explains less variance than before, as on activations without a
    noise floor, where rounds are too short for a wide dictionary.

    Args:
        crosscoder: a trained BatchTopK crosscoder; left as it is.
        activations: raw stacked activations in batches of equal size, from the start of the stream also on resuming.
        checkpoint_path: file in which finished rounds are saved every minute. An interrupted polish resumes from it
            with the same arguments, and makes the last steps anew. It is removed at the end.

    Returns:
        A new training crosscoder.

    Raises:
        ValueError: for another architecture, a crosscoder that saw no data, has a partition, or a stream that
            ends.
    """
    crosscoder = _validated(crosscoder)
    batches = iter(activations)
    state = PolishState(crosscoder.W_dec, crosscoder.b_dec, LatentHooks.of(crosscoder))
    checkpoint = None
    if checkpoint_path is not None:
        origin = {"crosscoder": named_fingerprint(crosscoder.state_dict()), "set of options": repr(asdict(cfg))}
        origin["version of its rounds"] = _ROUNDS_VERSION
        checkpoint = AccumulatorCheckpoint(checkpoint_path, "polish", {"state": state}, origin)
    _make_rounds(crosscoder, batches, cfg, state, checkpoint)
    k, found = crosscoder.cfg.k, float(state.atoms_per_token)
    if cfg.stop == "noise" and k / _MOST_OFF <= found <= k * _MOST_OFF:
        k = found
    first = next(batches, None)
    if first is None:
        raise ValueError(f"The activations ended before the last n_steps={cfg.n_steps}: pass a longer stream.")
    polished = _train_encoder(_feed_forward(crosscoder, state, k), first, batches, cfg)
    _warn_if_worse(crosscoder, polished, first, cfg.max_norm_ratio)
    if checkpoint is not None:
        checkpoint.remove()
    return polished


@torch.no_grad()
def _make_rounds(
    crosscoder: BatchTopKTrainingCrosscoder,
    batches: Iterator[Tensor],
    cfg: PolishConfig,
    state: PolishState,
    checkpoint: AccumulatorCheckpoint | None,
) -> None:
    n_done = 0 if checkpoint is None else checkpoint.resume()
    k, d_sae = crosscoder.cfg.k, crosscoder.cfg.d_sae
    n_candidates = cfg.n_candidates or default_candidates(d_sae, k)
    limits = NormLimits(crosscoder.layout, None)
    rounds = tokens_of_rounds(batches, cfg.n_tokens_per_round, cfg.n_rounds)
    for n, raw in enumerate(tqdm(rounds, total=cfg.n_rounds, desc="Polishing", unit="round", leave=False)):
        if n == 0 and cfg.max_norm_ratio is not None:
            norms = token_norms(raw, crosscoder.layout)
            limits = NormLimits.measured(crosscoder.layout, norms, cfg.max_norm_ratio)
        if n < n_done:
            continue
        raw = raw[limits.ordinary(raw)].to(crosscoder.W_dec)
        x = crosscoder.run_time_activation_norm_fn_in(raw)
        polish_round(state, x, k, cfg.n_rounds, cfg.stop, n_candidates)
        if checkpoint is not None:
            checkpoint.save_if_due(n + 1)


@torch.no_grad()
def _feed_forward(
    crosscoder: BatchTopKTrainingCrosscoder, state: PolishState, k: float | int
) -> BatchTopKTrainingCrosscoder:
    """A training crosscoder with the polished dictionary."""
    last = {"score": "l2", "aux_loss_coefficient": 0.0, "k_max": None, "k_anneal_steps": 0, "polish_at": None}
    cfg = replace(copy.deepcopy(crosscoder.cfg), k=k, **last)
    polished = BatchTopKTrainingCrosscoder(cfg).to(crosscoder.W_dec.device)
    take_dictionary(polished, state)
    polished.input_scales.copy_(crosscoder.input_scales)
    polished.has_seen_data.fill_(True)
    return polished


def _train_encoder(
    crosscoder: BatchTopKTrainingCrosscoder, first: Tensor, batches: Iterator[Tensor], cfg: PolishConfig
) -> BatchTopKTrainingCrosscoder:
    trainer_cfg = CrosscoderTrainerConfig(
        total_training_samples=cfg.n_steps * len(first),
        train_batch_size_samples=len(first),
        lr=cfg.lr,
        lr_warm_up_steps=0,
        lr_decay_steps=cfg.n_steps // 5,
        device=str(crosscoder.W_dec.device),
        max_norm_ratio=cfg.max_norm_ratio,
    )
    crosscoder.W_dec.requires_grad_(False)  # the least squares over exact codes know better
    CrosscoderTrainer(trainer_cfg, crosscoder, chain([first], batches)).fit()
    crosscoder.W_dec.requires_grad_(True)
    return crosscoder


@torch.no_grad()
def _warn_if_worse(
    before: BatchTopKTrainingCrosscoder, after: BatchTopKTrainingCrosscoder, raw: Tensor, max_norm_ratio: float | None
) -> None:
    """Warn if the polished crosscoder explains less of a batch, the first that its encoder was trained on."""
    if max_norm_ratio is not None:
        raw = raw[NormLimits.measured(before.layout, token_norms(raw, before.layout), max_norm_ratio).ordinary(raw)]
    raw = raw.to(before.W_dec)
    fve: list[float] = []
    for crosscoder in (before, after):
        variance = VarianceExplained(crosscoder.layout)
        variance.add(raw, crosscoder(raw))
        fve.append(variance.pooled())
    if fve[1] < fve[0]:
        warnings.warn(
            f"The polished crosscoder explains {fve[1]:.3f} of a batch's variance, less than the {fve[0]:.3f} before. "
            "Keep the crosscoder before the polish, or polish with more n_tokens_per_round and n_steps.",
            stacklevel=3,
        )


def _validated(crosscoder: TrainingCrosscoder) -> BatchTopKTrainingCrosscoder:
    if type(crosscoder) is not BatchTopKTrainingCrosscoder:  # whose last steps would not be those of a subclass
        raise ValueError(
            f"polish takes a BatchTopKTrainingCrosscoder, but got a {type(crosscoder).__name__}. Pass the training "
            "crosscoder, before save_inference_model."
        )
    if crosscoder.cfg.partition is not None:
        raise ValueError(
            f"polish cannot keep a partition: the crosscoder has {crosscoder.cfg.partition}. Train it without "
            "n_base_exclusive and n_chat_exclusive."
        )
    if not bool(crosscoder.has_seen_data):
        raise ValueError("The crosscoder has seen no data, so there is nothing to polish. Train it first.")
    return crosscoder
