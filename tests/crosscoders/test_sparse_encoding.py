"""A sparse encoding is the dense one, of which nothing but the active pairs is kept."""

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.crosscoders.sparse_step import screening
from sae_lens_crosscoder.crosscoders.sparse_step.pairs import pairs_of

D_MODEL, D_SAE = 8, 40


def crosscoder_with(kind, dtype="float64"):
    config_class, crosscoder_class = {
        "relu": (slc.ReLUCrosscoderConfig, slc.ReLUCrosscoder),
        "jumprelu": (slc.JumpReLUCrosscoderConfig, slc.JumpReLUCrosscoder),
    }[kind]
    crosscoder = crosscoder_class(config_class(d_model=D_MODEL, d_sae=D_SAE, dtype=dtype))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in crosscoder.parameters():
            weights.copy_(torch.randn(weights.shape, generator=generator, dtype=torch.float64))
    return crosscoder


def tokens(n, dtype=torch.float64):
    return torch.randn(n, 2 * D_MODEL, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("tile", [1, 10**6])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["relu", "jumprelu"])
def test_it_holds_what_encode_returns_in_either_screening_precision(kind, precision, tile, monkeypatch):
    """With thresholds of either sign, of which the negative ones mean 0."""
    monkeypatch.setattr("sae_lens_crosscoder.crosscoders.inference.screening_precision", lambda *_: precision)
    monkeypatch.setitem(screening._TILE_BYTES, "cpu", tile)
    crosscoder, x = crosscoder_with(kind), tokens(50)
    sparse, dense = crosscoder.encode_sparse(x), crosscoder.encode(x)
    assert sparse.is_sparse
    assert torch.equal(sparse.to_dense() > 0, dense > 0)
    torch.testing.assert_close(sparse.to_dense(), dense, rtol=1e-12, atol=0)
    torch.testing.assert_close(crosscoder.decode(sparse), crosscoder.decode(dense), rtol=1e-12, atol=1e-12)
    share = (dense > 0).double().mean()
    assert 0.1 < share < 0.9


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_it_is_as_good_in_other_precisions(dtype):
    crosscoder, x = crosscoder_with("jumprelu", dtype), tokens(50).to(getattr(torch, dtype))
    sparse, dense = crosscoder.encode_sparse(x), crosscoder.encode(x)
    assert sparse.dtype == dense.dtype
    tolerance = 1e-5 if dtype == "float32" else 0.05
    near = (dense - crosscoder.thresholds.detach()).abs() < tolerance  # which rounding may put on either side
    torch.testing.assert_close(sparse.to_dense()[~near], dense[~near], rtol=tolerance, atol=tolerance)


def test_no_tokens_have_no_pairs():
    sparse = crosscoder_with("relu").encode_sparse(tokens(0))
    assert sparse.shape == (0, D_SAE)
    assert sparse.values().numel() == 0


def test_pairs_and_tensor_are_each_others_inverse():
    dense = crosscoder_with("jumprelu").encode(tokens(20)).detach()
    pairs, values = pairs_of(dense)
    assert torch.equal(pairs.as_tensor(values).to_dense(), dense)
    again, same = pairs_of(pairs.as_tensor(values))
    assert torch.equal(again.token, pairs.token)
    assert torch.equal(again.latent, pairs.latent)
    assert torch.equal(same, values)
    assert (again.n_tokens, again.d_sae) == dense.shape
