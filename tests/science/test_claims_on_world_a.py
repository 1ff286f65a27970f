"""The paper's claims against planted truth, through the public trainer (more seeds in benchmarks/planted_pairs.py)."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.synthetic.null_streams import shuffled_batches
from sae_lens_crosscoder.synthetic.worlds import world_a

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from planted_pairs import Cell, claims, run


@pytest.fixture(scope="module")
def rows():
    # BatchTopK has found everything after 1,500 of the card's 2,500 steps; L1 needs all of its 3,000.
    steps = {"batchtopk": 1500}
    return {cell.name: run(replace(cell, steps=steps.get(cell.name)), seed=0)[0] for cell in claims()}


def test_batchtopk_finds_the_chat_only_concepts_and_falls_into_no_trap(rows):
    row = rows["batchtopk"]
    assert row["precision_chat_delta_norm"] >= 0.95
    assert row["recall_chat_delta_norm"] >= 0.95
    assert row["precision_base_delta_norm"] >= 0.95
    assert row["recall_base_delta_norm"] >= 0.95
    assert row["frac_weak_flagged"] == row["frac_decoupled_flagged"] == 0


def test_a_rotated_concept_is_seen_at_its_angle_and_never_called_specific(rows):
    assert rows["batchtopk"]["rotated_min_nu_free"] > 0.9
    assert rows["batchtopk"]["rotated_max_angle_error_degrees"] < 10
    assert rows["batchtopk"]["frac_rotated_specific"] == rows["A"]["frac_rotated_specific"] == 0


def test_l1_falls_into_both_traps(rows):
    row = rows["A"]
    assert row["precision_chat_delta_norm"] <= 0.70
    assert row["frac_weak_flagged"] * 24 >= 6
    assert row["frac_decoupled_flagged"] * 18 >= 2


def test_latent_scaling_rescues_l1(rows):
    row = rows["A"]
    assert row["precision_chat_absolute_nu"] >= 0.85
    assert row["recall_chat_absolute_nu"] >= 0.95
    # Over five seeds it lies between 0.91 and 1; on this one rounding moves it about 0.95, with either training step.
    assert row["nu_auroc_in_flagged"] >= 0.9


def test_nu_error_of_a_weak_latent_is_its_planted_strength_in_the_base_model(rows):
    for rho in (0.25, 0.35, 0.5):
        assert rows["A"][f"median_nu_error_rho_{rho}"] == pytest.approx(rho, abs=0.03)


def test_without_the_summed_norms_in_the_penalty_no_weak_concept_is_flagged():
    """The mutation that shows where Complete Shrinkage comes from: a stacked SAE's penalty."""
    row = run(Cell("stacked norm", "crosscoder", {"l1_coefficient": 0.18, "score": "l2"}), seed=0)[0]
    assert row["frac_weak_flagged"] == 0
    assert row["recall_chat_delta_norm"] >= 0.8  # so that not everything has merely become shared


@pytest.mark.parametrize(("lr", "tolerance"), [(5e-3, 0.05), (1e-3, 0.05), (3e-4, 0.1)])
def test_the_exported_l0_is_close_to_k_after_300_steps(tmp_path, lr, tolerance):
    """The slowest has learned next to nothing (FVE 0.2): its scores still move while they are averaged."""
    world = world_a(seed=0)
    cfg = slc.BatchTopKCrosscoderTrainingConfig(d_model=64, d_sae=256, k=world.l0)
    crosscoder = slc.BatchTopKTrainingCrosscoder(cfg)
    trainer_cfg = slc.CrosscoderTrainerConfig(
        total_training_samples=300 * 512,
        train_batch_size_samples=512,
        lr=lr,
        lr_warm_up_steps=30,
        dead_feature_window=200,
    )
    stream = shuffled_batches(world.sample(60_000, seed=1).activations, 512, seed=0)
    slc.CrosscoderTrainer(trainer_cfg, crosscoder, stream).fit()
    crosscoder.save_inference_model(tmp_path)
    fresh = world.sample(24_000, seed=2).activations
    with torch.no_grad():
        l0 = (slc.load(tmp_path).encode(fresh) > 0).sum(dim=-1).double().mean().item()
    assert l0 == pytest.approx(world.l0, rel=tolerance)
