"""Planted worlds of more than two models, and the truth about two of them."""

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.synthetic import Concept, PlantedWorld, family_world, score_card, truth_table, world_a
from tests.analysis.conftest import relu_crosscoder

MODELS = [(0, 1, 2), (2,), (1, 2), (0, 1), (0,), (1,)]


def small_family(d_models=(12, 12, 12), **world):
    concepts = [Concept("only_in", 0.06, models=places) for places in MODELS]
    return PlantedWorld(concepts, d_models, seed=1, offset_norm=0.0, **world)


def read_exactly(world):
    """A crosscoder whose latent j writes concept j into the models that have it, and reads it from them."""
    W_dec = torch.cat([directions.clone() for directions in world.directions], dim=1).double()
    for j, concept in enumerate(world.concepts):
        for m, part in enumerate(world.layout.split(W_dec[j])):
            part *= m in concept.models
    W_enc = torch.linalg.pinv(W_dec)
    b_enc = torch.full((len(W_dec),), -0.1, dtype=torch.float64)
    return relu_crosscoder(W_dec, None, W_enc, b_enc, d_models=world.layout.d_models)


def test_a_concept_is_in_its_models_alone():
    tokens = small_family().sample(4000, seed=2)
    fires = (tokens.coefficients > 0).double().mean(dim=0)
    for j, places in enumerate(MODELS):
        for m in range(3):
            assert (fires[j, m] > 0.03) == (m in places)
            assert (fires[j, m] == 0) == (m not in places)


def test_models_of_one_width_share_directions_and_others_do_not():
    directions = family_world(0, d_models=(16, 12, 16)).directions
    assert torch.equal(directions[0], directions[2])
    assert directions[1].shape == (174, 12)
    assert [len(family_world(0, null=null).indices("shared")) for null in (False, True)] == [114, 174]


@pytest.mark.parametrize("d_models", [(12, 12, 12), (12, 10, 12)])
@pytest.mark.parametrize("places", [(0, 1), (1, 2), (0, 2), (2, 0)])
def test_what_emerges_persists_and_vanishes_is_told_apart_in_a_dictionary_that_reads_exactly(places, d_models):
    world = small_family(d_models)
    crosscoder, tokens = read_exactly(world), world.sample(30_000, seed=3)
    names = tuple(crosscoder.layout.names[m] for m in places)
    table = slc.diagnose(
        crosscoder, slc.EvalData(activations=tokens.activations, max_norm_ratio=None), models=names
    ).latents
    known = {
        (True, True): "shared",
        (False, True): "chat_specific",
        (True, False): "base_specific",
        (False, False): "undefined",
    }
    expected = [known[places[0] in models, places[1] in models] for models in MODELS]
    assert table.verdict.tolist() == expected
    truth = truth_table(world, crosscoder, tokens, models=names)
    kinds = [concept.kind for concept in world.of(*places).concepts]
    assert truth.concept.tolist() == [j if kind != "only_in" else -1 for j, kind in enumerate(kinds)]
    card = score_card(world.of(*places), truth, table)
    for found in (card.chat_verdict, card.base_verdict):
        assert (found.precision, found.recall) == (1, 1)


def test_the_truth_about_two_models_is_that_of_the_stack_without_the_third():
    world = small_family()
    crosscoder, tokens = read_exactly(world), world.sample(3000, seed=4)
    with torch.no_grad():
        crosscoder.W_enc[12:24] = 0
        crosscoder.W_dec[:, 12:24] = 0
    kept = [*range(12), *range(24, 36)]
    W_enc, W_dec = crosscoder.W_enc[kept], crosscoder.W_dec[:, kept]
    alone = relu_crosscoder(W_dec.detach(), None, W_enc.detach(), crosscoder.b_enc.detach(), d_models=(12, 12))
    pair = world.of(0, 2)
    cut = slc.synthetic.PlantedTokens(
        torch.cat([tokens.activations[:, :12], tokens.activations[:, 24:]], dim=1),
        tokens.coefficients[..., [0, 2]],
        tokens.is_sink,
        tokens.places,
    )
    truth = truth_table(world, crosscoder, tokens, models=("model_0", "model_2"))
    assert truth.equals(truth_table(pair, alone, cut))


def test_what_a_world_of_three_models_cannot_have_is_refused():
    with pytest.raises(ValueError, match="kind='chat_only' is for two models"):
        PlantedWorld([Concept("chat_only", 0.1)], d_models=(4, 4, 4))
    with pytest.raises(ValueError, match="need two models of equal width"):
        PlantedWorld([Concept("rotated", 0.1, angle_degrees=10.0)], d_models=(4, 4, 4))
    with pytest.raises(ValueError, match=r"models=\(2,\) must be places below 2"):
        PlantedWorld([Concept("only_in", 0.1, models=(2,))], d_models=(4, 4))
    world = small_family()
    with pytest.raises(ValueError, match="truth_table without models= compares two models"):
        truth_table(world, read_exactly(world), world.sample(10, seed=0))


def test_worlds_of_pairs_are_unchanged_by_it():
    """The first numbers of the standard world, on which all measured figures rest."""
    tokens = world_a(seed=0).sample(4, seed=1)
    assert tokens.activations.double().sum().item() == pytest.approx(16.05086, abs=1e-4)
