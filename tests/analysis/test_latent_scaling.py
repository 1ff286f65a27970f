"""Every beta and nu is the least-squares factor of its definition, whatever the order, the split or the units."""

import math

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.crosscoders.canonical import Weights, fold_activation_scales
from sae_lens_crosscoder.synthetic.concepts import Concept
from sae_lens_crosscoder.synthetic.planted import PlantedWorld
from tests.analysis.conftest import (
    D_MODELS,
    D_SAE,
    lists,
    random_activations,
    random_crosscoder,
    relu_crosscoder,
    scaling_of,
)
from tests.reference import latent_scaling as ref

TARGETS = ("activation", "reconstruction", "error")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("model", [0, 1])
@pytest.mark.parametrize("probe", [0, 1])
def test_beta_is_its_naive_definition_for_every_latent(target, model, probe):
    crosscoder, x = random_crosscoder(), random_activations()
    actual = scaling_of(crosscoder, x, batch=7).beta(target, model, probe)
    tokens, f, decoders, b_dec = lists(crosscoder, x)
    expected = [ref.beta(target, j, model, probe, tokens, f, decoders, b_dec) for j in range(D_SAE)]
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("scales", [None, (0.5, 4.0)])
@pytest.mark.parametrize("probe", [0, 1])
def test_nu_is_the_naive_ratio_and_scales_with_the_models(scales, probe):
    crosscoder, x = random_crosscoder(scales=scales), random_activations()
    scaling = scaling_of(crosscoder, x)
    tokens, f, decoders, b_dec = lists(crosscoder, x)
    c = scales or (1.0, 1.0)
    for target in ("reconstruction", "error"):
        betas = [
            [ref.beta(target, j, m, probe, tokens, f, decoders, b_dec) for j in range(D_SAE)]
            for m in (1 - probe, probe)
        ]
        raw = torch.tensor(betas[0], dtype=torch.float64) / torch.tensor(betas[1], dtype=torch.float64)
        found = scaling.nu(target, probe, "raw", significant=False)
        torch.testing.assert_close(found, raw, rtol=1e-8, atol=1e-8)
        trained = scaling.nu(target, probe, significant=False)
        torch.testing.assert_close(trained, raw * c[1 - probe] / c[probe], rtol=1e-8, atol=1e-8)


def test_scaled_space_is_the_space_of_scaled_activations():
    """A crosscoder for raw activations with scales c reads as the same one for activations times c."""
    scales = (0.5, 4.0)
    x, factors = random_activations(), torch.tensor([0.5] * 3 + [4.0] * 3, dtype=torch.float64)
    raw = random_crosscoder(scales=scales)
    scaled = relu_crosscoder(raw.W_dec * factors, raw.b_dec * factors, raw.W_enc / factors[:, None], raw.b_enc)
    for target in ("reconstruction", "error"):
        a = scaling_of(raw, x).nu(target, significant=False)
        b = scaling_of(scaled, x * factors).nu(target, significant=False)
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("target", ["activation", "reconstruction", "error"])
@pytest.mark.parametrize("probe", [0, 1])
def test_the_space_of_centred_activations_is_that_of_the_sums_without_their_means(target, probe):
    """A crosscoder trained on `c_m (h^m - mean_m)`, folded, against one that is fed those."""
    scales, means = (0.5, 2.0), ((1.0, -2.0, 3.0), (0.5, 0.0, -1.0))
    inner, x = random_crosscoder(), random_activations()
    outer = random_crosscoder(scales=scales)
    outer.cfg.activation_means = means
    mean = torch.tensor(means, dtype=torch.float64).flatten()
    weights = Weights(inner.W_enc, inner.b_enc, inner.W_dec, inner.b_dec)
    folded = fold_activation_scales(weights, inner.layout, torch.tensor(scales, dtype=torch.float64), mean)
    with torch.no_grad():
        for name, tensor in folded._asdict().items():
            getattr(outer, name).copy_(tensor)
    fed = inner.layout.expand(torch.tensor(scales, dtype=torch.float64)) * (x - mean)
    ours, expected = scaling_of(outer, x, block_size=4), scaling_of(inner, fed, block_size=4)
    for model in (0, 1):
        torch.testing.assert_close(ours.beta(target, model, probe), expected.beta(target, model, probe))
    torch.testing.assert_close(ours.nu(target, probe), expected.nu(target, probe), equal_nan=True)
    for bound, expected_bound in zip(ours.nu_interval(target), expected.nu_interval(target), strict=True):
        torch.testing.assert_close(bound, expected_bound, equal_nan=True)


def test_beta_is_what_a_least_squares_solver_finds():
    crosscoder, x = random_crosscoder(), random_activations()
    f = crosscoder.encode(x)
    error = (x - crosscoder.decode(f))[:, :3]
    found = scaling_of(crosscoder, x).beta("error", model=0, probe=1)
    base, chat = crosscoder.decoders
    for j in range(D_SAE):
        put_back = error + f[:, j : j + 1] * base[j]
        design = (f[:, j : j + 1] * chat[j]).reshape(-1, 1)
        solution = torch.linalg.lstsq(design, put_back.reshape(-1, 1)).solution
        assert found[j].item() == pytest.approx(solution.item(), rel=1e-8)


def test_leaving_the_latent_out_of_its_own_error_is_another_number():
    """The term that puts latent j back shifts beta of its own model by exactly 1."""
    crosscoder, x = random_crosscoder(), random_activations()
    scaling = scaling_of(crosscoder, x)
    bare = scaling.beta("activation", 1) - scaling.beta("reconstruction", 1)
    torch.testing.assert_close(scaling.beta("error", 1) - bare, torch.ones(D_SAE, dtype=torch.float64))


def test_order_and_batching_of_the_data_change_nothing():
    crosscoder, x = random_crosscoder(), random_activations()
    expected = scaling_of(crosscoder, x).nu("error", significant=False)
    shuffled = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    for scaling in (
        scaling_of(crosscoder, shuffled),
        scaling_of(crosscoder, x, batch=3),
        scaling_of(crosscoder, x, n_shards=3, block_size=5),
    ):
        torch.testing.assert_close(scaling.nu("error", significant=False), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("batch", [1, 7, 13, 40])
def test_sparse_activations_in_any_cut_give_the_shards_of_dense_ones(batch):
    """Sums, shards and all: a shard is that of the token's place in the stream, whoever cuts it."""
    crosscoder, x = random_crosscoder(), random_activations()
    whole, streamed = (slc.analysis.LatentScaling(crosscoder, n_shards=4, block_size=5) for _ in range(2))
    f = crosscoder.encode(x)
    whole.add(x, f, crosscoder.decode(f))
    for part in x.split(batch):
        f = crosscoder.encode_sparse(part)
        streamed.add(part, f, crosscoder.decode(f))
    for name, total in whole.state_dict().items():
        torch.testing.assert_close(streamed.state_dict()[name], total, rtol=1e-10, atol=1e-12)
    shards = [[t for t in range(40) if t // 5 % 4 == shard] for shard in range(4)]
    expected = torch.stack([crosscoder.encode(x)[rows].sum(dim=0) for rows in shards])
    torch.testing.assert_close(whole.f1, expected)


def test_sums_go_on_from_those_that_were_saved():
    crosscoder, x = random_crosscoder(), random_activations(600)
    whole, first, second = (slc.analysis.LatentScaling(crosscoder) for _ in range(3))
    for n, (part, sums) in enumerate(zip(x.split(200), (first, second, second), strict=True)):
        if n == 1:
            second.load_state_dict(first.state_dict())
        f = crosscoder.encode_sparse(part)
        for scaling in (whole, sums):
            scaling.add(part, f, crosscoder.decode(f))
    assert second.n_tokens == 600
    for name, total in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], total)
    assert torch.equal(whole.nu("error"), second.nu("error"))


def test_units_of_a_latent_change_nothing():
    """f_j times a, d_j over a is the same latent."""
    crosscoder, x = random_crosscoder(), random_activations()
    a = torch.tensor([0.1, 1.0, 3.0, 7.0, 0.5, 2.0], dtype=torch.float64)
    rescaled = relu_crosscoder(
        crosscoder.W_dec / a[:, None], crosscoder.b_dec, crosscoder.W_enc * a, crosscoder.b_enc * a
    )
    for target in TARGETS:
        first, second = (scaling_of(c, x).nu(target, significant=False) for c in (crosscoder, rescaled))
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-12)
        first, second = (scaling_of(c, x).beta(target, 0) for c in (crosscoder, rescaled))
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-12)


def test_swapping_the_models_swaps_the_probes():
    crosscoder, x = random_crosscoder(), random_activations()
    swap = [3, 4, 5, 0, 1, 2]
    mirrored = relu_crosscoder(
        crosscoder.W_dec[:, swap], crosscoder.b_dec[swap], crosscoder.W_enc[swap], crosscoder.b_enc
    )
    ours, theirs = scaling_of(crosscoder, x), scaling_of(mirrored, x[:, swap])
    for target in ("reconstruction", "error"):
        torch.testing.assert_close(ours.nu(target, 0, significant=False), theirs.nu(target, 1, significant=False))


def test_a_silent_latent_and_a_zero_probe_are_nan():
    crosscoder, x = random_crosscoder(), random_activations()
    with torch.no_grad():
        crosscoder.b_enc[2] = -1e6
        crosscoder.W_dec[4, 3:] = 0
    scaling = scaling_of(crosscoder, x)
    nan = scaling.beta("error", 0).isnan()
    assert nan.tolist() == [False, False, True, False, True, False]
    assert scaling.n_active[2] == 0


@pytest.mark.parametrize("d_models", [(2, 4), (2, 2, 2)])
def test_models_without_a_common_direction_have_no_nu_but_counts(d_models):
    crosscoder, x = random_crosscoder(d_models=d_models), random_activations()
    scaling = scaling_of(crosscoder, x)
    assert scaling.nu("error").isnan().all()
    assert torch.equal(scaling.n_active, (crosscoder.encode(x) > 0).sum(dim=0))


def test_sums_and_counts_are_plain_sums():
    crosscoder, x = random_crosscoder(), random_activations()
    f, scaling = crosscoder.encode(x), scaling_of(crosscoder, x, batch=9)
    torch.testing.assert_close(scaling.f1.sum(dim=0), f.sum(dim=0))
    torch.testing.assert_close(scaling.f2.sum(dim=0), f.square().sum(dim=0))
    assert torch.equal(scaling.max_activation, f.amax(dim=0))
    assert (scaling.n_tokens, D_MODELS) == (len(x), (3, 3))


def test_two_tokens_by_hand():
    """One latent along the first axis, f = 2 and 1, reconstructing (f, f); what it misses is (1, 0) and (0, 3)."""
    crosscoder = relu_crosscoder([[1.0, 1.0]], d_models=(1, 1))
    x = torch.tensor([[3.0, 2.0], [1.0, 4.0]], dtype=torch.float64)
    f = torch.tensor([[2.0], [1.0]], dtype=torch.float64)
    scaling = slc.analysis.LatentScaling(crosscoder)
    scaling.add(x, f, crosscoder.decode(f))
    assert scaling.beta("activation", 0).item() == pytest.approx((2 * 3 + 1 * 1) / 5)
    assert scaling.beta("activation", 1).item() == pytest.approx((2 * 2 + 1 * 4) / 5)
    assert scaling.beta("reconstruction", 0).item() == pytest.approx(1)
    assert scaling.beta("error", 0).item() == pytest.approx((2 * 3 + 1 * 1) / 5)
    assert scaling.nu("activation", significant=False).item() == pytest.approx(7 / 8)


def test_the_trained_space_scales_a_beta_by_the_factor_of_its_target_over_that_of_its_probe():
    scaling = scaling_of(random_crosscoder(scales=(0.5, 4.0)), random_activations())
    for target in TARGETS:
        for model, probe, factor in ((0, 0, 1), (0, 1, 1 / 8), (1, 0, 8), (1, 1, 1)):
            raw = scaling.beta(target, model, probe, "raw")
            torch.testing.assert_close(scaling.beta(target, model, probe), factor * raw)


def test_half_precision_weights_lose_no_digits_in_the_sums():
    crosscoder = slc.ReLUCrosscoder(slc.ReLUCrosscoderConfig(d_models=(3, 3), d_sae=D_SAE, dtype="bfloat16"))
    with torch.no_grad():
        crosscoder.W_dec.copy_(random_crosscoder().W_dec)
    x, f = random_activations().bfloat16(), random_activations(d_in=D_SAE, seed=2).relu().bfloat16()
    scaling = slc.analysis.LatentScaling(crosscoder)
    scaling.add(x, f, torch.zeros_like(x))
    tokens, _, decoders, b_dec = lists(crosscoder, x)
    for model in (0, 1):
        betas = [ref.beta("activation", j, model, 1, tokens, f.tolist(), decoders, b_dec) for j in range(D_SAE)]
        expected = torch.tensor(betas, dtype=torch.float64)
        torch.testing.assert_close(scaling.beta("activation", model), expected, rtol=1e-5, atol=1e-5)


def test_results_carry_no_gradient():
    scaling = scaling_of(random_crosscoder(), random_activations(600))
    assert not scaling.beta("error", 0).requires_grad
    assert not scaling.nu("error").requires_grad
    assert not scaling.nu_interval("error")[0].requires_grad


def test_nu_is_undefined_where_its_denominator_cannot_be_told_from_zero():
    """Latent 0 writes what is there; the others fire at random along a direction of pure noise."""
    n, n_noise = 20_000, 100
    generator = torch.Generator().manual_seed(4)
    u = torch.eye(3, dtype=torch.float64)
    on = (torch.rand(n, 1 + n_noise, generator=generator) < 0.1).double()
    x = 0.3 * torch.randn(n, 6, generator=generator, dtype=torch.float64)
    x += on[:, :1] * torch.cat([u[0], u[0]])
    rows = [torch.cat([u[0], u[0]]), *[torch.cat([u[1], u[2]])] * n_noise]
    scaling = slc.analysis.LatentScaling(relu_crosscoder(torch.stack(rows)))
    scaling.add(x, on, torch.zeros_like(x))
    nu = scaling.nu("activation")
    assert nu[0].item() == pytest.approx(1, abs=0.05)
    assert nu[1:].isnan().double().mean() > 0.85
    assert not scaling.nu("activation", significant=False).isnan().any()


def test_intervals_are_reproducible_and_cover_nu_of_a_large_fresh_sample():
    concepts = [Concept("weak", 0.05, rho=rho) for rho in (0.2, 0.4, 0.6, 0.8, 1.0, 0.3)] * 3
    world = PlantedWorld(concepts, d_models=(8, 8), seed=0, noise=0.3)
    base, chat = world.directions
    crosscoder = relu_crosscoder(torch.cat([0.5 * base, chat], dim=-1), b_enc=torch.full((18,), -0.5), d_models=(8, 8))
    truth = scaling_of(crosscoder, world.sample(400_000, seed=99).activations.double(), batch=20_000)
    inside, total = 0, 0
    for seed in range(8):
        small = scaling_of(crosscoder, world.sample(12_800, seed=seed).activations.double())
        low, high = small.nu_interval("error")
        again = small.nu_interval("error")
        assert torch.equal(low, again[0])
        assert torch.equal(high, again[1])
        nu = truth.nu("error", significant=False)
        inside += int(((low <= nu) & (nu <= high)).sum())
        total += len(nu)
    assert 0.88 <= inside / total <= 0.99, inside / total
    assert not math.isnan(inside / total)
