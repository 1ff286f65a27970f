"""Classes and verdicts, on their borders."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.analysis.diagnosis.classes import LABELS, label
from sae_lens_crosscoder.analysis.diagnosis.verdict import VERDICTS, judging_nu, nu_free_of_other, nu_kind_of, verdicts
from tests.analysis.conftest import random_crosscoder
from tests.reference import verdicts as ref

NAN = float("nan")


def verdict(label, n_active, *nus, **more):
    """The verdict on one latent."""
    (found,) = verdicts([label], [n_active], *([nu] for nu in nus), **more)
    return found


@pytest.mark.parametrize("bounds", ["signed", "absolute"])
def test_all_latents_at_once_are_judged_as_one_after_another(bounds):
    rng = np.random.default_rng(0)
    n = 4000
    columns = {
        name: np.where(rng.random(n) < 0.15, NAN, rng.choice([-0.6, -0.1, 0.0, 0.09, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6], n))
        for name in ("nu_error", "nu_reconstruction", "nu_free", "q_value", "nu_reconstruction_centred", "presence",
                     "beta_centred")
    }  # fmt: skip
    columns["share_of_median"] = rng.choice([NAN, 9e-4, 1e-3, 1.0], n)
    labels, n_active = rng.choice(LABELS, n).tolist(), rng.choice([0, 4, 5, 500], n)
    found = verdicts(labels, n_active, **columns, min_active=5, bounds=bounds)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    latents = zip(labels, n_active, rows, strict=True)
    expected = [ref.verdict(name, count, **row, min_active=5, bounds=bounds) for name, count, row in latents]
    assert found == expected
    assert set(found) == set(VERDICTS)


def test_a_rotated_or_chancy_latent_is_not_specific():
    calm = dict(nu_error=0.1, nu_reconstruction=0.1)
    assert verdict("chat_only", 100, **calm, nu_free=0.51) == "rotated"
    assert verdict("base_only", 100, **calm, nu_free=0.51) == "rotated"
    assert verdict("chat_only", 100, **calm, nu_free=0.5) == "chat_specific"
    assert verdict("chat_only", 100, **calm, q_value=0.1) == "undetermined"
    assert verdict("chat_only", 100, **calm, q_value=0.099) == "chat_specific"
    assert verdict("chat_only", 100, **calm, nu_free=0.9, q_value=0.9) == "rotated"
    assert verdict("chat_only", 100, nu_error=0.1, nu_reconstruction=0.6, nu_free=0.9) == "latent_decoupling"
    assert verdict("shared", 100, **calm, nu_free=0.9, q_value=0.9) == "shared"


def test_a_background_acquits_below_a_half_and_not_at_it():
    calm = dict(nu_error=0.1, nu_reconstruction=0.5)
    assert verdict("chat_only", 100, **calm, nu_reconstruction_centred=0.5) == "latent_decoupling"
    assert verdict("chat_only", 100, **calm, nu_reconstruction_centred=0.499) == "chat_specific"


def test_a_latent_is_judged_with_the_probe_of_the_model_that_it_is_specific_to():
    assert judging_nu("along_decoder") == judging_nu("along_decoder", "shared") == ("nu_error", "nu_reconstruction")
    of_base = judging_nu("along_decoder", "base_only")
    assert of_base == ("nu_error_base_probe", "nu_reconstruction_base_probe")
    basis_free = ("nu_error_basis_free", "nu_reconstruction_basis_free")
    assert judging_nu("basis_free") == judging_nu("basis_free", "base_only") == basis_free
    assert nu_kind_of(pd.DataFrame({"nu_kind": ["basis_free"] * 2})) == "basis_free"
    assert nu_kind_of(pd.DataFrame({"nu_kind": []})) == nu_kind_of(pd.DataFrame()) == "along_decoder"


def test_half_precision_weights_have_as_many_delta_norms_as_any():
    crosscoder = random_crosscoder(scales=(0.3, 0.7))
    exact = slc.delta_norm(crosscoder.decoder_norms)
    half = slc.delta_norm(crosscoder.to(torch.bfloat16).decoder_norms)
    torch.testing.assert_close(half.double(), exact, atol=3e-3, rtol=0)  # the weights themselves are rounded
    assert half.dtype == torch.float32


def test_noise_alone_is_no_direction_in_the_other_model():
    assert nu_free_of_other(0.6, 0.6, 1.0) == 0
    assert nu_free_of_other(0.5, 0.6, 1.0) == 0
    assert nu_free_of_other(1.0, 0.6, 1.0) == pytest.approx(0.8)
    assert nu_free_of_other(3.0, 0.0, 2.0) == 1.5
    assert math.isnan(nu_free_of_other(1.0, 0.0, 0.0))
    assert math.isnan(nu_free_of_other(1.0, 0.0, NAN))


def test_delta_norm_flips_when_the_models_swap():
    norms = torch.rand(50, 2, dtype=torch.float64)
    torch.testing.assert_close(slc.delta_norm(norms.flip(-1)), 1 - slc.delta_norm(norms))


def test_delta_norm_is_a_latents_alone_and_not_its_units():
    norms = torch.rand(50, 2, dtype=torch.float64)
    torch.testing.assert_close(slc.delta_norm(7 * norms), slc.delta_norm(norms))


def test_chat_only_means_a_base_norm_below_a_fifth():
    ratios = torch.linspace(0, 1, 1001, dtype=torch.float64)
    labels = [label(d) for d in slc.delta_norm(torch.stack([ratios, torch.ones_like(ratios)], dim=-1)).tolist()]
    for ratio, name in zip(ratios.tolist(), labels, strict=True):
        if abs(ratio - 0.2) > 1e-6:
            assert (name == "chat_only") == (ratio < 0.2)


def test_a_latent_that_writes_nowhere_has_no_delta_norm():
    found = slc.delta_norm(torch.tensor([[0.0, 0.0], [0.0, 1e-30], [1e-30, 0.0], [3.0, 3.0]], dtype=torch.float64))
    assert found.tolist() == pytest.approx([NAN, 1.0, 0.0, 0.5], nan_ok=True)
    assert label(found[0].item()) == "undefined"


@pytest.mark.parametrize(
    ("delta", "expected"),
    [
        (0.0, "base_only"),
        (math.nextafter(0.1, 0), "base_only"),
        (0.1, "other"),
        (0.4, "other"),
        (math.nextafter(0.4, 1), "shared"),
        (math.nextafter(0.6, 0), "shared"),
        (0.6, "other"),
        (0.9, "other"),
        (math.nextafter(0.9, 1), "chat_only"),
        (1.0, "chat_only"),
        (NAN, "undefined"),
    ],
)
def test_borders_belong_to_no_class(delta, expected):
    assert label(delta) == expected


def test_three_models_have_no_delta_norm():
    assert slc.delta_norm(torch.ones(4, 3)).isnan().all()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("chat_only", 0, 0.0, 0.0), "dead"),
        (("undefined", 0, NAN, NAN), "dead"),
        (("chat_only", 99, 0.0, 0.0), "rare"),
        (("chat_only", 100, NAN, 0.0), "undetermined"),
        (("chat_only", 100, 0.0, NAN), "undetermined"),
        (("chat_only", 100, 0.2, 0.9), "complete_shrinkage"),
        (("chat_only", 100, 0.19, 0.5), "latent_decoupling"),
        (("chat_only", 100, 0.19, 0.49), "chat_specific"),
        (("base_only", 100, 0.19, 0.49), "base_specific"),
        (("base_only", 100, 0.3, 0.0), "complete_shrinkage"),
        (("shared", 100, 0.0, 0.0), "shared"),
        (("other", 100, 0.0, 0.0), "other"),
        (("undefined", 100, NAN, NAN), "undefined"),
        (("shared", 100, NAN, NAN), "shared"),
        (("other", 100, 3.0, 3.0), "other"),
        (("base_only", 0, 0.0, 0.0), "dead"),
        (("base_only", 99, 0.3, 0.0), "rare"),
        (("base_only", 100, NAN, 0.9), "undetermined"),
        (("base_only", 100, 0.3, NAN), "undetermined"),
        (("base_only", 100, 0.0, 0.5), "latent_decoupling"),
        (("chat_only", 100, -3.0, -3.0), "chat_specific"),
    ],
)
def test_the_first_verdict_that_holds(arguments, expected):
    assert verdict(*arguments) == expected


@pytest.mark.parametrize(
    ("presence", "expected"),
    [(-5.0, "chat_specific"), (0.39, "chat_specific"), (0.4, "latent_decoupling"), (NAN, "chat_specific")],
)
def test_a_latent_that_the_other_model_has_half_the_time_is_decoupled(presence, expected):
    assert verdict("chat_only", 100, 0.0, 0.45, presence=presence) == expected
    assert verdict("chat_only", 100, 0.3, 0.45, presence=presence) == "complete_shrinkage"
    assert verdict("shared", 100, 0.0, 0.45, presence=presence) == "shared"


@pytest.mark.parametrize(
    ("beta", "expected"), [(1.0, "specific"), (0.1, "specific"), (0.09, ""), (-0.4, ""), (NAN, "specific")]
)
def test_a_latent_that_its_own_model_hardly_has_says_nothing_about_the_other(beta, expected):
    for side in ("chat", "base"):
        found = verdict(f"{side}_only", 100, 0.0, -15.0, beta_centred=beta)
        assert found == (f"{side}_specific" if expected else "undetermined")
    assert verdict("shared", 100, 0.0, 0.0, beta_centred=beta) == "shared"


def test_absolute_bounds_reject_negative_nu():
    assert verdict("chat_only", 100, -0.3, 0.0, bounds="absolute") == "complete_shrinkage"
    assert verdict("chat_only", 100, 0.0, -0.6, bounds="absolute") == "latent_decoupling"
    assert verdict("base_only", 100, -0.19, -0.49, bounds="absolute") == "base_specific"


@pytest.mark.parametrize("bounds", ["signed", "absolute"])
def test_base_only_is_the_mirror_of_chat_only(bounds):
    grid = [NAN, -0.6, -0.3, -0.1, 0.0, 0.1, 0.2, 0.3, 0.5, 0.6]
    mirror = {"chat_specific": "base_specific"}
    for n_active in (0, 50, 500):
        for nus in ((e, r) for e in grid for r in grid):
            chat = verdict("chat_only", n_active, *nus, bounds=bounds)
            assert chat in VERDICTS
            assert verdict("base_only", n_active, *nus, bounds=bounds) == mirror.get(chat, chat)


def test_verdicts_know_every_class():
    assert {verdict(name, 500, 0.0, 0.0) for name in LABELS} <= set(VERDICTS)


def test_fewer_tokens_than_asked_for_are_rare():
    assert [verdict("shared", 5, 0.0, 0.0, min_active=n) for n in (1, 5, 6)] == ["shared", "shared", "rare"]


def test_unknown_bounds_are_refused():
    unchecked = getattr(verdicts, "__wrapped__", verdicts)
    with pytest.raises(ValueError, match=r"bounds='abs' must be one of \('signed', 'absolute'\)"):
        unchecked(["chat_only"], [500], [0.0], [0.0], bounds="abs")


def test_what_writes_next_to_nothing_is_negligible_whatever_its_nu():
    for name in LABELS:
        expected = "undefined" if name == "undefined" else "negligible"
        assert verdict(name, 100, 0.0, 3.0, share_of_median=9.9e-4) == expected
        assert verdict(name, 100, 0.0, 3.0, share_of_median=1e-3) == verdict(name, 100, 0.0, 3.0)
    assert verdict("chat_only", 99, 0.0, 0.0, share_of_median=0.0) == "rare"
    assert verdict("chat_only", 0, 0.0, 0.0, share_of_median=0.0) == "dead"
