"""Base model, chat model and crosscoder on three devices: nothing meets without having been moved.

The devices are pretended: the numbers come from the CPU, and an operation on tensors of two of them fails.
"""

import pandas as pd
import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.causal import Responses
from tests.causal.conftest import HOOK, LATENTS, hooked_case
from tests.causal.devices import PretendedDevices, place, where

BASE, CHAT, CROSSCODER = "cuda:0", "cuda:1", "cuda:2"


@pytest.fixture
def plain():
    return hooked_case()


@pytest.fixture
def spread():
    """The same, on three devices; tokens stay on the CPU."""
    case = hooked_case()
    for module, device in zip((*case.pair.members, case.crosscoder), (BASE, CHAT, CROSSCODER), strict=True):
        place(module, device)
    return case


@pytest.fixture
def response(plain):
    return torch.arange(12).expand_as(plain.tokens) % 5 > 1


@pytest.fixture
def table():
    numbers = torch.linspace(1, 0, 10).tolist()
    columns = {"delta_norm": numbers, "nu_error": 0.1, "nu_reconstruction": numbers, "dead": False}
    return pd.DataFrame(columns | {"label": "chat_only", "verdict": "chat_specific"})


def test_the_pretended_devices_notice_what_was_not_moved(spread):
    with PretendedDevices():
        base, chat = (next(model.parameters()) for model in spread.pair.members)
        assert [str(tensor.device) for tensor in (base, base + 1, base.to(chat), base.cpu())] == [
            BASE, BASE, CHAT, "cpu",
        ]  # fmt: skip
        with pytest.raises(RuntimeError, match=r"tensors on .*cuda:0.*cuda:1"):
            base.sum(dim=0) + chat.sum(dim=0)
        with pytest.raises(RuntimeError, match=r"tensors on .*cpu.*cuda:0"):
            torch.zeros(3)[torch.zeros(3, device=BASE) > 0]


@pytest.mark.parametrize("how", ["replace", "add", "ablate", "scale", "steer", "reconstruct"])
@pytest.mark.parametrize("read_by", ["own", "chat"])
def test_patched(plain, spread, how, read_by):
    def run(case):
        arguments = {"max_activation": [3.0, 1.0, 2.0]} if how == "steer" else {}
        positions = torch.arange(12).expand_as(case.tokens) > 3
        with slc.patched(case.pair, case.crosscoder, LATENTS, how, positions=positions, read_by=read_by, **arguments):
            return case.pair(case.tokens)

    expected = run(plain)
    with PretendedDevices():
        found = run(spread)
        assert str(where(found)) == BASE
        torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=0)


def test_one_model_alone(plain, spread):
    options = {"model": "chat", "max_activation": torch.tensor([3.0, 1.0, 2.0])}
    with slc.patched(plain.pair.chat, plain.crosscoder, LATENTS, "steer", **options):
        expected = plain.pair.chat(plain.tokens)
    with PretendedDevices(), slc.patched(spread.pair.chat, spread.crosscoder, LATENTS, "steer", **options):
        logits = spread.pair.chat(spread.tokens.to(CHAT))
        torch.testing.assert_close(logits.cpu(), expected, rtol=0, atol=0)


EXPERIMENTS = {
    "causal_effects": lambda case, response, table: slc.causal.causal_effects(
        case.crosscoder, case.pair, Responses(case.tokens, response, case.tokens % 3 == 0), table, pool_size=6
    ).table,
    "latent_effects": lambda case, response, table: slc.causal.latent_effects(
        case.crosscoder, case.pair, Responses(case.tokens, response), LATENTS
    ),
    "splice_evals": lambda case, response, table: slc.causal.splice_evals(
        case.crosscoder, case.pair, case.tokens, response
    ),
    "next_tokens": lambda case, response, table: slc.causal.next_tokens(case.pair, case.tokens[:1], 3),
    "token_kl": lambda case, response, table: slc.causal.token_kl(case.pair, case.tokens[:1]),
    "generate_patched": lambda case, response, table: pd.DataFrame(
        slc.causal.generate_patched(case.pair, case.tokens, max_new_tokens=3).tolist()
    ),
    "resume_from": lambda case, response, table: pd.DataFrame(
        slc.causal.resume_from(
            case.pair.chat, case.activation(0)[None].repeat(2, 1, 1, 1), HOOK, case.tokens, response
        )[0].tolist()
    ),
}  # fmt: skip


@pytest.mark.parametrize("inputs", ["cpu", BASE, CHAT])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments(plain, spread, response, table, name, inputs):
    expected = EXPERIMENTS[name](plain, response, table)
    with PretendedDevices():
        tokens, marked = spread.tokens.to(inputs), response.to(inputs)
        found = EXPERIMENTS[name](type(spread)(spread.pair, spread.crosscoder, tokens), marked, table)
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
