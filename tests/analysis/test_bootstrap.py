"""Standard errors and intervals come from shards of the whole stream, and are nan where nothing can be resampled."""

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.synthetic.concepts import Concept
from sae_lens_crosscoder.synthetic.planted import PlantedWorld
from tests.analysis.conftest import random_activations, random_crosscoder, relu_crosscoder, scaling_of
from tests.reference import latent_scaling as ref


@pytest.mark.parametrize("batch", [7, 64, 300])
def test_the_cut_of_the_stream_into_calls_changes_no_error_and_no_interval(batch):
    crosscoder, x = random_crosscoder(), random_activations(6400)
    whole, cut = scaling_of(crosscoder, x), scaling_of(crosscoder, x, batch=batch)
    for first, second in zip(whole.nu_interval("error"), cut.nu_interval("error"), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(whole.nu("error"), cut.nu("error"), rtol=1e-9, atol=1e-12, equal_nan=True)
    assert ((whole.f2 > 0).any(dim=1) == (torch.arange(50) < 25)).all()


def test_every_filled_shard_can_be_drawn():
    """A change in the last part of a stream that comes in small batches moves the interval."""
    crosscoder, x = random_crosscoder(), random_activations(6400)
    late = x.clone()
    late[-1000:, :3] *= 10
    low, high = scaling_of(crosscoder, x, batch=64).nu_interval("error")
    late_low, late_high = scaling_of(crosscoder, late, batch=64).nu_interval("error")
    assert (late_high - late_low > 1.5 * (high - low)).any()


def test_an_interval_is_the_quantiles_of_nu_over_resampled_shards():
    """Against a bootstrap over the same blocks in which every nu is formed from its definition."""
    crosscoder, x = random_crosscoder(), random_activations(60)
    scaling = scaling_of(crosscoder, x, n_shards=4, block_size=15)
    f = crosscoder.encode(x)
    decoders = [[row[:3], row[3:]] for row in crosscoder.W_dec.tolist()]
    b_dec = [crosscoder.b_dec[:3].tolist(), crosscoder.b_dec[3:].tolist()]
    generator = torch.Generator().manual_seed(1)
    j, nus = int(f.sum(dim=0).argmax()), []
    for _ in range(2000):
        drawn = torch.randint(4, (4,), generator=generator).tolist()
        rows = [t for block in drawn for t in range(15 * block, 15 * block + 15)]
        tokens, acts = [[h[:3], h[3:]] for h in x[rows].tolist()], f[rows].tolist()
        betas = [ref.beta("activation", j, m, 1, tokens, acts, decoders, b_dec) for m in (0, 1)]
        nus.append(betas[0] / betas[1])
    expected = torch.tensor(nus, dtype=torch.float64).quantile(torch.tensor([0.05, 0.95], dtype=torch.float64))
    low, high = scaling.nu_interval("activation", coverage=0.9, n_resamples=4000)
    width = expected[1] - expected[0]
    assert abs(low[j] - expected[0]) < 0.1 * width
    assert abs(high[j] - expected[1]) < 0.1 * width


def test_one_block_of_tokens_has_no_error_so_nu_is_undefined():
    crosscoder = random_crosscoder()
    one, two = (scaling_of(crosscoder, random_activations(n)) for n in (256, 257))
    assert one.nu("error").isnan().all()
    assert torch.stack(one.nu_interval("error")).isnan().all()
    assert not one.nu("error", significant=False).isnan().any()
    assert not torch.stack(two.nu_interval("reconstruction")).isnan().all()


def test_a_latent_that_fires_in_one_block_only_has_no_error_either():
    crosscoder, x = random_crosscoder(), random_activations(6400)
    f = crosscoder.encode(x)
    f[256:, 2] = 0
    scaling = slc.analysis.LatentScaling(crosscoder)
    scaling.add(x, f, crosscoder.decode(f))
    low, high = scaling.nu_interval("error")
    assert low.isnan().tolist() == high.isnan().tolist() == [False, False, True, False, False, False]
    assert scaling.nu("error")[2].isnan()


def test_a_strong_denominator_stays_and_an_empty_one_goes_whatever_its_sign():
    """The own beta of latent 0 is 1, of latent 1 is -1, of latent 2 is noise."""
    u = torch.eye(3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    f = (torch.rand(12_800, 3, generator=generator, dtype=torch.float64) < 0.2).double()
    chat = f[:, :1] * u[0] - f[:, 1:2] * u[1] + 0.01 * torch.randn(12_800, 3, generator=generator, dtype=torch.float64)
    x = torch.cat([0.3 * chat, chat], dim=-1)
    scaling = slc.analysis.LatentScaling(relu_crosscoder(torch.cat([u, u], dim=-1)))
    scaling.add(x, f, torch.zeros_like(x))
    scaling.add(x, f, torch.zeros_like(x))
    se = scaling._standard_error("activation", 1, "trained")
    assert scaling.nu("activation")[:2].tolist() == pytest.approx([0.3, 0.3])
    own = scaling.beta("activation", 1)
    kept = own.abs() >= 2 * se
    assert kept[:2].tolist() == [True, True]
    assert torch.equal(scaling.nu("activation").isnan(), ~kept)


def test_the_seed_decides_the_resamples():
    scaling = scaling_of(random_crosscoder(), random_activations(6400))
    first, again, other = (scaling.nu_interval("error", seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_more_coverage_is_a_wider_interval_around_nu():
    scaling = scaling_of(random_crosscoder(), random_activations(6400))
    nu = scaling.nu("reconstruction")
    (low, high), (lower, higher) = (scaling.nu_interval("reconstruction", coverage=c) for c in (0.5, 0.95))
    assert ((lower < low) & (low < nu) & (nu < high) & (high < higher)).all()


def test_intervals_hold_the_nu_of_fresh_tokens_as_often_as_they_say():
    """On a small world; benchmarks/intervals.py does it on trained crosscoders with a million fresh tokens."""
    kinds = [("shared", {}), ("chat_only", {}), ("weak", {"rho": 0.3}), ("decoupled", {"q": 0.5})]
    concepts = [Concept(kind, 0.05, **fields) for kind, fields in kinds for _ in range(5)]
    world = PlantedWorld(concepts, d_models=(12, 12), seed=0, noise=0.1)
    base, chat = world.directions
    rows = torch.cat([0.5 * base, chat], dim=-1)  # imperfect on purpose, so that every nu has something to measure
    crosscoder = relu_crosscoder(rows, d_models=(12, 12), b_enc=torch.full((20,), -0.2))

    def scaling_of_fresh(n_tokens, seed):
        return scaling_of(crosscoder, world.sample(n_tokens, seed).activations.double(), batch=10_000)

    truth, held = scaling_of_fresh(400_000, seed=1), []
    for seed in range(2, 14):
        sample = scaling_of_fresh(12_800, seed)
        for target in ("error", "reconstruction"):
            low, high = sample.nu_interval(target)
            held.append((low <= truth.nu(target)) & (truth.nu(target) <= high))
    assert 0.9 <= torch.stack(held).double().mean() <= 0.98
