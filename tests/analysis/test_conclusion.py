"""The conclusion: what it takes to say that nothing differs, and every reason to be undecided."""

import pandas as pd
import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.analysis.changed.changed import Changed
from sae_lens_crosscoder.analysis.diagnosis.conclusion import Evidence, conclusion, validate_fve_floor
from tests.analysis.conftest import random_activations, random_crosscoder, relu_crosscoder

NAN = float("nan")
FVE = {"base": 0.97, "chat": 0.96, "pooled": 0.965, "difference": 0.3}


def table(**columns):
    """Four shared latents that fire often, but for these columns."""
    shared = {"delta_norm": [0.47, 0.51, 0.5, 0.52], "label": "shared", "verdict": "shared", "n_active": 500}
    return pd.DataFrame({**shared, "q_value": NAN, **columns}, index=range(4))


def said(latents, fve=FVE, n_tokens=10_000, **fields):
    return conclusion(Evidence(latents, fve, n_tokens, **fields))


def test_no_difference_is_said_with_what_it_rests_on():
    assert said(table()) == (
        "no difference detected: none of 4 judged latents is specific to one model, with chance not accounted for (no "
        "null runs were given); FVE is 0.97 for base, 0.96 for chat and 0.30 for their difference; latents whose "
        "direction turned were not looked for"
    )
    assert said(table(q_value=0.6), n_null_runs=1) == (
        "no difference detected: none of 4 judged latents is specific to one model (q < 0.1); FVE is 0.97 for base, "
        "0.96 for chat and 0.30 for their difference; latents whose direction turned were not looked for"
    )
    unknown = said(table(), FVE | {"difference": NAN})
    assert "FVE is 0.97 for base and 0.96 for chat;" in unknown
    assert "and 0.00 for their difference;" in said(table(), FVE | {"difference": -0.001})


def test_only_latents_that_fire_often_enough_count_as_judged():
    latents = table(verdict=["shared", "shared", "rare", "dead"], n_active=[500, 500, 3, 0])
    assert said(latents).startswith("no difference detected: none of 2 judged latents is")


def test_differences_are_counted():
    verdicts = ["chat_specific", "chat_specific", "base_specific", "shared"]
    assert said(table(verdict=verdicts)) == (
        "2 latents are specific to the chat model and 1 to the base model, of 4 live ones, with chance not accounted "
        "for (no null runs were given)"
    )
    assert said(table(verdict=verdicts, q_value=0.01), n_null_runs=1).endswith("of 4 live ones (q < 0.1)")
    one = said(table(verdict=["chat_specific", "shared", "shared", "dead"]))
    assert one.startswith("1 latent is specific to the chat model and 0 to the base model, of 3 live ones")
    open_too = table(label=["chat_only"] * 2 + ["shared"] * 2, verdict=["chat_specific", "rare", "shared", "shared"])
    assert said(open_too).startswith("1 latent is specific")


def test_a_difference_seen_by_a_crosscoder_that_explains_little_comes_with_a_warning():
    latents = table(verdict=["chat_specific", "shared", "shared", "shared"])
    assert said(latents, FVE | {"chat": 0.2}).endswith(
        "; the FVE of the chat model is 0.200, below the floor of 0.5, so differences may be missed"
    )


@pytest.mark.parametrize(
    ("fve", "reason"),
    [
        ({"base": 0.31, "chat": 0.9}, "the FVE of the base model is 0.310, below the floor of 0.5; train longer"),
        ({"base": 0.9, "chat": -2.0}, "the FVE of the chat model is -2.000, below the floor of 0.5; train longer"),
        ({"base": 0.2, "chat": 0.1}, "the FVE of the chat model is 0.100"),
        ({"base": 0.2, "chat": NAN}, "the chat model's activations do not vary, so its FVE is undefined"),
    ],
)
def test_below_the_fve_floor_nothing_is_concluded(fve, reason):
    assert said(table(), FVE | fve).startswith(f"undecided: {reason}")


def test_the_fve_of_the_difference_and_of_both_have_no_floor():
    assert said(table(), FVE | {"difference": -5.0, "pooled": 0.1}).startswith("no difference detected")


def test_the_caller_sets_the_floor():
    fve = FVE | {"base": 0.31}
    assert said(table(), fve, fve_floor=0.31).startswith("no difference detected")
    assert "0.310, below the floor of 0.32" in said(table(), fve, fve_floor=0.32)


@pytest.mark.parametrize("fve_floor", [-0.1, 1.0, 50.0, NAN])
def test_a_floor_that_is_no_fraction_is_refused(fve_floor):
    with pytest.raises(
        ValueError, match=r"fve_floor=.* must be a fraction of variance in \[0, 1\); the default is 0.5"
    ):
        validate_fve_floor(fve_floor)
    with pytest.raises(ValueError, match="fve_floor"):
        slc.diagnose(random_crosscoder(), slc.EvalData(activations=random_activations()), fve_floor=fve_floor)


def test_delta_norm_that_never_left_its_start_is_no_evidence():
    start = said(table(delta_norm=[0.5, 0.5004, 0.4993, 0.5]))
    assert start.startswith("undecided: Delta_norm never left its start: every live latent is within 0.001 of 1/2")
    one_moved = table(delta_norm=[0.5, 0.5, 0.502, 0.5])
    assert said(one_moved).startswith("no difference detected")
    dead = one_moved.assign(verdict=["shared", "shared", "dead", "shared"])
    assert said(dead).startswith("undecided: Delta_norm never left its start")


def test_rare_one_sided_latents_leave_it_open_and_say_how_many_tokens_would_decide():
    labels = ["chat_only", "base_only", "shared", "shared"]
    latents = table(label=labels, verdict=["rare", "rare", "shared", "shared"], n_active=[40, 7, 500, 500])
    assert said(latents) == (
        "undecided: 2 one-sided latents could not be judged on 10,000 tokens, firing on fewer than 100 of them; about "
        "150,000 tokens would decide"
    )
    assert "fewer than 10 of them; about 15,000 tokens" in said(latents, min_active=10)
    mixed = latents.assign(verdict=["undetermined", "rare", "shared", "shared"])
    assert "1 one-sided latent could not be judged on" in said(mixed)
    assert "and nu is undefined for 1 more; about" in said(mixed)


def test_one_sided_latents_without_nu_leave_it_open_until_null_runs_judge_them():
    labels = ["chat_only", "shared", "shared", "shared"]
    latents = table(label=labels, verdict=["undetermined", "shared", "shared", "shared"])
    assert said(latents).startswith(
        "undecided: 1 one-sided latent could not be judged, as nu is undefined on 10,000 tokens; diagnose on more "
        "tokens, or give null runs"
    )
    assert said(latents.assign(q_value=0.5), n_null_runs=1).startswith("no difference detected: none of 4 judged")


def test_if_every_latent_is_rare_nothing_was_judged():
    latents = table(verdict="rare", n_active=[20, 30, 50, 60], delta_norm=[0.1, 0.5, 0.8, 0.5])
    assert said(latents) == (
        "undecided: none of 4 live latents was judged, as each fires on fewer than 100 of 10,000 tokens; about 25,000 "
        "tokens would let half of them be judged"
    )


def test_latents_that_lean_without_being_judged_leave_it_open_until_null_runs_judge_them():
    leaning = table(
        label=["other"] * 3 + ["shared"], verdict=["other"] * 3 + ["shared"], delta_norm=[0.8, 0.7, 0.2, 0.5]
    )
    assert said(leaning) == (
        "undecided: 3 of 4 latents lean to one model (Delta_norm outside 0.4 to 0.6), but none is one-sided enough for "
        "Latent Scaling; give null runs, or train longer"
    )
    assert said(leaning.assign(q_value=0.5), n_null_runs=1).startswith("no difference detected")
    judged = leaning.assign(
        label=["chat_only", *leaning.label[1:]], verdict=["latent_decoupling", *leaning.verdict[1:]]
    )
    assert said(judged).startswith("no difference detected")
    few = table(label=["other"] * 2 + ["shared"] * 2, verdict=["other"] * 2 + ["shared"] * 2)
    assert said(few).startswith("no difference detected")


def test_without_live_latents_or_classes_nothing_is_concluded():
    dead = table(verdict="dead", n_active=0)
    assert said(dead).startswith("undecided: no latent fires on the 10,000 tokens; use data like that of the training")
    undefined = table(label="undefined", verdict="undefined", delta_norm=NAN)
    assert said(undefined).startswith("undecided: Delta_norm is undefined for every live latent; it compares")


def test_identical_activations_come_before_every_other_reason():
    for latents in (table(), table(verdict="chat_specific"), table(verdict="dead")):
        assert said(latents, {"base": 0.1, "chat": 0.1}, models_are_identical=True).startswith(
            "undecided: both models have exactly equal activations on all 10,000 tokens; check that the tuned weights"
        )


def test_random_weights_conclude_nothing():
    for seed in range(5):
        data = slc.EvalData(activations=random_activations(20_000, seed))
        assert slc.diagnose(random_crosscoder(seed), data).conclusion.startswith("undecided: the FVE of the ")


def test_a_crosscoder_at_its_start_concludes_nothing_even_if_it_explains_much():
    """Shared directions that reconstruct both models, as a tied start does: no latent was ever free to differ."""
    eye = torch.eye(3, dtype=torch.float64)
    W_dec = torch.cat([torch.cat([eye, eye], dim=1), torch.cat([-eye, -eye], dim=1)])
    crosscoder = relu_crosscoder(W_dec, W_enc=W_dec.T / 2)
    base = random_activations(3000, d_in=3)
    x = torch.cat([base, base + 0.1 * random_activations(3000, seed=2, d_in=3)], dim=-1)
    diagnosis = slc.diagnose(crosscoder, slc.EvalData(activations=x))
    assert min(diagnosis.manifest["fve"][name] for name in ("base", "chat")) > 0.9
    assert diagnosis.conclusion.startswith("undecided: Delta_norm never left its start")
    same = slc.diagnose(crosscoder, slc.EvalData(activations=torch.cat([base, base], dim=-1)))
    assert same.conclusion.startswith("undecided: both models have exactly equal activations on all 3,000 tokens")
    assert same.manifest["fve"]["difference"] != same.manifest["fve"]["difference"]


def test_the_options_of_diagnose_reach_the_conclusion():
    crosscoder = relu_crosscoder(
        [[1, 0, 0, 1.1, 0, 0]] * 2, W_enc=torch.tensor([[0.5, 0, 0, 0.5, 0, 0]] * 2).double().T
    )
    x = random_activations(4000)
    x[:, 3] = x[:, 0] + 0.1 * x[:, 3]
    data = slc.EvalData(activations=x)
    diagnosis = slc.diagnose(crosscoder, data)
    low = min(diagnosis.manifest["fve"][name] for name in ("base", "chat"))
    assert 0 < low < 0.5
    assert (diagnosis.manifest["fve_floor"], slc.diagnose(crosscoder, data, fve_floor=0.1).manifest["fve_floor"]) == (
        0.5,
        0.1,
    )
    assert "below the floor of 0.5" in diagnosis.conclusion
    assert slc.diagnose(crosscoder, data, fve_floor=low).conclusion.startswith("no difference detected")
    rare = slc.diagnose(crosscoder, data, fve_floor=low, min_active=3999).conclusion
    assert rare.startswith("undecided: none of 2 live latents was judged, as each fires on fewer than 3,999 of 4,000")


def turned(named, gate=True):
    """Four latents of which the first may be named, and one contrast."""
    latents = pd.DataFrame({"q_rho": [0.001, 0.02, 0.5, 0.9], "written": [0.1, 0.0, 0.0, 0.0]})
    latents["named"] = [named, False, False, False]
    contrasts = pd.DataFrame(
        {"gate": [gate], "p_gate": [0.025 if gate else 0.6], "ratio": [5.0], "share_named": [0.8]}, index=["refusal"]
    )
    manifest = {"n_decoys": 3, "q_limit": 0.05, "size": 0.06}
    return Changed(latents, pd.DataFrame(), contrasts, manifest)


def test_turned_latents_are_a_difference_although_no_norm_shows_it():
    text = said(table(), changed=turned(named=True))
    assert text.startswith(
        "1 of 2 turned latents carries what fine-tuning changed, on held-out prompts 0.80 of 'refusal' (q < 0.05 "
        "against 3 decoy pairs whose difference is 0.060 of the norm); 0 latents are specific to the chat model"
    )
    assert "below the floor" in said(table(), FVE | {"base": 0.1}, changed=turned(named=True))


def test_no_difference_needs_a_gate_that_nothing_passed():
    text = said(table(), changed=turned(named=False, gate=False))
    assert text.startswith("no difference detected: none of 4 judged latents is specific to one model")
    assert text.endswith(
        "('refusal' 5 times, p 0.60); 2 latents turned "
        "(q < 0.05 against 3 decoy pairs whose difference is 0.060 of the norm)"
    )
    assert said(table(), changed=turned(named=False)).startswith("undecided: fine-tuning changed 'refusal' more than")


def test_diagnose_joins_what_changed_found_in_the_same_crosscoder():
    crosscoder, data = random_crosscoder(), slc.EvalData(activations=random_activations(400))
    found = turned(named=True)
    latents = pd.DataFrame(
        {"class": "turned", "q_rho": 0.01, "written": 0.1, "q_written": 0.02, "named": True}, range(6)
    )
    weights = slc.diagnose(crosscoder, data).manifest["crosscoder_sha256"]
    changed = Changed(latents, found.effects, found.contrasts, {**found.manifest, "crosscoder_sha256": weights})
    diagnosis = slc.diagnose(crosscoder, data, changed=changed)
    assert (diagnosis.latents["class"] == "turned").all()
    assert diagnosis.conclusion.startswith("6 of 6 turned latents carry what fine-tuning changed")
    with pytest.raises(ValueError, match="belongs to another crosscoder"):
        slc.diagnose(random_crosscoder(seed=1), data, changed=changed)
