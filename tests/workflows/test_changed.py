"""The planted change is named after training, by everything that is needed; a random map of the same size is not."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations import ContrastRows, DrawnBatches
from sae_lens_crosscoder.analysis.changed.decoys import RandomMap
from sae_lens_crosscoder.data.contrasts import second_halves
from sae_lens_crosscoder.training import TrainingRecipe
from sae_lens_crosscoder.workflows import changed

D_MODEL, N_CONCEPTS, N_ROWS, N_PROMPTS = 32, 40, 3000, 120
BATCH, STEPS = 256, 150
RECIPE = TrainingRecipe(
    slc.BatchTopKCrosscoderTrainingConfig(d_model=D_MODEL, d_sae=64, k=5, activation_scaling="per_model"),
    slc.CrosscoderTrainerConfig(
        total_training_samples=BATCH * STEPS,
        train_batch_size_samples=BATCH,
        lr=5e-3,
        lr_warm_up_steps=8,
        lr_decay_steps=30,
        dead_feature_window=20,
        n_batches_for_norm_estimate=4,
    ),
)


def world(angle, seed=0):
    """Rows and a contrast: concept 0, on at every second prompt, is turned by `angle`; all else by a small map."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.nn.functional.normalize(torch.randn(N_CONCEPTS, D_MODEL, generator=generator), dim=1)
    turned = torch.nn.functional.normalize(torch.randn(D_MODEL, generator=generator), dim=0)

    def draw(n, positive):
        f = torch.rand(n, N_CONCEPTS, generator=generator) + 0.5
        f = f * (torch.rand(n, N_CONCEPTS, generator=generator) < 0.08)
        f[:, 0] = positive * 1.5
        return f

    positive = torch.arange(N_PROMPTS) % 2 == 0
    f = torch.cat([draw(N_ROWS, torch.rand(N_ROWS, generator=generator) < 0.03), draw(N_PROMPTS, positive)])
    drift = RandomMap.draw(f @ base, 0.06, 8, seed + 1)
    chat = drift.stack(base)[:, D_MODEL:].clone()
    chat[0] = torch.cos(torch.tensor(angle)) * chat[0] + torch.sin(torch.tensor(angle)) * turned
    rows = torch.cat([f @ base, f @ chat], dim=1)
    contrast = ContrastRows(
        name="decision", activations=rows[N_ROWS:], positive=positive, held_out=second_halves(positive)
    )
    weights = torch.ones(len(rows))
    weights[N_ROWS:] = 8
    return rows, contrast, weights


def trained(rows, weights, seed=0):
    return RECIPE.train(DrawnBatches(rows, BATCH, seed, weights), seed=seed)


@pytest.fixture(scope="module")
def planted():
    rows, contrast, weights = world(angle=1.2)
    return trained(rows, weights), slc.EvalData(activations=rows), contrast, weights


@pytest.fixture(scope="module")
def found(planted, tmp_path_factory):
    crosscoder, data, contrast, weights = planted
    folder = tmp_path_factory.mktemp("decoys")
    return changed(crosscoder, data, [contrast], weights=weights, folder=folder), folder


def test_the_planted_change_is_named(found):
    result, _ = found
    row = result.contrasts.loc["decision"]
    assert row["gate"]
    assert 1 <= len(result.named) <= 4
    assert row["share_named"] > 0.5
    assert row["best_auroc"] > 0.95
    assert set(result.latents.loc[result.named, "class"]) <= {"turned", "chat_only", "base_only"}
    assert result.manifest["n_rows"] == N_ROWS + N_PROMPTS


def test_a_map_without_an_aim_is_not(tmp_path):
    rows, contrast, weights = world(angle=0.0)
    result = changed(trained(rows, weights), slc.EvalData(activations=rows), [contrast], weights=weights)
    assert result.named == []
    assert result.conclusion.startswith("no difference detected")


def test_a_call_resumes_with_the_decoys_in_its_folder(found, planted, monkeypatch):
    result, folder = found
    crosscoder, data, contrast, weights = planted
    (folder / "decoy_1.safetensors").unlink()
    n_trained = []
    train = TrainingRecipe.train
    monkeypatch.setattr(TrainingRecipe, "train", lambda *a, **k: n_trained.append(1) or train(*a, **k))
    again = changed(crosscoder, data, [contrast], weights=weights, folder=folder)
    assert len(n_trained) == 1
    pd.testing.assert_frame_equal(again.latents, result.latents)
    other = replace(contrast, activations=contrast.activations + 0.01)
    changed(crosscoder, data, [other], weights=weights, folder=folder, n_decoys=1)
    assert len(n_trained) == 2  # a decoy of other rows is no decoy of these


def test_the_recipe_travels_with_the_crosscoder(planted, tmp_path):
    crosscoder, *_ = planted
    crosscoder.save_model(tmp_path)
    loaded = slc.load(tmp_path)
    assert TrainingRecipe.of(loaded).to_dict() == RECIPE.to_dict()
    rows, _, weights = world(angle=1.2)
    again = trained(rows, weights)
    assert torch.equal(again.W_dec, loaded.W_dec)


def test_a_crosscoder_without_recipe_and_bad_input_are_refused_before_training(planted, monkeypatch):
    crosscoder, data, contrast, _ = planted
    monkeypatch.setattr(TrainingRecipe, "train", None)
    with pytest.raises(ValueError, match="n_decoys=0"):
        changed(crosscoder, data, [contrast], n_decoys=0)
    with pytest.raises(ValueError, match="Got 3 weights"):
        changed(crosscoder, data, [contrast], weights=torch.ones(3))
    few = ContrastRows(
        name="few",
        activations=contrast.activations[:20],
        positive=contrast.positive[:20],
        held_out=second_halves(contrast.positive[:20]),
    )
    with pytest.raises(ValueError, match="control splits"):
        changed(crosscoder, data, [few])
    same = data.activations.clone()
    same[:, D_MODEL:] = same[:, :D_MODEL]
    equal = replace(contrast, activations=contrast.activations[:, :D_MODEL].repeat(1, 2))
    with pytest.raises(ValueError, match="nothing to compare decoys"):
        changed(crosscoder, slc.EvalData(activations=same), [equal])
    monkeypatch.setattr(crosscoder.cfg.metadata, "recipe", None)
    with pytest.raises(ValueError, match="has no training recipe"):
        changed(crosscoder, data, [contrast])


def test_rows_are_drawn_as_often_as_their_weights_say():
    rows = torch.arange(4.0)[:, None]
    weights = torch.tensor([1.0, 0.0, 2.0, 8.0])
    drawn = next(DrawnBatches(rows, 20_000, weights=weights)).flatten().long().bincount(minlength=4)
    torch.testing.assert_close(drawn / 20_000, weights / weights.sum(), atol=0.01, rtol=0)
    assert next(DrawnBatches(rows, 8, seed=3)).tolist() == next(DrawnBatches(rows, 8, seed=3)).tolist()
    for bad in (torch.ones(3), torch.zeros(4), -weights, weights * torch.nan):
        with pytest.raises(ValueError, match="weights"):
            DrawnBatches(rows, 8, weights=bad)
