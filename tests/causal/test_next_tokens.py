"""Laws of the comparison: probabilities and KL are those of either model by itself, and of models patched by hand."""

import pytest
import torch

import sae_lens_crosscoder as slc
from tests.causal.conftest import LATENTS, Case
from tests.causal.test_patched import by_hand


@pytest.fixture
def one(case):
    return Case(case.pair, case.crosscoder, case.tokens[:1])


def kl(p, q):
    p, q = p.double().softmax(-1), q.double().softmax(-1)
    return sum(a * (a / b).log() for a, b in zip(p, q, strict=True)).item()


@pytest.mark.parametrize("position", [-1, 3])
def test_probabilities_are_those_of_the_models_patched_and_not(one, position):
    tables = [slc.causal.next_tokens(one.pair, one.tokens, 4, position=position)]
    with slc.patched(one.pair, one.crosscoder, LATENTS, "ablate"):
        tables.append(slc.causal.next_tokens(one.pair, one.tokens, 4, position=position))
    new = by_hand(one, LATENTS, "ablate", (0, 1))[0, position].softmax(-1)
    own = torch.stack([model(one.tokens)[0, position].softmax(-1) for model in one.pair.members])
    expected = {"base": own[0], "chat": own[1], "base_patched": new[0], "chat_patched": new[1]}
    assert [list(table)[1:] for table in tables] == [["base", "chat"], list(expected)]
    for table in tables:
        assert table.chat.is_monotonic_decreasing
        top = {i for name in list(table)[1:] for i in expected[name].topk(4).indices.tolist()}
        assert set(table.index) == top
        for name in list(table)[1:]:
            values = torch.tensor(table[name].to_list())
            torch.testing.assert_close(values, expected[name][table.index.to_list()], rtol=1e-4, atol=1e-6)


def test_kl_of_every_token(one):
    plain = slc.causal.token_kl(one.pair, one.tokens)
    with slc.patched(one.pair, one.crosscoder, LATENTS, "ablate"):
        table = slc.causal.token_kl(one.pair, one.tokens)
    base, chat = (model(one.tokens)[0] for model in one.pair.members)
    new = by_hand(one, LATENTS, "ablate", (0, 1))[0]
    assert list(plain)[1:] == ["chat_from_base"]
    for t, row in table.iterrows():
        assert plain.chat_from_base[t] == row.chat_from_base == pytest.approx(kl(chat[t], base[t]), abs=1e-5)
        assert row.base_from_patched == pytest.approx(kl(base[t], new[t, 0]), abs=1e-5)
        assert row.chat_from_patched == pytest.approx(kl(chat[t], new[t, 1]), abs=1e-5)
        assert row.chat_from_patched_base == pytest.approx(kl(chat[t], new[t, 0]), abs=1e-5)
    assert min(table.base_from_patched.max(), table.chat_from_patched.max()) > 1e-4


def test_tokens_are_named():
    pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
    tokens = torch.tensor([pair.tokenizer("paris is in")["input_ids"]])
    table = slc.causal.next_tokens(pair, tokens, 1)
    assert table.token.iloc[0] == "france"
    assert table.chat.iloc[0] > 0.9
    assert slc.causal.token_kl(pair, tokens).token.tolist() == ["<bos>", "paris", "is", "in"]


@pytest.mark.usefixtures("unchecked_types")
def test_refusals(case):
    with pytest.raises(ValueError, match=r"tokens has shape \(3, 12\).*expected a text, a list or integers"):
        slc.causal.next_tokens(case.pair, case.tokens)
    with pytest.raises(ValueError, match="k=0"):
        slc.causal.next_tokens(case.pair, case.tokens[:1], 0)
