"""Screening finds what sorting all pre-activations finds, in either precision, and looks at few of them."""

import pytest
import torch

from sae_lens_crosscoder.crosscoders.sparse_step import screening as module
from sae_lens_crosscoder.crosscoders.sparse_step.pairs import ActivePairs
from sae_lens_crosscoder.crosscoders.sparse_step.screening import Screening, pairs_above, screening_precision
from tests.crosscoders.problems import D_IN, D_SAE, B, draw, problem


def dense_selection(x, W_enc, b_enc, norms, n_keep):
    """{(token, latent): pre} of the largest positive scores, by sorting all of them."""
    pre = x @ W_enc + b_enc
    scored = [
        ((pre[t, j] * norms[j]).item(), t, j) for t in range(len(x)) for j in range(D_SAE) if pre[t, j] * norms[j] > 0
    ]
    return {(t, j): pre[t, j].item() for _, t, j in sorted(scored, reverse=True)[:n_keep]}


def as_dict(pairs, values):
    where = zip(pairs.token.tolist(), pairs.latent.tolist(), strict=True)
    return dict(zip(where, values.tolist(), strict=True))


@pytest.mark.parametrize("tile", [1, 7 * D_SAE * 4, 10**6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_screening_selects_what_sorting_selects_however_scores_move(tile, dtype, precision, monkeypatch):
    """Growing, falling by a factor of a hundred, with other biases, and with more asked for than is positive."""
    monkeypatch.setitem(module._TILE_BYTES, "cpu", tile)
    screening = Screening()
    sizes = [1.0, 1.0, 1.02, 1.1, 0.97, 0.01, 0.01, 50.0, 50.0, 1e-6, 3.0, 3.0]
    for seed, size in enumerate(sizes):
        x, W_enc, b_enc, norms = problem(seed, dtype)
        n_keep = (25, 60, 10_000, 1)[seed % 4]
        pairs, values = screening.select(size * x, W_enc, size * b_enc, norms, n_keep, precision)
        expected = dense_selection(size * x, W_enc, size * b_enc, norms, n_keep)
        found = as_dict(pairs, values)
        assert found.keys() == expected.keys()
        assert list(found.values()) == pytest.approx([expected[pair] for pair in found], rel=1e-5, abs=1e-6 * size)
        assert (pairs.token.diff() >= 0).all()


def test_in_a_calm_stream_few_candidates_are_looked_at(monkeypatch):
    seen = []
    original = module.candidates_above

    def watched(*args):
        found = original(*args)
        seen.append(len(found.token))
        return found

    monkeypatch.setattr(module, "candidates_above", watched)
    screening = Screening()
    _, W_enc, b_enc, norms = problem()
    for seed in range(40):
        screening.select(draw(500, D_IN, seed=seed), W_enc, b_enc, norms, 1000)
    assert len(seen) <= 44  # hardly ever a second look
    assert max(seen) < 2000  # of 20,000 pairs, half of them positive
    assert max(seen[-10:]) < 1450


def test_the_first_batch_and_a_collapse_of_all_scores_do_not_collect_everything_positive(monkeypatch):
    seen = []
    original = module.candidates_above

    def watched(*args):
        found = original(*args)
        seen.append(len(found.token))
        return found

    monkeypatch.setattr(module, "candidates_above", watched)
    screening = Screening()
    _, W_enc, b_enc, norms = problem()
    for size in (1.0, 1e-4, 1e-9):
        screening.select(size * draw(500, D_IN, seed=1), W_enc, size * b_enc, norms, 1000)
    assert max(seen) < 2500  # half of the 20,000 pairs are positive
    assert len(seen) <= 6


@pytest.mark.parametrize("tile", [1, 2**23])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_candidates_are_the_pairs_above_in_whatever_order_they_are_found(monkeypatch, dtype, tile):
    """And chosen ones are sorted by token, with their order by latent known."""
    monkeypatch.setitem(module._TILE_BYTES, "cpu", tile)
    x, W_enc, b_enc, _ = problem(3, dtype)
    bounds = draw(D_SAE, seed=9).abs().to(dtype)
    bounds[1], bounds[4] = torch.inf, torch.nan
    candidates = module.candidates_above(x, W_enc, b_enc, bounds, "float32")
    pairs, pre = candidates.chosen(torch.arange(len(candidates.token)), len(x), D_SAE)
    expected = as_dict(*pairs_above(x, W_enc, b_enc, bounds, "float32"))
    assert as_dict(pairs, pre) == pytest.approx(expected, rel=1e-5)
    assert (pairs.token.diff() >= 0).all()
    alone = ActivePairs(pairs.token, pairs.latent, len(x), D_SAE)
    for known, found in zip(pairs.by_latent, alone.by_latent, strict=True):
        assert torch.equal(known, found)


def hard_batches():
    """(x, W_enc, b_enc, bounds) where rounding to bfloat16 matters most."""
    x, W_enc, b_enc, _ = problem(dtype=torch.float32)
    yield x, W_enc, b_enc, torch.zeros(D_SAE)
    outlier = x.clone()
    outlier[:, 2] = 1000.3  # a massive activation: everything else is less than its rounding error
    yield outlier, W_enc, -outlier.mean(dim=0) @ W_enc, torch.zeros(D_SAE)
    wide = draw(B, 700, seed=5, dtype=torch.float32)
    W = draw(700, D_SAE, seed=6, dtype=torch.float32)
    yield wide, W, torch.zeros(D_SAE), (wide @ W).amax(dim=0) * (1 - 1e-5)  # only the largest of each latent
    yield wide, W, torch.zeros(D_SAE), (wide @ W)[0] - 1e-4  # one token lies just above every bound
    size = 1 + 2**-8 * (1 - 1e-3)  # all numbers are rounded down to 1: the worst case of the bound
    shift = torch.full((D_SAE,), -97.7565)  # just positive: 97 size^2 is 97.7575; and -97.7565 rounds to -98
    scales = torch.ones(D_SAE)
    scales[3] = 128  # one latent is louder than the others
    yield torch.full((B, 97), size), torch.full((97, D_SAE), size) * scales, shift * scales, torch.zeros(D_SAE)
    loud = wide.clone()
    loud[0] *= 100  # whose rounding errors are a hundred times the others'
    yield loud, W, torch.zeros(D_SAE), (loud @ W)[0] - 1e-3
    shift = torch.full((D_SAE,), 1e4)  # biases and bounds that cancel
    yield x, W_enc, shift, shift + 1e-3
    bounds = torch.zeros(D_SAE)
    bounds[1], bounds[4] = torch.inf, torch.nan
    yield x, W_enc, b_enc, bounds


@pytest.mark.parametrize("case", range(8))
def test_screening_in_bfloat16_misses_nothing(case):
    x, W_enc, b_enc, bounds = list(hard_batches())[case]
    exact = x.double() @ W_enc.double() + b_enc.double()
    pairs, pre = pairs_above(x, W_enc, b_enc, bounds, "bfloat16")
    found = as_dict(pairs, pre)
    rounding = 2e-6 * (1 + b_enc.abs() + x.norm(dim=1, keepdim=True) * W_enc.norm(dim=0))
    for t in range(len(x)):
        for j in range(D_SAE):
            if exact[t, j] > bounds[j] + rounding[t, j]:
                assert (t, j) in found
            if (t, j) in found:
                assert exact[t, j] > bounds[j] - rounding[t, j]
                assert found[t, j] == pytest.approx(exact[t, j].item(), abs=rounding[t, j].item())
    assert found


def test_few_pairs_pass_the_bound_in_bfloat16_that_are_not_above(monkeypatch):
    """Or screening would save nothing: at a bound that one pair in a hundred exceeds, fewer than two more do."""
    rescored = []
    original = module.gather_dot
    monkeypatch.setattr(module, "gather_dot", lambda *args: rescored.append(len(args[2])) or original(*args))
    x, W_enc = draw(200, 256, seed=1, dtype=torch.float32), draw(256, 500, seed=2, dtype=torch.float32)
    bounds = torch.full((500,), (x @ W_enc).quantile(0.99))
    pairs, _ = pairs_above(x, W_enc, torch.zeros(500), bounds, "bfloat16")
    assert len(pairs) == pytest.approx(1000, abs=2)
    assert rescored[0] < 3000
    bounds[:250] = torch.inf  # latents without a norm, which have no say
    bounds[250:] = torch.nan
    pairs, _ = pairs_above(x, W_enc, torch.zeros(500), bounds, "bfloat16")
    assert len(pairs) == rescored[1] == 0


def test_auto_takes_bfloat16_where_the_hardware_has_it(monkeypatch):
    cpu = torch.device("cpu")
    for has, expected in ((True, "bfloat16"), (False, "float32")):
        screening_precision.cache_clear()
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: {"amx_bf16": has})
        assert screening_precision("auto", cpu) == expected
        assert screening_precision("float32", cpu) == "float32"
    assert screening_precision("auto", torch.device("meta")) == "float32"
    screening_precision.cache_clear()
