"""Planted worlds keep their word, and tell a crosscoder nothing of it."""

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.synthetic import Concept, PlantedWorld, null_world, world_a
from tests.reference import planted as ref


def test_a_world_is_its_seed():
    first, second = (world_a(seed=3).sample(200, seed=4) for _ in range(2))
    assert torch.equal(first.activations, second.activations)
    assert not torch.equal(first.activations, world_a(seed=3).sample(200, seed=5).activations)
    assert not torch.equal(first.activations, world_a(seed=4).sample(200, seed=4).activations)
    one, again, other = (PlantedWorld([Concept("shared", 0.1)] * 3, d_models=(4, 4), seed=seed) for seed in (0, 0, 1))
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
    Concept("weakened", 0.3, rho=0.2),
    Concept("chat_only", 0.9, size=0.5, fires_with=0),
]


def test_activations_are_the_coefficients_along_the_directions():
    world = PlantedWorld(ONE_OF_EACH, d_models=(5, 5), seed=2, noise=0.0)
    tokens = world.sample(30, seed=3)
    directions = [part.tolist() for part in world.directions]
    expected = ref.clean_activations(tokens.coefficients.tolist(), directions, world.offset.tolist())
    torch.testing.assert_close(tokens.activations, torch.tensor(expected), rtol=0, atol=1e-5)


def test_every_kind_is_in_the_base_model_as_much_as_its_definition_says():
    world = PlantedWorld(ONE_OF_EACH, d_models=(5, 5), seed=2)
    coefficients = world.sample(40_000, seed=3).coefficients
    found = [ref.base_presence(coefficients[:, [i]].tolist(), 0) for i in (0, 1, 3, 4, 5, 6, 7)]
    assert found == pytest.approx([1, 0, 0.35, 2 * 0.4 / 1.4, 1, 5, 0], abs=0.02)
    assert coefficients[:, 2, 1].max() == 0
    size = coefficients[:, 0, 0]
    assert size[size > 0].mean().item() == pytest.approx(1, abs=0.02)
    assert size[size > 0].std().item() == pytest.approx(world.magnitude_cv, abs=0.02)
    assert world.l0 == pytest.approx(0.3 * 7 + 0.5)
    follower = coefficients[:, 7, 1]
    assert torch.equal(follower > 0, size > 0)
    assert follower[follower > 0].mean().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "weka"}, "kind='weka' is invalid: choose one of"),
        ({"firing_probability": 1.5}, r"firing_probability=1.5 is invalid: expected a number in \[0, 1\]"),
        ({"rho": -0.1}, r"rho=-0.1 is invalid: expected a number in \[0, 1\]"),
        ({"kind": "decoupled", "q": 2.0}, r"q=2.0 is invalid: expected a number in \[0, 1\]"),
        ({"kind": "shared", "angle_degrees": 45.0}, "angle_degrees=45.0 applies to kind='rotated' only"),
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
    c = PlantedWorld(concepts, d_models=(8, 8)).sample(100_000, seed=0).coefficients
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


@pytest.mark.parametrize("build", [world_a, null_world])
def test_a_crosscoder_of_the_same_seed_does_not_start_with_the_truth(build):
    """torch gives the same numbers for the same seed, and both begin by drawing directions."""
    for seed in range(5):
        torch.manual_seed(seed)
        cfg = slc.BatchTopKCrosscoderTrainingConfig(d_model=64, d_sae=256, k=4)
        decoder = slc.BatchTopKTrainingCrosscoder(cfg).decoders[0]
        cosines = torch.nn.functional.normalize(decoder.detach(), dim=-1) @ build(seed=seed).directions[0].T
        assert cosines.max() < 0.7


def test_variations_change_what_they_are_named_after():
    rare = world_a(seed=0, exclusive_probability=0.003, exclusive_size=0.7)
    assert {rare.concepts[i].firing_probability for i in rare.indices("chat_only")} == {0.003}
    c = rare.sample(60_000, seed=1).coefficients[:, rare.indices("chat_only"), 1]
    assert c[c > 0].mean().item() == pytest.approx(0.7, abs=0.03)
    paired = world_a(seed=0, co_occurring=True)
    c = paired.sample(2000, seed=1).coefficients[:, paired.indices("chat_only"), 1] > 0
    assert torch.equal(c[:, 0::2], c[:, 1::2])
    assert paired.l0 == pytest.approx(
        c.float().sum(dim=1).mean().item()
        + world_a(seed=0).l0
        - sum(world_a(seed=0).concepts[i].firing_probability for i in world_a(seed=0).indices("chat_only")),
        abs=0.1,
    )
    mirrored = world_a(seed=0, mirrored=True)
    assert (len(mirrored.indices("weakened")), len(mirrored.indices("weak"))) == (24, 0)
    frequent = world_a(seed=0, probabilities=(0.04, 0.12))
    p = [concept.firing_probability for concept in frequent.concepts]
    assert 0.04 <= min(p) < 0.042 < 0.115 < max(p) <= 0.12
    random = world_a(seed=0, directions="random").directions[0]
    assert (random @ random.T - torch.eye(174)).abs().max() > 0.3


def test_a_louder_model_is_louder_by_its_gain_and_otherwise_the_same():
    quiet, loud = world_a(seed=0).sample(100, seed=1), world_a(seed=0, gains=(1.0, 50.0)).sample(100, seed=1)
    torch.testing.assert_close(loud.activations[:, :64], quiet.activations[:, :64])
    torch.testing.assert_close(loud.activations[:, 64:], 50 * quiet.activations[:, 64:])


def test_models_of_different_width_have_unrelated_directions_and_no_rotated_concepts():
    world = world_a(seed=0, d_models=(64, 48))
    assert [part.shape[-1] for part in world.directions] == [64, 48]
    assert world.indices("rotated") == []
    assert len(world.concepts) == 174
    with pytest.raises(ValueError, match="Rotated concepts need two models of equal width"):
        PlantedWorld([Concept("rotated", 0.1, angle_degrees=45.0)], d_models=(4, 3))
