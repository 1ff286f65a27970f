"""What must not change when nothing of substance does: the order of the models, their loudness, and no difference."""

from typing import Any

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.synthetic.concepts import Concept
from sae_lens_crosscoder.synthetic.null_streams import null_activations, shuffled_batches
from sae_lens_crosscoder.synthetic.planted import PlantedWorld

CONFIGS: dict[str, Any] = {
    "l1": (slc.L1TrainingCrosscoder, slc.L1CrosscoderTrainingConfig, {"l1_coefficient": 0.1, "decoder_init_norm": 0.3}),
    "batchtopk": (slc.BatchTopKTrainingCrosscoder, slc.BatchTopKCrosscoderTrainingConfig, {"k": 3.0}),
}
STEPS, BATCH = 400, 256


def small_world(**world):
    concepts = [Concept("shared", 0.1) for _ in range(12)]
    concepts += [Concept("chat_only", 0.1) for _ in range(5)]
    concepts += [Concept("base_only", 0.1) for _ in range(4)]
    concepts += [Concept("weak", 0.1, rho=0.25) for _ in range(4)]
    return PlantedWorld(concepts, d_models=(16, 16), seed=0, **world)


def trained(kind, activations, tmp_path, **fields):
    """The table of `diagnosed`."""
    return diagnosed(kind, activations, tmp_path, **fields).latents


def diagnosed(kind, activations, tmp_path, n_steps=STEPS, **fields):
    """The diagnosis of a crosscoder trained for a moment in float64, on activations that are then judged as well."""
    crosscoder_class, config_class, defaults = CONFIGS[kind]
    torch.manual_seed(1)
    crosscoder = crosscoder_class(config_class(d_model=16, d_sae=40, dtype="float64", **(defaults | fields)))
    cfg = slc.CrosscoderTrainerConfig(
        total_training_samples=n_steps * BATCH,
        train_batch_size_samples=BATCH,
        lr=1e-2,
        lr_warm_up_steps=n_steps // 20,
        lr_decay_steps=n_steps // 4,
        dead_feature_window=50,
        n_batches_for_norm_estimate=10,
    )
    slc.CrosscoderTrainer(cfg, crosscoder, shuffled_batches(activations, BATCH, seed=0)).fit()
    crosscoder.save_inference_model(tmp_path)
    data = slc.EvalData(activations=activations.split(1000))
    return slc.diagnose(slc.load(tmp_path), data, free_directions="all")


def pool(**world):
    return small_world(**world).sample(20_000, seed=1).activations.double()


@pytest.mark.parametrize("kind", CONFIGS)
def test_when_the_models_swap_everything_mirrors(kind, tmp_path):
    activations = pool()
    straight = trained(kind, activations, tmp_path)
    base, chat = activations.split(16, dim=-1)
    swapped = trained(kind, torch.cat([chat, base], dim=-1), tmp_path)
    assert swapped.delta_norm.to_numpy() == pytest.approx(1 - straight.delta_norm.to_numpy(), abs=1e-6, nan_ok=True)
    for target in ("error", "reconstruction"):
        for suffix in ("", "_low", "_high"):
            chat_probe, base_probe = f"nu_{target}{suffix}", f"nu_{target}_base_probe{suffix}"
            assert swapped[base_probe].to_numpy() == pytest.approx(straight[chat_probe], rel=1e-4, nan_ok=True)
    assert (1 / swapped.nu_free).to_numpy() == pytest.approx(straight.nu_free, rel=1e-4, nan_ok=True)
    mirror = {"chat_specific": "base_specific", "base_specific": "chat_specific"}
    assert swapped.verdict.tolist() == [mirror.get(name, name) for name in straight.verdict]
    assert {"chat_specific", "base_specific"} <= set(straight.verdict)


@pytest.mark.parametrize("kind", CONFIGS)
def test_in_a_model_and_itself_nothing_is_found(kind, tmp_path):
    real = pool()
    layout = small_world().layout
    (twice,) = null_activations([real], layout, "identical")
    diagnosis = diagnosed(kind, twice, tmp_path)
    assert diagnosis.latents.delta_norm.to_numpy() == pytest.approx(0.5, abs=1e-9)
    assert diagnosis.conclusion.startswith("undecided: both models have exactly equal activations on all 20,000 tokens")


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_model_and_itself_with_noise_do_not_differ(kind, tmp_path):
    (jittered,) = null_activations([pool()], small_world().layout, "jittered")
    diagnosis = diagnosed(kind, jittered, tmp_path)
    assert min(diagnosis.manifest["fve"][name] for name in ("base", "chat")) > 0.9
    assert diagnosis.manifest["fve"]["difference"] == pytest.approx(0, abs=0.05)
    assert diagnosis.conclusion.startswith("no difference detected: none of ")


@pytest.mark.parametrize("kind", CONFIGS)
def test_after_ten_steps_nothing_is_concluded(kind, tmp_path):
    conclusion = diagnosed(kind, pool(), tmp_path, n_steps=10).conclusion
    assert conclusion.startswith("undecided: the FVE of the ")
    assert "below the floor of 0.5; train longer" in conclusion


@pytest.mark.parametrize("gain", [3.0, 50.0])
@pytest.mark.parametrize("kind", CONFIGS)
def test_how_loud_a_model_is_changes_nothing_once_each_is_scaled(kind, gain, tmp_path):
    tables = [
        trained(kind, pool(gains=gains), tmp_path, activation_scaling="per_model")
        for gains in ((1.0, 1.0), (1.0, gain))
    ]
    quiet, loud = tables
    assert loud.delta_norm.to_numpy() == pytest.approx(quiet.delta_norm.to_numpy(), abs=1e-3, nan_ok=True)
    assert loud.verdict.tolist() == quiet.verdict.tolist()
    assert "chat_specific" in set(quiet.verdict)


def test_without_scaling_a_louder_chat_model_makes_shared_latents_look_chat_only(tmp_path):
    table = trained("batchtopk", pool(gains=(1.0, 50.0)), tmp_path)
    assert (table.label == "chat_only").sum() > 15  # of 5 chat-only concepts
    assert not (table.label == "shared")[~table.dead].any()
