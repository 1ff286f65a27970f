"""Laws of splice evals: hooks by hand and sums in a loop; SAELens's own figures; exact reconstruction costs nothing."""

from inspect import unwrap

import pytest
import torch
from sae_lens.evals import get_recons_loss
from sae_lens.training.activation_scaler import ActivationScaler

import sae_lens_crosscoder as slc
from tests.causal.conftest import HOOK, thresholds
from tests.crosscoders.conftest import as_lists
from tests.reference.causal import activations, written

ABLATIONS = ("reconstruction", "zero", "mean")


def replaced(case, m, scored):
    """Model m's activation as the crosscoder rebuilds it, all zeros, and its mean, token by token."""
    weights, h = as_lists(case.crosscoder), [case.activation(k) for k in (0, 1)]
    rebuilt, total, n = h[m].clone(), [0.0] * h[m].shape[-1], 0
    for c, t in torch.ones_like(case.tokens).nonzero().tolist():
        f = activations([part[c, t].tolist() for part in h], weights, thresholds(case.crosscoder))
        own = written(f, weights, range(len(f)), m)
        rebuilt[c, t] = torch.tensor([a + b for a, b in zip(own, weights.b_dec[m], strict=True)])
        if t + 1 < case.tokens.shape[1] and scored[c, t + 1]:
            n += 1
            total = [a + b for a, b in zip(total, h[m][c, t].tolist(), strict=True)]
    mean = torch.tensor([value / n for value in total])
    return {"reconstruction": rebuilt, "zero": torch.zeros_like(rebuilt), "mean": mean.expand_as(rebuilt)}


def costs(case, m, activation, scored):
    """Cross-entropy and KL per scored token, from one hook and one full pass."""
    own, new = case.pair.members[m](case.tokens), case.logits(m, activation)
    ce, kl, n = 0.0, 0.0, 0
    for c, row in enumerate(scored.tolist()):
        for t in range(1, len(row)):
            if row[t]:
                p, q = own[c, t - 1].double().softmax(-1), new[c, t - 1].double().softmax(-1)
                ce, kl, n = ce - q[case.tokens[c, t]].log().item(), kl + (p * (p / q).log()).sum().item(), n + 1
    return ce / n, kl / n


@pytest.mark.parametrize("everything", [True, False])
def test_every_number_is_that_of_hooks_by_hand(case, everything):
    scored = torch.ones_like(case.tokens, dtype=torch.bool)
    if not everything:
        scored[0, 4:] = scored[1] = False
    table = slc.causal.splice_evals(
        case.crosscoder, case.pair, case.tokens, None if everything else scored, batch_size=2
    )
    assert table.n_tokens.tolist() == [int(scored[:, 1:].sum())] * 2
    for m, model in enumerate(("base", "chat")):
        row = table.loc[model]
        ce, _ = costs(case, m, case.activation(m), scored)
        assert row.ce_nats == pytest.approx(ce, abs=1e-5)
        of = {name: costs(case, m, value, scored) for name, value in replaced(case, m, scored).items()}
        for name in ABLATIONS:
            assert [row[f"ce_nats_{name}"], row[f"kl_nats_{name}"]] == pytest.approx(of[name], rel=1e-4, abs=1e-5)
        for name in ("zero", "mean"):
            lost = [of["reconstruction"][0] - ce, of[name][0] - ce]
            assert row[f"ce_recovered_{name}"] == pytest.approx(1 - lost[0] / lost[1], rel=2e-2)
            shares = of["reconstruction"][1] / of[name][1]
            assert row[f"kl_recovered_{name}"] == pytest.approx(1 - shares, rel=1e-3)


def test_saelens_gives_the_same_for_the_pair(case):
    table = slc.causal.splice_evals(case.crosscoder, case.pair, case.tokens)
    theirs = get_recons_loss(
        case.crosscoder, case.pair, ActivationScaler(), case.tokens, compute_kl=False, compute_ce_loss=True
    )
    for ours, name in (("", "without_sae"), ("_reconstruction", "with_sae"), ("_zero", "with_ablation")):
        expected = theirs[f"ce_loss_{name}"].flatten(0, -2).mean(dim=0)
        torch.testing.assert_close(torch.tensor(table[f"ce_nats{ours}"].to_list()), expected, rtol=1e-4, atol=1e-4)


def test_an_exact_reconstruction_recovers_everything(case):
    d_in = 64
    crosscoder = slc.ReLUCrosscoder(slc.ReLUCrosscoderConfig(d_models=(32, 32), d_sae=2 * d_in))
    signed = torch.cat([torch.eye(d_in), -torch.eye(d_in)])
    zeros = {"b_enc": torch.zeros(2 * d_in), "b_dec": torch.zeros(d_in)}
    crosscoder.load_state_dict({"W_enc": signed.T.contiguous(), "W_dec": signed, **zeros})
    crosscoder.cfg.metadata.hook_name = HOOK
    table = slc.causal.splice_evals(crosscoder, case.pair, case.tokens)
    recovered = table[[column for column in table if "recovered" in column]]
    assert (recovered - 1).abs().to_numpy().max() < 1e-3


def test_refusals(case):
    nothing = torch.zeros_like(case.tokens, dtype=torch.bool)
    for scored, message in ((nothing[:, 1:], "scored has shape"), (nothing, "no prediction can be scored")):
        with pytest.raises(ValueError, match=message):
            unwrap(slc.causal.splice_evals)(case.crosscoder, case.pair, case.tokens, scored)
