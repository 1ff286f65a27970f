"""The steps that training_step.py compares with ours: SAELens, dictionary_learning, and the encoder product alone."""

import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, LoggingConfig, SAETrainer
from sae_lens.config import SAETrainerConfig
from torch import Tensor

Step = Callable[[], Any]
SAE_LENS, DICTIONARY_LEARNING = "sae_lens", "dictionary_learning"
FLOORS = {"float32": "floor (float32 product)", "bfloat16": "floor (bfloat16 product)"}
N_BATCHES = 16


@dataclass(frozen=True)
class Size:
    """What is trained: two models of width d_model, and `frac_dead` of the latents dead."""

    d_model: int
    d_sae: int
    k: int
    batch: int
    frac_dead: float = 0.0


def activations(size: Size) -> list[Tensor]:
    """Batches of stacked activations: sparse mixtures of directions, with noise."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(256, 2 * size.d_model, generator=generator)
    batches: list[Tensor] = []
    for _ in range(N_BATCHES):
        strengths = (torch.randn(size.batch, 256, generator=generator) - 1).relu()
        noise = 0.1 * torch.randn(size.batch, 2 * size.d_model, generator=generator)
        batches.append(strengths @ directions / 16 + noise)
    return batches


def endless(batches: list[Tensor]) -> Iterator[Tensor]:
    while True:
        yield from batches


def dead_latents(size: Size) -> Tensor:
    return torch.randperm(size.d_sae, generator=torch.Generator().manual_seed(1))[: int(size.frac_dead * size.d_sae)]


def stepping(trainer: Any, size: Size, batches: list[Tensor]) -> Step:
    """A step of a SAELens trainer, ours included, with the same latents kept dead."""
    stream, dead = endless(batches), dead_latents(size)

    def step() -> None:
        trainer.n_forward_passes_since_fired[dead] = 10**9
        trainer.step(next(stream))
        trainer.n_training_steps += 1

    return step


def sae_lens_step(size: Size, batches: list[Tensor], autocast: bool = False) -> Step:
    torch.manual_seed(0)
    device = str(batches[0].device)
    sae_cfg = BatchTopKTrainingSAEConfig(d_in=2 * size.d_model, d_sae=size.d_sae, k=size.k, device=device)
    sae = BatchTopKTrainingSAE(sae_cfg)
    cfg = SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=10**9,
        device=device,
        autocast=autocast,
        lr=1e-3,
        lr_end=1e-4,
        lr_scheduler_name="constant",
        lr_warm_up_steps=10,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=0,
        n_restart_cycles=1,
        train_batch_size_samples=size.batch,
        dead_feature_window=1000,
        feature_sampling_window=2000,
        logger=LoggingConfig(log_to_wandb=False),
    )
    return stepping(SAETrainer(cfg, sae, endless(batches)), size, batches)


def dictionary_learning_step(size: Size, batches: list[Tensor], checkout: str) -> Step:
    sys.path.insert(0, checkout)
    for name in ("nnsight", "zstandard"):  # which the package imports at the top, and its trainer does not need
        stub: Any = types.ModuleType(name)
        stub.LanguageModel = object
        sys.modules.setdefault(name, stub)
    from dictionary_learning.trainers.crosscoder import BatchTopKCrossCoderTrainer

    trainer = BatchTopKCrossCoderTrainer(
        steps=10**6, activation_dim=size.d_model, dict_size=size.d_sae, k=size.k, layer=0, lm_name="", lr=1e-3,
        warmup_steps=10, seed=0, device=str(batches[0].device),
    )  # fmt: skip
    stream, dead = endless([batch.view(size.batch, 2, size.d_model) for batch in batches]), dead_latents(size)
    steps = iter(range(10**9))

    def step() -> None:
        trainer.num_tokens_since_fired[dead] = 10**9
        trainer.update(next(steps), next(stream).clone())

    return step


def floors(size: Size, batches: list[Tensor]) -> dict[str, Step]:
    """The encoder's forward product alone, in either precision."""
    W_enc = torch.randn(size.d_sae, 2 * size.d_model).T
    found: dict[str, Step] = {}
    for precision, name in FLOORS.items():
        x, W = (tensor.to(getattr(torch, precision)) for tensor in (batches[0], W_enc))
        out = torch.empty(size.batch, size.d_sae, dtype=x.dtype)
        found[name] = lambda x=x, W=W, out=out: torch.mm(x, W, out=out)
    return found
