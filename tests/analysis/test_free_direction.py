"""Free-direction scaling: the direction that the data prefer, its length, its angle, and how much of it is noise."""

import math

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.analysis.diagnosis.free_direction import FreeDirections
from sae_lens_crosscoder.synthetic.concepts import Concept
from sae_lens_crosscoder.synthetic.planted import PlantedWorld
from tests.analysis.conftest import D_SAE, random_activations, random_crosscoder, relu_crosscoder
from tests.analysis.test_latent_scaling import lists
from tests.reference import latent_scaling as ref


def free_of(crosscoder, activations, latents=None, batch=None):
    free = FreeDirections(crosscoder, torch.arange(crosscoder.cfg.d_sae) if latents is None else latents)
    for part in activations.split(batch or len(activations)):
        f = crosscoder.encode(part)
        free.add(part, f, crosscoder.decode(f))
    return free


@pytest.mark.parametrize("scales", [None, (0.5, 4.0)])
def test_direction_and_noise_are_their_naive_definitions(scales):
    crosscoder, x = random_crosscoder(scales=scales), random_activations()
    tokens, f, decoders, b_dec = lists(crosscoder, x)
    free = free_of(crosscoder, x, batch=7)
    for m, found in enumerate(free.directions()):
        naive = [ref.free_direction(j, m, tokens, f, decoders, b_dec) for j in range(D_SAE)]
        v, floor = (torch.tensor(part, dtype=torch.float64) for part in zip(*naive, strict=True))
        c = 1.0 if scales is None else scales[m]
        torch.testing.assert_close(found, v, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(free.norms()[:, m], c * v.norm(dim=-1), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(free.noise()[:, m], c * floor, rtol=1e-6, atol=1e-9)


def test_only_the_chosen_latents_have_columns():
    crosscoder, x = random_crosscoder(), random_activations()
    chosen = torch.tensor([4, 1])
    columns, everything = free_of(crosscoder, x, chosen).columns(), free_of(crosscoder, x).columns()
    for name, column in columns.items():
        torch.testing.assert_close(column[chosen], everything[name][chosen], equal_nan=True)
        assert column[[0, 2, 3, 5]].isnan().all()


def test_sparse_activations_and_none_of_the_latents_will_do():
    crosscoder, x = random_crosscoder(), random_activations()
    f = crosscoder.encode_sparse(x)
    for chosen in ([4, 1], []):
        latents = torch.tensor(chosen, dtype=torch.int64)
        free = FreeDirections(crosscoder, latents)
        free.add(x, f, crosscoder.decode(f))
        expected = free_of(crosscoder, x, latents).columns()
        for name, column in free.columns().items():
            torch.testing.assert_close(column, expected[name], equal_nan=True)
            assert column.isfinite().sum() <= len(chosen)


def one_concept_in_chat_only_latent(concept, noise=0.02):
    """A latent that reads and writes the chat model alone, on a world with one concept."""
    world = PlantedWorld([concept], d_models=(16, 16), seed=0, noise=noise, offset_norm=0.0)
    row = torch.cat([torch.zeros(16), world.directions[1][0]])
    return relu_crosscoder(row[None], d_models=(16, 16), b_enc=torch.tensor([-0.3])), world


@pytest.mark.parametrize("angle", [30.0, 60.0, 90.0])
def test_a_rotated_concept_is_found_in_base_at_its_angle(angle):
    """nu_error sees only what is left along the chat direction; the free direction is as long as in chat."""
    crosscoder, world = one_concept_in_chat_only_latent(Concept("rotated", 0.2, angle_degrees=angle))
    x = world.sample(8000, seed=1).activations.double()
    table = slc.diagnose(crosscoder, slc.EvalData(activations=[x])).latents
    row = table.loc[0]
    assert row.label == "chat_only"
    assert row.nu_free == pytest.approx(1, abs=0.05)
    assert row.angle_degrees == pytest.approx(angle, abs=1.5)
    # <u_base, u_chat> is the cosine of the angle, on both models' scale
    assert row.nu_error == pytest.approx(math.cos(math.radians(angle)), abs=0.05)
    assert row.verdict == ("rotated" if angle == 90 else "complete_shrinkage")


def test_a_concept_of_the_chat_model_alone_has_no_direction_in_base():
    crosscoder, world = one_concept_in_chat_only_latent(Concept("chat_only", 0.2))
    row = slc.diagnose(
        crosscoder, slc.EvalData(activations=[world.sample(8000, seed=1).activations.double()])
    ).latents.loc[0]
    assert row.nu_free < 0.05
    assert row.verdict == "chat_specific"


def test_the_noise_floor_is_how_long_a_direction_of_chance_is():
    """Over many worlds |v^base| of an absent concept has the floor as its root mean square."""
    ratios = []
    for seed in range(40):
        crosscoder, world = one_concept_in_chat_only_latent(Concept("chat_only", 0.2), noise=0.3)
        free = free_of(crosscoder, world.sample(500, seed=seed).activations.double())
        ratios.append((free.norms()[0, 0] / free.noise()[0, 0]).item() ** 2)
    assert math.sqrt(sum(ratios) / len(ratios)) == pytest.approx(1, abs=0.15)


def test_there_is_no_angle_within_the_noise_nor_between_models_of_different_width():
    crosscoder, world = one_concept_in_chat_only_latent(Concept("chat_only", 0.2), noise=0.3)
    angles, below = [], []
    for seed in range(10):
        free = free_of(crosscoder, world.sample(500, seed=seed).activations.double())
        angles.append(free.angles()[0].item())
        below.append((free.norms() <= free.noise()).any().item())
    assert [math.isnan(angle) for angle in angles] == below
    assert 0 < sum(below) < 10
    uneven = random_crosscoder(d_models=(2, 4))
    columns = free_of(uneven, random_activations()).columns()
    assert columns["angle_degrees"].isnan().all()
    assert columns["nu_free"].isfinite().any()
