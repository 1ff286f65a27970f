"""Where activations come from: planted worlds that keep their word, rows that are held out."""

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset

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
from sae_lens_crosscoder.models.tiny import TINY_CONTEXT_SIZE, TINY_DATASET, TINY_HOOK
from tests.reference import planted as ref


def test_a_world_is_its_seed():
    first, second = (world_a(seed=3).sample(200, seed=4) for _ in range(2))
    assert torch.equal(first.activations, second.activations)
    assert not torch.equal(first.activations, world_a(seed=3).sample(200, seed=5).activations)
    assert not torch.equal(first.activations, world_a(seed=4).sample(200, seed=4).activations)
    one, again, other = (PlantedWorld([Concept("shared", 0.1)] * 3, d_model=4, seed=seed) for seed in (0, 0, 1))
    for ours, same, different in zip(one.directions, again.directions, other.directions, strict=True):
        assert torch.equal(ours, same)
        assert not torch.equal(ours, different)
    assert torch.equal(one.offset, again.offset)
    assert not torch.equal(one.offset, other.offset)


ONE_OF_EACH = [
    Concept("shared", 0.3),
    Concept("chat_only", 0.3),
    Concept("base_only", 0.3),
    Concept("weak", 0.3, rho=0.35),
    Concept("decoupled", 0.5, q=0.4),
    Concept("rotated", 0.3, angle_degrees=45.0),
]


def test_activations_are_the_coefficients_along_the_directions():
    world = PlantedWorld(ONE_OF_EACH, d_model=5, seed=2, noise=0.0)
    tokens = world.sample(30, seed=3)
    directions = [part.tolist() for part in world.directions]
    expected = ref.clean_activations(tokens.coefficients.tolist(), directions, world.offset.tolist())
    torch.testing.assert_close(tokens.activations, torch.tensor(expected), rtol=0, atol=1e-5)


def test_every_kind_is_in_the_base_model_as_much_as_its_definition_says():
    world = PlantedWorld(ONE_OF_EACH, d_model=5, seed=2)
    coefficients = world.sample(40_000, seed=3).coefficients
    found = [ref.base_presence(coefficients[:, [i]].tolist(), 0) for i in (0, 1, 3, 4, 5)]
    assert found == pytest.approx([1, 0, 0.35, 2 * 0.4 / 1.4, 1], abs=0.02)
    assert coefficients[:, 2, 1].max() == 0
    size = coefficients[:, 0, 0]
    assert size[size > 0].mean().item() == pytest.approx(1, abs=0.02)
    assert size[size > 0].std().item() == pytest.approx(world.magnitude_cv, abs=0.02)
    assert world.l0 == pytest.approx(0.3 * 5 + 0.5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "weka"}, "kind='weka' is not one of"),
        ({"firing_probability": 1.5}, r"firing_probability=1.5 must lie in \[0, 1\]"),
        ({"rho": -0.1}, r"rho=-0.1 must lie in \[0, 1\]"),
        ({"kind": "decoupled", "q": 2.0}, r"q=2.0 must lie in \[0, 1\]"),
        ({"kind": "shared", "angle_degrees": 45.0}, "angle_degrees=45.0 turns 'rotated' concepts only"),
    ],
)
def test_a_concept_that_means_nothing_is_refused(fields, message):
    unchecked = getattr(Concept.__init__, "__wrapped__", Concept.__init__)
    with pytest.raises(ValueError, match=message):
        unchecked(object.__new__(Concept), **{"kind": "weak", "firing_probability": 0.1, **fields})


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
    assert (len(world.indices("decoupled")), len(world.indices("rotated"))) == (18, 12)
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


def test_no_row_is_lost_or_shared_when_nothing_is_held_out():
    train, held_out = hold_out(Dataset.from_dict({"tokens": [[1], [2]]}), 0)
    assert [row["tokens"] for row in train] == [[1], [2]]
    assert list(held_out) == []


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("n_rows", "n_held_out", "message"),
    [
        (0, 1, "The dataset is empty"),
        (2, 2, "n_held_out_rows=2 takes the whole dataset"),
        (2, 5, "n_held_out_rows=5 takes the whole dataset"),
        (2, -1, "n_held_out_rows=-1 must not be negative"),
    ],
)
def test_too_few_rows_are_refused(streaming, n_rows, n_held_out, message):
    rows = [{"tokens": [i]} for i in range(n_rows)]
    streamed = IterableDataset.from_generator(lambda: iter(rows))
    with pytest.raises(ValueError, match=message):
        hold_out(streamed if streaming else Dataset.from_list(rows), n_held_out)


def test_the_built_in_rows_are_their_seed_and_enough():
    options = dict(streaming=False, n_tokens=10 * TINY_CONTEXT_SIZE + 1, n_held_out_rows=3)
    first, again, other = (load_rows(TINY_DATASET, seed=seed, **options)["input_ids"] for seed in (0, 0, 1))
    assert len(first) == 14
    assert list(first) == list(again) != list(other)


def test_of_a_saved_dict_of_splits_the_training_split_is_read(tmp_path):
    splits = {"test": [[7]], "train": [[1], [2]]}
    saved = DatasetDict({name: Dataset.from_dict({"tokens": rows}) for name, rows in splits.items()})
    saved.save_to_disk(tmp_path / "splits")
    rows = load_rows(str(tmp_path / "splits"), streaming=False, n_tokens=1, n_held_out_rows=0, seed=0)
    assert list(rows["tokens"]) == [[1], [2]]


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
