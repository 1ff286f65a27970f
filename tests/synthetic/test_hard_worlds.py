"""The hard worlds and their null twins are what they are called."""

import pytest
import torch

from sae_lens_crosscoder.synthetic import PlantedWorld, background_world, lora_world, null_world, world_a


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"d_models": (32, 32)},
        {"directions": "random"},
        {"probabilities": (0.002, 0.008)},
        {"exclusive_size": 0.7, "exclusive_probability": 0.003},
        {"co_occurring": True},
        {"magnitude_cv": 0.0},
        {"d_models": (64, 48)},
    ],
)
def test_a_null_twin_has_the_same_concepts_without_any_difference(options):
    world, twin = world_a(seed=3, **options), null_world(seed=3, **options)
    for name in ("firing_probability", "size", "fires_with", "share_of_lead"):
        assert [getattr(c, name) for c in twin.concepts] == [getattr(c, name) for c in world.concepts]
    assert (twin.layout.d_models, twin.magnitude_cv, twin.l0) == (world.layout.d_models, world.magnitude_cv, world.l0)
    c = twin.sample(2000, seed=1).coefficients
    assert torch.equal(c[..., 0], c[..., 1])
    if twin.layout.same_width:
        assert (twin.directions[0] * twin.directions[1]).sum(dim=-1).min() >= 0.9659


def test_less_used_concepts_fire_in_base_on_their_share_of_the_chat_firings():
    world = world_a(seed=0, less_used=True, probabilities=(0.2, 0.3))
    assert world.indices("less_used") == list(range(16))
    c = world.sample(40_000, seed=1).coefficients
    for index in world.indices("less_used"):
        on = c[:, index] > 0
        assert not (on[:, 0] & ~on[:, 1]).any()
        assert (on[:, 0].sum() / on[:, 1].sum()).item() == pytest.approx(world.concepts[index].q, abs=0.03)
    assert [world.concepts[i].q for i in (0, 15)] == pytest.approx([0.2, 0.8])
    assert null_world(seed=0, less_used=True).indices("less_used") == []


@pytest.mark.parametrize("null", [False, True])
def test_an_adapter_moves_every_concept_a_little_within_few_dimensions(null):
    world = lora_world(seed=0, null=null)
    moved = torch.tensor(world.indices("rotated"))
    base, chat = world.directions
    lengths = (chat - base)[moved].norm(dim=-1)
    assert 0.05 <= lengths.min() < 0.06 < 0.09 < lengths.max() <= 0.1
    turns = (chat - (chat * base).sum(dim=-1, keepdim=True) * base)[moved]
    along_base = base[moved] * (chat * base).sum(dim=-1, keepdim=True)[moved]
    energy = torch.linalg.svdvals(turns).square()
    assert energy[:8].sum() / energy.sum() > 0.9  # up to what orthogonality to each concept takes off
    assert along_base.shape == turns.shape
    counts = [len(world.indices(kind)) for kind in ("chat_only", "base_only")]
    assert counts == ([0, 0] if null else [6, 3])
    tokens = world.sample(2000, seed=1)
    h_base, h_chat = world.layout.split(tokens.activations)
    exclusive = [*world.indices("chat_only"), *world.indices("base_only")]
    quiet = (tokens.coefficients[:, exclusive] == 0).all(dim=1).all(dim=1) & (tokens.coefficients.sum(dim=(1, 2)) > 6)
    offset = world.layout.split(world.offset)
    difference = (h_chat - offset[1] - h_base + offset[0])[quiet].norm(dim=-1)
    assert (difference / (h_base - offset[0])[quiet].norm(dim=-1)).median() < 0.3  # two thirds of it noise


def test_turns_without_a_rank_are_unrelated():
    concepts = world_a(seed=0).concepts
    world = PlantedWorld(concepts, seed=0)
    turned = torch.tensor(world.indices("rotated"))
    energy = torch.linalg.svdvals((world.directions[1] - world.directions[0])[turned]).square()
    assert energy[:8].sum() / energy.sum() < 0.9


def test_the_null_twin_of_a_background_has_the_same_places():
    world, twin = background_world(0), background_world(0, null=True)
    assert twin.place_names == world.place_names
    assert [c.firing_probability for c in twin.concepts if c.is_place] == [0.03] * 8
    c = twin.sample(1000, seed=1).coefficients
    assert torch.equal(c[..., 0], c[..., 1])
