"""Where activations come from: planted worlds that keep their word, rows that are held out, sums over whole sets."""

import pytest
import torch
from datasets import Dataset

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations.datasets import hold_out, load_rows
from sae_lens_crosscoder.activations.harvest import harvest
from sae_lens_crosscoder.activations.planted import (
    Concept,
    PlantedWorld,
    null_world,
    shuffled_batches,
    world_a,
)
from sae_lens_crosscoder.activations.scale import MeanNorms
from sae_lens_crosscoder.activations.variance import VarianceExplained
from sae_lens_crosscoder.models.tiny import TINY_DATASET, TINY_HOOK

LAYOUT = slc.StackedLayout((2, 3))


def test_a_world_is_its_seed():
    first, second = (world_a(seed=3).sample(200, seed=4) for _ in range(2))
    assert torch.equal(first.activations, second.activations)
    assert not torch.equal(first.activations, world_a(seed=3).sample(200, seed=5).activations)
    assert not torch.equal(first.activations, world_a(seed=4).sample(200, seed=4).activations)


def test_the_truth_explains_the_activations_up_to_the_noise():
    world = world_a(seed=0)
    tokens = world.sample(2000, seed=1)
    parts = [tokens.coefficients[..., m] @ world.directions[m] for m in (0, 1)]
    residual = tokens.activations - torch.cat(parts, dim=-1) - world.offset
    assert residual.std().item() == pytest.approx(world.noise, rel=0.02)
    assert world.layout.norms(world.offset).tolist() == pytest.approx([0.3, 0.3])


def test_kinds_are_what_they_are_called():
    world = world_a(seed=0)
    counts = {kind: len(world.indices(kind)) for kind in ("shared", "chat_only", "base_only", "weak")}
    assert counts == {"shared": 96, "chat_only": 16, "base_only": 8, "weak": 24}
    assert len(world.indices("decoupled")), len(world.indices("rotated")) == (18, 12)
    c = world.sample(60_000, seed=1).coefficients
    fires = (c > 0).any(dim=-1).float().mean(dim=0)
    p = torch.tensor([concept.firing_probability for concept in world.concepts])
    assert ((fires - p).abs() < 5 * (p / 60_000).sqrt()).all()
    assert c[:, world.indices("chat_only"), 0].abs().max() == 0
    assert c[:, world.indices("base_only"), 1].abs().max() == 0
    for i in world.indices("weak"):
        torch.testing.assert_close(c[:, i, 0], world.concepts[i].rho * c[:, i, 1])
    assert torch.equal(c[:, world.indices("rotated"), 0], c[:, world.indices("rotated"), 1])


def test_a_decoupled_concept_is_in_the_base_for_2q_over_1_plus_q_of_the_chat_firings():
    concepts = [Concept("decoupled", 0.2, q=q) for q in (0.4, 0.6, 0.8)]
    c = PlantedWorld(concepts, d_model=8).sample(100_000, seed=0).coefficients
    for i, q in enumerate((0.4, 0.6, 0.8)):
        on_in_chat = c[:, i, 1] > 0
        share = (c[on_in_chat, i, 0] > 0).double().mean().item()
        assert share == pytest.approx(2 * q / (1 + q), abs=0.015)


def test_directions_are_unit_spread_and_turned_by_their_angle():
    world = world_a(seed=0)
    base, chat = world.directions
    torch.testing.assert_close(base.norm(dim=-1), torch.ones(174))
    torch.testing.assert_close(chat.norm(dim=-1), torch.ones(174))
    cosines = (base @ base.T - torch.eye(174)).abs().max()
    assert cosines < 0.25  # random directions reach 0.45
    angles = torch.tensor([concept.angle_degrees for concept in world.concepts])
    torch.testing.assert_close((base * chat).sum(dim=-1), angles.deg2rad().cos(), atol=1e-5, rtol=0)


def test_nothing_differs_by_more_than_fifteen_degrees_in_a_null_world():
    world = null_world(seed=0)
    assert {concept.kind for concept in world.concepts} == {"rotated"}
    assert (world.directions[0] * world.directions[1]).sum(dim=-1).min() >= 0.9659


def test_batches_cover_every_epoch_in_a_new_order():
    batches = shuffled_batches(torch.arange(10.0)[:, None], batch_size=3, seed=0)
    epochs = [torch.cat([next(batches) for _ in range(3)]).squeeze().tolist() for _ in range(2)]
    assert all(len(set(epoch)) == 9 for epoch in epochs)
    assert epochs[0] != epochs[1]
    with pytest.raises(ValueError, match="2 tokens do not fill one batch of 3"):
        next(shuffled_batches(torch.zeros(2, 1), batch_size=3, seed=0))


@pytest.mark.parametrize("streaming", [False, True])
def test_held_out_rows_and_training_rows_are_disjoint_and_complete(streaming):
    rows = Dataset.from_dict({"tokens": [[i] for i in range(10)]})
    train, held_out = hold_out(rows.to_iterable_dataset() if streaming else rows, 3)
    assert [row["tokens"] for row in held_out] == [[0], [1], [2]]
    assert [row["tokens"] for row in train] == [[i] for i in range(3, 10)]


def test_rows_are_read_from_where_the_path_says(tmp_path):
    rows = Dataset.from_dict({"input_ids": [[1, 2], [3, 4]]})
    rows.save_to_disk(tmp_path / "saved")
    options = dict(streaming=False, n_tokens=640, n_held_out_rows=2, seed=0)
    assert list(load_rows(str(tmp_path / "saved"), **options)["input_ids"]) == [[1, 2], [3, 4]]
    assert len(load_rows(TINY_DATASET, **options)) == 12
    with pytest.raises(ValueError, match="dataset_path is empty"):
        load_rows("", **options)
    (tmp_path / "texts").mkdir()
    rows.to_json(tmp_path / "texts" / "train.jsonl")
    assert list(load_rows(str(tmp_path / "texts"), **options)["input_ids"]) == [[1, 2], [3, 4]]


def test_harvested_activations_are_the_pairs_in_order():
    pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
    tokens = torch.arange(12).view(3, 4)
    together = torch.cat(list(harvest(pair, tokens, TINY_HOOK, batch_size_prompts=2)))
    torch.testing.assert_close(together, pair.activations(tokens, TINY_HOOK).flatten(0, 1))
    with pytest.raises(ValueError, match="no common hook"):
        harvest(pair, tokens, "blocks.7.hook_resid_post")
    with pytest.raises(ValueError, match="non-empty"):
        harvest(pair, tokens[:0], TINY_HOOK)


def variance(rows):
    n = len(rows)
    return sum(sum(x * x for x in column) / n - (sum(column) / n) ** 2 for column in zip(*rows, strict=True))


def test_variance_explained_is_over_the_whole_set_whatever_the_batches():
    x = torch.randn(30, 5, dtype=torch.float64) * torch.arange(1, 31)[:, None]
    guess = x + torch.randn(30, 5, dtype=torch.float64)
    expected = {
        name: 1 - variance((x - guess)[:, cut].tolist()) / variance(x[:, cut].tolist())
        for name, cut in (("base", slice(0, 2)), ("chat", slice(2, 5)))
    }
    for sizes in ([30], [1, 9, 20]):
        fve = VarianceExplained(LAYOUT)
        for part, estimate in zip(x.split(sizes), guess.split(sizes), strict=True):
            fve.add(part, estimate)
        assert fve.per_model() == pytest.approx(expected)
        assert fve.pooled() == pytest.approx(1 - variance((x - guess).tolist()) / variance(x.tolist()))


def test_a_constant_offset_explains_and_costs_nothing():
    x = torch.randn(30, 5, dtype=torch.float64)
    for shift in (0.0, 5.0):
        fve = VarianceExplained(LAYOUT)
        fve.add(x + shift, 0.5 * x)
        assert fve.pooled() == pytest.approx(0.75)


def test_undefined_variance_is_nan_or_an_error():
    fve = VarianceExplained(LAYOUT)
    with pytest.raises(ValueError, match="No tokens"):
        fve.pooled()
    x = torch.randn(30, 5, dtype=torch.float64)
    x[:, :2] = 0
    fve.add(x, x)
    per_model = fve.per_model()
    assert per_model["base"] != per_model["base"]
    assert per_model["chat"] == 1


def test_mean_norms_are_means_of_norms_whatever_the_batches():
    x = torch.randn(30, 5, dtype=torch.float64)
    norms = MeanNorms(LAYOUT)
    for part in x.split([7, 23]):
        norms.add(part)
    base = sum(sum(v * v for v in row) ** 0.5 for row in x[:, :2].tolist()) / 30
    chat = sum(sum(v * v for v in row) ** 0.5 for row in x[:, 2:].tolist()) / 30
    both = sum(sum(v * v for v in row) ** 0.5 for row in x.tolist()) / 30
    assert norms.scales().tolist() == pytest.approx([2**0.5 / base, 3**0.5 / chat])
    assert norms.stacked_scale() == pytest.approx(5**0.5 / both)


def test_a_model_that_is_always_zero_cannot_be_scaled():
    norms = MeanNorms(LAYOUT)
    x = torch.ones(4, 5)
    x[:, 2:] = 0
    norms.add(x)
    with pytest.raises(ValueError, match=r"The chat model's activations have mean norm 0\.0"):
        norms.scales()
