"""What the planted benchmarks share: the training, and the columns of a score card."""

import tempfile
from typing import Any

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.data import TokenGroups
from sae_lens_crosscoder.synthetic import PlantedTokens, PlantedWorld

LEARNING_RATE = 5e-3
BATCH, D_SAE = 512, 256
POOL_TOKENS = EVALUATION_TOKENS = 120_000


def trainer_config(steps: int) -> slc.CrosscoderTrainerConfig:
    """Settings of a training of this many steps."""
    return slc.CrosscoderTrainerConfig(
        total_training_samples=steps * BATCH,
        train_batch_size_samples=BATCH,
        lr=LEARNING_RATE,
        lr_warm_up_steps=steps * 3 // 100,
        lr_decay_steps=steps // 5,
        dead_feature_window=200,
    )


def polished(crosscoder: Any, batches: Any) -> Any:
    """Polish a trained crosscoder on further batches. Planted worlds have a noise floor."""
    cfg = slc.training.PolishConfig(lr=LEARNING_RATE / 5, stop="noise")
    return slc.training.polish(crosscoder, batches, cfg)


def as_loaded(crosscoder: Any) -> slc.crosscoders.InferenceCrosscoder:
    """Return what a user would load."""
    with tempfile.TemporaryDirectory() as folder:
        crosscoder.save_inference_model(folder)
        return slc.load(folder)


def evaluation_data(world: PlantedWorld, tokens: PlantedTokens) -> slc.EvalData:
    """What a user would diagnose on: with the places of the template, if there are any."""
    groups = TokenGroups(tokens.places[:, None], world.place_names) if len(world.place_names) > 1 else None
    return slc.EvalData(activations=tokens.activations, groups=groups)


def card_columns(card: dict[str, Any]) -> dict[str, Any]:
    """Flatten a score card into columns such as `precision_chat_verdict`, which say the measure, side and rule."""
    columns = {name: value for name, value in card.items() if not isinstance(value, dict)}
    for name, attribution in card.items():
        if isinstance(attribution, dict):
            columns |= {f"{measure}_{name}": attribution[measure] for measure in ("precision", "recall", "n")}
    return columns
