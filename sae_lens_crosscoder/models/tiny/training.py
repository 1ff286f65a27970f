"""Training of the tiny pair: `python -m sae_lens_crosscoder.models.tiny.training --output-path DIR [--control]`."""

import argparse
import copy
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformer_lens import HookedTransformer

from sae_lens_crosscoder.models.tiny.behaviour import behaviour_table, oracle_table
from sae_lens_crosscoder.models.tiny.dataset import TINY_CONTEXT_SIZE, labelled_rows
from sae_lens_crosscoder.models.tiny.documents import Mix
from sae_lens_crosscoder.models.tiny.models import (
    N_LAYERS,
    TINY_HOOK,
    WEIGHTS_PATH,
    load_tiny_weights,
    new_tiny_model,
    save_tiny_weights,
)
from sae_lens_crosscoder.storage.versions import package_versions

BATCH_ROWS: Final = 32
EVALUATION_SEED: Final = 1_000_000
WARM_UP_STEPS: Final = 50


@dataclass(frozen=True)
class Stage:
    """One stage of training."""

    mix: Mix
    """The corpus."""
    n_steps: int
    """Optimiser steps of `BATCH_ROWS` rows."""
    learning_rate: float
    """Adam's learning rate after a linear warm-up; it decays linearly to 0."""
    data_seed: int
    """Plus ten times the run's seed: the seed of the stage's text, so that no two stages share rows."""


BASE: Final = Stage("base", n_steps=2000, learning_rate=2e-3, data_seed=1)
CHAT: Final = Stage("chat", n_steps=1800, learning_rate=1e-3, data_seed=2)
NULL: Final = Stage("base", n_steps=300, learning_rate=3e-4, data_seed=3)
CONTROL: Final = Stage("control", n_steps=1800, learning_rate=1e-3, data_seed=4)
"""From the saved base model: the chat model's prompts, without its behaviours."""


def scheduled(stage: Stage, steps_scale: float) -> int:
    """Number of steps of the stage in a run of that scale, at least one."""
    return max(1, round(stage.n_steps * steps_scale))


def train(model: HookedTransformer, stage: Stage, seed: int, n_steps: int) -> list[float]:
    """Train the model in place to predict next tokens; returns the loss of each step, in nats."""
    input_ids, _, _ = labelled_rows(n_steps * BATCH_ROWS, 10 * seed + stage.data_seed, stage.mix)
    optimiser = torch.optim.Adam(model.parameters(), lr=stage.learning_rate, betas=(0.9, 0.98))
    warm_up = min(WARM_UP_STEPS, n_steps)
    schedule = LambdaLR(optimiser, lambda step: min((step + 1) / warm_up, 1 - step / n_steps))
    model.train()
    losses: list[float] = []
    for batch in torch.from_numpy(input_ids).split(BATCH_ROWS):
        loss = model(batch, return_type="loss")
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    model.eval()
    return losses


def train_tiny_pair(
    output_path: str | Path, seed: int = 0, steps_scale: float = 1.0, n_prompts: int = 500
) -> dict[str, Any]:
    """Train the base, chat and null model, save their weights and `behaviour.json`, and return the latter.

    On one thread, and with the versions in `behaviour.json`, the same seed gives the same files.

    Args:
        output_path: folder for the four files, created if missing.
        seed: seed of the initial weights and of all training text.
        steps_scale: factor for every stage's number of steps; 1 for the committed weights.
        n_prompts: held-out prompts per kind, for the behaviour table and the oracles.
    """
    folder = Path(output_path)
    folder.mkdir(parents=True, exist_ok=True)
    start = time.process_time()
    base = new_tiny_model(seed)
    losses = {"tiny-base": train(base, BASE, seed, scheduled(BASE, steps_scale))}
    save_tiny_weights(base, folder / "tiny-base.safetensors")
    for name, stage in (("tiny-chat", CHAT), ("tiny-null", NULL)):
        model = copy.deepcopy(base)
        losses[name] = train(model, stage, seed, scheduled(stage, steps_scale))
        save_tiny_weights(model, folder / f"{name}.safetensors")
    training_seconds = time.process_time() - start
    record = {
        "seed": seed,
        "steps_scale": steps_scale,
        "batch_rows": BATCH_ROWS,
        "context_size": TINY_CONTEXT_SIZE,
        "stages": {name: asdict(stage) for name, stage in zip(losses, (BASE, CHAT, NULL), strict=True)},
        "final_loss_nats": {name: statistics.fmean(values[-20:]) for name, values in losses.items()},
        "training_cpu_seconds": round(training_seconds),
        "versions": package_versions(("torch", "transformer-lens")),
        **evaluate(folder, n_prompts),
    }
    (folder / "behaviour.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


def train_tiny_control(
    output_path: str | Path, seed: int = 0, steps_scale: float = 1.0, n_prompts: int = 500
) -> dict[str, Any]:
    """Tune the built-in base model on the chat model's prompts with other answers: a topic-matched control.

    Saves `tiny-control.safetensors` and `control.json`, the behaviour of both models, and returns the latter.

    Args:
        output_path: folder for the two files, created if missing.
        seed: seed of the training text.
        steps_scale: factor for the number of steps; 1 for the committed weights.
        n_prompts: held-out prompts per kind, for the behaviour table.
    """
    folder = Path(output_path)
    folder.mkdir(parents=True, exist_ok=True)
    base, start = load_tiny_weights(WEIGHTS_PATH / "tiny-base.safetensors"), time.process_time()
    model = copy.deepcopy(base)
    losses = train(model, CONTROL, seed, scheduled(CONTROL, steps_scale))
    save_tiny_weights(model, folder / "tiny-control.safetensors")
    behaviour = behaviour_table(base, model, n_prompts, EVALUATION_SEED).rename(columns={"chat": "control"})
    record = {
        "seed": seed,
        "steps_scale": steps_scale,
        "stage": asdict(CONTROL),
        "final_loss_nats": statistics.fmean(losses[-20:]),
        "training_cpu_seconds": round(time.process_time() - start),
        "versions": package_versions(("torch", "transformer-lens")),
        "n_prompts": n_prompts,
        "evaluation_seed": EVALUATION_SEED,
        "behaviour": behaviour.round(3).to_dict(orient="index"),
    }
    (folder / "control.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


def evaluate(folder: Path, n_prompts: int) -> dict[str, Any]:
    """Behaviour and oracles, per layer, of the models saved in a folder."""
    base = load_tiny_weights(folder / "tiny-base.safetensors")
    chat = load_tiny_weights(folder / "tiny-chat.safetensors")
    null = load_tiny_weights(folder / "tiny-null.safetensors")
    behaviour = behaviour_table(base, chat, n_prompts, EVALUATION_SEED)
    behaviour["null"] = behaviour_table(base, null, n_prompts, EVALUATION_SEED)["chat"]
    oracles = {
        hook: oracle_table(base, chat, hook, n_prompts, EVALUATION_SEED)["oracle"].round(3).to_dict()
        for hook in (f"blocks.{layer}.hook_resid_post" for layer in range(N_LAYERS))
    }
    return {
        "n_prompts": n_prompts,
        "evaluation_seed": EVALUATION_SEED,
        "behaviour": behaviour.round(3).to_dict(orient="index"),
        "recommended_hook": TINY_HOOK,
        "oracle": oracles,
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output-path", required=True, help="folder for the weights and behaviour.json")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and text (default 0)")
    parser.add_argument("--steps-scale", type=float, default=1.0, help="factor for all numbers of steps (default 1)")
    parser.add_argument("--control", action="store_true", help="tune the built-in base model as a control instead")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # reproducible, and fastest at this size
    make = train_tiny_control if arguments.control else train_tiny_pair
    make(arguments.output_path, arguments.seed, arguments.steps_scale)


if __name__ == "__main__":
    main()
