"""LatentMajorAdam computes what Adam computes, on memory as it lies."""

import copy

import torch
from torch.optim import Adam

from sae_lens_crosscoder.training.optimizer import LatentMajorAdam


def weights_of_a_crosscoder():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(7, 4, generator=generator)
    tensors = [rows.T, torch.randn(7, 4, generator=generator), torch.zeros(7), torch.zeros(4)]
    return [torch.nn.Parameter(tensor) for tensor in tensors]


def gradient_of(w, seed):
    """In the layout of the weight, as autograd makes it."""
    return torch.empty_like(w).copy_(torch.randn(w.shape, generator=torch.Generator().manual_seed(seed)))


def train(optimizer_class, n_steps, weights=None, state=None):
    weights = weights or weights_of_a_crosscoder()
    optimizer = optimizer_class(weights, lr=0.1, betas=(0.8, 0.9), fused=optimizer_class is LatentMajorAdam)
    if state is not None:
        optimizer.load_state_dict(state)
    for step in range(n_steps):
        for i, w in enumerate(weights):
            w.grad = gradient_of(w, 10 * step + i)
        optimizer.step()
    return weights, optimizer


def test_it_is_adam():
    ours, _ = train(LatentMajorAdam, 5)
    plain, _ = train(Adam, 5)
    for w, expected in zip(ours, plain, strict=True):
        assert w.shape == expected.shape
        torch.testing.assert_close(w, expected, rtol=1e-5, atol=1e-6)


def test_the_kernel_gets_the_encoder_as_contiguous_memory(monkeypatch):
    """Otherwise it copies: what the class is for, and a fact about torch that may end."""
    seen = []
    kernel = torch._fused_adam_
    monkeypatch.setattr(torch, "_fused_adam_", lambda *args, **kw: seen.append(args[:4]) or kernel(*args, **kw))
    weights, _ = train(LatentMajorAdam, 1)
    for of_kind in seen[0]:
        assert all(tensor.is_contiguous() for tensor in of_kind[:4])
    assert seen[0][0][0].data_ptr() == weights[0].data_ptr()


def test_a_restored_state_goes_on_as_if_unbroken(tmp_path):
    unbroken, _ = train(LatentMajorAdam, 3)
    weights, optimizer = train(LatentMajorAdam, 2)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt")
    again = [torch.nn.Parameter(w.detach().clone()) for w in weights]
    optimizer = LatentMajorAdam(again, lr=0.1, betas=(0.8, 0.9), fused=True)
    optimizer.load_state_dict(copy.deepcopy(state))
    for i, w in enumerate(again):
        w.grad = gradient_of(w, 20 + i)
    optimizer.step()
    for w, expected in zip(again, unbroken, strict=True):
        torch.testing.assert_close(w, expected, rtol=1e-6, atol=1e-7)
