"""Tokens that dominate take no part in causal work: no latent is read there, nothing is handed over or scored."""

import copy
from types import SimpleNamespace

import pytest
import torch

from sae_lens_crosscoder.activations.dominant_tokens import token_norms
from sae_lens_crosscoder.causal import Responses
from sae_lens_crosscoder.causal.experiment.effects import carried_energy, kl_to_chat
from sae_lens_crosscoder.causal.experiment.setups import plain_setups
from sae_lens_crosscoder.causal.forward.response_batches import response_batches
from sae_lens_crosscoder.causal.patching.intervention import intervention
from sae_lens_crosscoder.causal.patching.splice import splice_evals
from sae_lens_crosscoder.crosscoders.two_models import TwoModels
from sae_lens_crosscoder.data.token_mask import right_padding
from tests.causal.conftest import LATENTS
from tests.causal.test_splice import costs


@pytest.fixture
def limited(case):
    """The case's crosscoder with limits that a tenth of the tokens exceed in the base model, and where they do not."""
    crosscoder = copy.deepcopy(case.crosscoder)
    stacked = torch.cat([case.activation(0), case.activation(1)], dim=-1)
    norms = token_norms(stacked, crosscoder.layout)
    crosscoder.cfg.metadata.max_norms = [norms[..., 0].flatten().quantile(0.9).item(), 0.0]
    used = norms[..., 0] <= crosscoder.cfg.metadata.max_norms[0]
    assert 0 < int((~used).sum()) < used.numel() / 4
    return SimpleNamespace(crosscoder=crosscoder, stacked=stacked, used=used)


@pytest.mark.parametrize("how", ["replace", "add", "ablate", "scale", "reconstruct"])
def test_an_edit_that_reads_activations_leaves_them_alone(case, limited, how):
    with_limits, without = (
        intervention(crosscoder, LATENTS, how, coefficient=2.0) for crosscoder in (limited.crosscoder, case.crosscoder)
    )
    deltas = zip(with_limits.deltas(limited.stacked), without.deltas(limited.stacked), strict=True)
    for found, everywhere in deltas:
        if everywhere is None:
            assert found is None
            continue
        assert torch.equal(found[limited.used], everywhere[limited.used])
        assert not found[~limited.used].any()
        assert everywhere[~limited.used].any()


def test_steering_reads_nothing_and_edits_every_token(limited):
    edit = intervention(limited.crosscoder, LATENTS, "steer", max_activation=1.0)
    assert all(delta.ndim == 1 for delta in edit.deltas(None))


def test_the_energy_is_that_of_the_other_tokens(case, limited):
    f = case.crosscoder.encode(limited.stacked[limited.used].to(case.crosscoder.W_dec)).double()
    base, chat = (decoder.double() for decoder in case.crosscoder.decoders)
    expected = f.square().mean(dim=0) * (chat - base).square().sum(dim=-1)
    energy = carried_energy(TwoModels.of(limited.crosscoder), case.pair, case.tokens, batch_size=2)
    torch.testing.assert_close(energy, expected.detach(), rtol=1e-4, atol=1e-6)


def all_but_the_first(tokens):
    response = torch.ones_like(tokens, dtype=torch.bool)
    response[:, 0] = False
    return Responses(tokens, response)


def test_they_are_not_handed_over(case, limited):
    two, responses = TwoModels.of(limited.crosscoder), all_but_the_first(case.tokens)
    batches = response_batches(two, case.pair, responses, batch_size=2)
    parts = [torch.cat(part) for part in zip(*(batch.parts for batch in batches), strict=True)]
    base, chat = case.activation(0), case.activation(1)
    torch.testing.assert_close(parts[0], torch.where(limited.used[..., None], base, chat))
    torch.testing.assert_close(parts[1], chat)


def test_where_all_dominate_every_setup_is_the_chat_model(case, limited):
    limited.crosscoder.cfg.metadata.max_norms = [1e-9, 1e-9]
    setups = plain_setups(TwoModels.of(limited.crosscoder), has_template=False)
    table = kl_to_chat(limited.crosscoder, case.pair, all_but_the_first(case.tokens), setups).table(n_resamples=10)
    assert table.kl_nats.abs().max() < 1e-5
    unlimited = kl_to_chat(case.crosscoder, case.pair, all_but_the_first(case.tokens), setups).table(n_resamples=10)
    assert unlimited.kl_nats.max() > 1e-3


def test_splice_keeps_their_activation_and_scores_nothing_after_them(case, limited):
    table = splice_evals(limited.crosscoder, case.pair, case.tokens, batch_size=2)
    scored = torch.zeros_like(limited.used)
    scored[:, 1:] = limited.used[:, :-1]
    assert table.n_tokens.tolist() == [int(scored.sum())] * 2
    for m, model in enumerate(("base", "chat")):
        own = case.activation(m)
        zero = torch.where(limited.used[..., None], torch.zeros_like(own), own)
        expected = costs(case, m, zero, scored)
        found = table.loc[model, ["ce_nats_zero", "kl_nats_zero"]].tolist()
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    limited.crosscoder.cfg.metadata.max_norms = [1e-9, 1e-9]
    with pytest.raises(ValueError, match="every token that predicts a scored one dominates"):
        splice_evals(limited.crosscoder, case.pair, case.tokens)


def test_padding_counts_in_no_splice(case):
    tokenizer = SimpleNamespace(pad_token_id=1, bos_token_id=0, eos_token_id=2)
    pair = copy.copy(case.pair)
    pair.tokenizer = tokenizer
    padded = torch.cat([case.tokens, torch.ones_like(case.tokens[:, :3])], dim=1)
    ends = case.tokens[:, -1:] == 1
    padded[:, case.tokens.shape[1] - 1 : case.tokens.shape[1]][ends] = 3
    tokens = padded[:, : case.tokens.shape[1]]
    found, expected = (splice_evals(case.crosscoder, pair, rows) for rows in (padded, tokens))
    assert found.n_tokens.tolist() == expected.n_tokens.tolist()
    assert found.ce_nats.tolist() == pytest.approx(expected.ce_nats.tolist(), rel=1e-4)
    assert found.kl_nats_mean.tolist() == pytest.approx(expected.kl_nats_mean.tolist(), rel=1e-3)


@pytest.mark.parametrize(("eos", "expected"), [(9, [[3, 4], [4], []]), (0, [[4], [], []])])
def test_right_padding_is_the_trailing_run(eos, expected):
    tokens = torch.tensor([[5, 0, 7, 0, 0], [5, 6, 7, 8, 0], [0, 5, 6, 7, 8]])
    found = right_padding(tokens, SimpleNamespace(pad_token_id=0, eos_token_id=eos))
    assert [row.nonzero().flatten().tolist() for row in found] == expected
    assert not right_padding(tokens, None).any()
    assert not right_padding(tokens, SimpleNamespace(pad_token_id=None)).any()
