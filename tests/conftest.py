"""What every test, and whatever it starts, gets: one thread, a fixed seed, no network."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of what tests start, beside which other tests run
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")

import jaxtyping
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def unchecked_types(monkeypatch):
    """Refusals are the package's own, as users see them, and not those of the type checker that the tests run under."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="module")
def types_unchecked_in_the_module():
    """Long runs as users have them: the checks of types and shapes, which short tests do, take half of their time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        yield
