"""Controls probe what they say, and a real latent stands out from them."""

import pandas as pd
import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.analysis.latent_scaling.nu_controls import nu_controls
from sae_lens_crosscoder.synthetic.concepts import Concept
from sae_lens_crosscoder.synthetic.planted import PlantedWorld
from tests.analysis.conftest import D_SAE, random_activations, random_crosscoder, relu_crosscoder, scaling_of
from tests.analysis.test_mse_improvement import lists
from tests.reference import latent_scaling as ref


@pytest.mark.parametrize("target", ["activation", "reconstruction", "error"])
@pytest.mark.parametrize("probe", [0, 1])
def test_beta_along_any_direction_is_its_naive_definition(target, probe):
    crosscoder, x = random_crosscoder(), random_activations()
    generator = torch.Generator().manual_seed(3)
    probes = [torch.randn(D_SAE, 3, generator=generator, dtype=torch.float64) for _ in range(2)]
    scaling = scaling_of(crosscoder, x, batch=7, probes=probes)
    for model in (0, 1):
        expected = [
            ref.beta_along(probes[probe][j].tolist(), target, j, model, *lists(crosscoder, x)) for j in range(D_SAE)
        ]
        found = scaling.beta(target, model, probe)
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-8, atol=1e-8)


def test_real_columns_are_those_of_diagnose_and_controls_keep_the_activations():
    crosscoder, x = random_crosscoder(), random_activations(600)
    found = nu_controls(crosscoder, slc.EvalData(activations=x), significant=False)
    table = slc.diagnose(crosscoder, slc.EvalData(activations=x)).latents
    assert sorted(found.other_latent) == list(range(D_SAE))
    assert (found.other_latent != found.index).all()
    parts, chat = lists(crosscoder, x), crosscoder.decoders[1].tolist()
    for target in ("error", "reconstruction"):
        assert found[f"nu_{target}"].to_numpy() == pytest.approx(table[f"nu_{target}_unfiltered"].to_numpy())
        for j, other in found.other_latent.items():
            base, own = (ref.beta_along(chat[other], target, j, m, *parts) for m in (0, 1))
            assert found[f"nu_{target}_other_latent"][j] == pytest.approx(base / own, rel=1e-6)


def test_scale_of_a_probe_does_not_matter_but_its_direction_does():
    crosscoder, x = random_crosscoder(), random_activations()
    real = scaling_of(crosscoder, x).nu("error", significant=False)
    longer = scaling_of(crosscoder, x, probes=[3 * decoder for decoder in crosscoder.decoders])
    torch.testing.assert_close(longer.nu("error", significant=False), real)
    first, second = (
        nu_controls(crosscoder, slc.EvalData(activations=x), significant=False, seed=seed) for seed in (0, 1)
    )
    assert (first.nu_error_random_direction != second.nu_error_random_direction).all()
    pd.testing.assert_frame_equal(first, nu_controls(crosscoder, slc.EvalData(activations=x), significant=False))


def test_any_direction_tells_shared_from_chat_only_but_only_the_own_one_is_blind_to_a_rotation():
    kinds = ["shared"] * 20 + ["chat_only"] * 20
    concepts = [Concept(kind, 0.1) for kind in kinds] + [Concept("rotated", 0.1, angle_degrees=90.0)] * 20
    world = PlantedWorld(concepts, (128, 128), offset_norm=0.0)
    present = torch.tensor([float(concept.kind != "chat_only") for concept in concepts])[:, None]
    W_dec = torch.cat([world.directions[0] * present, world.directions[1]], dim=-1).double()
    W_enc = torch.cat([torch.zeros_like(world.directions[0]), world.directions[1]], dim=-1).double().T
    crosscoder = relu_crosscoder(W_dec, W_enc=W_enc, b_enc=torch.full((60,), -0.3), d_models=(128, 128))
    found = nu_controls(crosscoder, slc.EvalData(activations=world.sample(8000, seed=1).activations.double()))
    shared, chat_only, rotated = (found[start : start + 20] for start in (0, 20, 40))
    for column in ("nu_error", "nu_error_random_direction"):
        assert shared[column].median() == pytest.approx(1, abs=0.1)
        assert chat_only[column].median() == pytest.approx(0, abs=0.1)
    assert rotated.nu_error.abs().max() < 0.2
    assert rotated.nu_error_random_direction.abs().median() > 0.5


def test_without_data_there_is_no_control():
    with pytest.raises(ValueError, match="No tokens to measure nu on"):
        nu_controls(random_crosscoder(), slc.EvalData(activations=random_activations(0)))
