"""The sparse training step is the dense one: the same pairs, the same gradients, and in the end the same crosscoder."""

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations.streams import shuffled_batches
from sae_lens_crosscoder.activations.worlds import world_a
from sae_lens_crosscoder.crosscoders import sparse
from sae_lens_crosscoder.crosscoders.sparse import DenseCode, Screening, SparseCode, pairs_above, pre_activations

B, D_IN, D_SAE = 30, 6, 40


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def problem(seed=0, dtype=torch.float64):
    """x, W_enc, b_enc and norms, one of which is 0."""
    norms = draw(D_SAE, seed=seed + 3, dtype=dtype).abs()
    norms[3] = 0
    return (
        draw(B, D_IN, seed=seed, dtype=dtype),
        draw(D_IN, D_SAE, seed=seed + 1, dtype=dtype),
        draw(D_SAE, seed=seed + 2, dtype=dtype),
        norms,
    )


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


@pytest.mark.parametrize("tile", [1, 7 * D_SAE, 10**6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_screening_selects_what_sorting_selects_however_scores_move(tile, dtype, monkeypatch):
    """Growing, falling by a factor of a hundred, with other biases, and with more asked for than is positive."""
    monkeypatch.setitem(sparse._TILE, "cpu", tile)
    screening = Screening()
    sizes = [1.0, 1.0, 1.02, 1.1, 0.97, 0.01, 0.01, 50.0, 50.0, 1e-6, 3.0, 3.0]
    for seed, size in enumerate(sizes):
        x, W_enc, b_enc, norms = problem(seed, dtype)
        n_keep = (25, 60, 10_000, 1)[seed % 4]
        pairs, values = screening.select(size * x, W_enc, size * b_enc, norms, n_keep)
        expected = dense_selection(size * x, W_enc, size * b_enc, norms, n_keep)
        found = as_dict(pairs, values)
        assert found.keys() == expected.keys()
        assert list(found.values()) == pytest.approx([expected[pair] for pair in found], rel=1e-5, abs=1e-6 * size)
        assert (pairs.token.diff() >= 0).all()


def test_in_a_calm_stream_few_candidates_are_looked_at(monkeypatch):
    seen = []
    original = sparse.pairs_above

    def watched(*args):
        found = original(*args)
        seen.append(len(found[0]))
        return found

    monkeypatch.setattr(sparse, "pairs_above", watched)
    screening = Screening()
    _, W_enc, b_enc, norms = problem()
    for seed in range(40):
        screening.select(draw(500, D_IN, seed=seed), W_enc, b_enc, norms, 1000)
    assert len(seen) <= 44  # hardly ever a second look
    assert max(seen[5:]) < 2000  # of 20,000 pairs, half of them positive


def test_nothing_positive_selects_nothing_and_leaves_zero_gradients():
    x, W_enc, b_enc, norms = problem()
    pairs, values = Screening().select(x, W_enc, b_enc - 1000, norms, 25)
    assert len(pairs) == 0
    W_enc.requires_grad_()
    W_dec = draw(D_SAE, D_IN).requires_grad_()
    code = SparseCode(pre_activations(W_enc, b_enc, x, values, pairs), pairs)
    decoded = code.decode(W_dec)
    assert not decoded.any()
    decoded.sum().backward()
    assert not W_enc.grad.any()
    assert not W_dec.grad.any()
    assert code.feature_acts().to_dense().shape == (B, D_SAE)


def test_a_sparse_code_is_the_dense_one_gradients_included():
    x, W_enc, b_enc, norms = problem()
    bounds = draw(D_SAE, seed=9).abs()
    gradients, outputs = [], []
    for kind in (DenseCode, SparseCode):
        weights = [w.clone().requires_grad_() for w in (W_enc, b_enc, draw(D_SAE, D_IN, seed=8), norms)]
        W, b, W_dec, s = weights
        if kind is DenseCode:
            pre = x @ W + b
            code = DenseCode(pre * (pre.detach() > bounds))
        else:
            pairs, values = pairs_above(x, W, b, bounds)
            code = SparseCode(pre_activations(W, b, x, values, pairs), pairs)
        decoded = code.decode(W_dec)
        (decoded.square().sum() + 3 * code.mean_score(s)).backward()
        gradients.append([w.grad for w in weights])
        acts = code.feature_acts()
        acts = acts.to_dense() if acts.is_sparse else acts
        outputs.append([decoded, code.mean_score(s), code.scores(s).sort().values, acts])
    for dense, fast in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, dense, rtol=1e-10, atol=1e-10)
    for dense, fast in zip(*outputs, strict=True):
        torch.testing.assert_close(fast, dense, rtol=1e-10, atol=1e-10)


KINDS = {
    "l1": (slc.L1TrainingCrosscoder, slc.L1CrosscoderTrainingConfig, {"l1_coefficient": 0.1, "decoder_init_norm": 0.3}),
    "batchtopk": (
        slc.BatchTopKTrainingCrosscoder,
        slc.BatchTopKCrosscoderTrainingConfig,
        {"k": 4.5, "k_max": 20, "k_anneal_steps": 50},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_training_with_either_step_gives_the_same_crosscoder(kind):
    """With latents dying and being revived, gradients clipped, k annealed, and activations scaled on the way."""
    crosscoder_class, config_class, fields = KINDS[kind]
    world = world_a(seed=0, d_models=(16, 16), gains=(1.0, 3.0))
    pool = world.sample(8000, seed=1).activations.double()
    trained = {}
    for step in ("sparse", "dense"):
        torch.manual_seed(0)
        cfg = config_class(
            d_model=16, d_sae=64, dtype="float64", activation_scaling="per_model", gradient_clip_norm=0.5,
            training_step=step, **fields,
        )  # fmt: skip
        crosscoder = crosscoder_class(cfg)
        trainer_cfg = slc.CrosscoderTrainerConfig(
            total_training_samples=250 * 256,
            train_batch_size_samples=256,
            lr=5e-3,
            lr_warm_up_steps=10,
            dead_feature_window=5,
            log_frequency=50,
            n_batches_for_norm_estimate=5,
        )
        trainer = slc.CrosscoderTrainer(trainer_cfg, crosscoder, shuffled_batches(pool, 256, seed=0))
        trainer.fit()
        trained[step] = (crosscoder.state_dict(), trainer.history)
    for name, dense in trained["dense"][0].items():
        torch.testing.assert_close(trained["sparse"][0][name], dense, rtol=1e-6, atol=1e-8)
    history = trained["dense"][1]
    if kind == "batchtopk":
        assert history.n_dead.max() > 0
    for column in history:
        assert trained["sparse"][1][column].to_numpy() == pytest.approx(history[column].to_numpy(), rel=1e-6, abs=1e-8)
