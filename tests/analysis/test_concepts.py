"""Carriers of contrasts: the latent that writes a contrast is named, one that merely separates the groups is not."""

import pandas as pd
import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations import ContrastRows
from sae_lens_crosscoder.analysis import concepts
from sae_lens_crosscoder.analysis.contrasts.group_differences import group_differences, separation
from sae_lens_crosscoder.analysis.contrasts.shares import delta_contrast, shares
from sae_lens_crosscoder.data.contrasts import second_halves
from tests.analysis.conftest import random_activations, random_crosscoder, relu_crosscoder
from tests.reference import contrasts as reference


def rows_of(activations, positive=None, name="a", model="chat"):
    positive = torch.arange(len(activations)) % 2 == 0 if positive is None else positive
    return ContrastRows(
        name=name, activations=activations, positive=positive, held_out=second_halves(positive), model=model
    )


def test_shares_and_their_ingredients_equal_the_reference():
    crosscoder = random_crosscoder()
    rows = rows_of(random_activations(600))  # more than are encoded at a time
    positive, negative = rows.part(held_out=True)
    found = group_differences(crosscoder, positive, negative)
    up, down = (crosscoder.encode(part) for part in (positive, negative))
    base, chat = crosscoder.decoders
    contrast = reference.difference_of_means(positive[:, 3:].tolist(), negative[:, 3:].tolist())
    expected = reference.shares(up.tolist(), down.tolist(), chat.tolist(), contrast)
    torch.testing.assert_close(found.activations[3:], torch.tensor(contrast, dtype=torch.float64))
    torch.testing.assert_close(
        shares(found.feature_acts, chat.double(), found.activations[3:]), torch.tensor(expected, dtype=torch.float64)
    )
    errors = [reference.standard_error(up[:, j].tolist(), down[:, j].tolist()) for j in range(6)]
    torch.testing.assert_close(found.standard_error, torch.tensor(errors, dtype=torch.float64))
    areas = [reference.auroc(up[:, j].tolist(), down[:, j].tolist()) for j in (4, 1)]
    assert separation(crosscoder, positive, negative, torch.tensor([4, 1])).tolist() == pytest.approx(areas)
    expected = reference.delta_contrast(up.tolist(), down.tolist(), base.tolist(), chat.tolist())
    assert delta_contrast(found.feature_acts, base.detach().double(), chat.detach().double()) == pytest.approx(expected)
    assert torch.equal(found.frac_on_positive, (up > 0).double().mean(dim=0))


def test_a_perfect_crosscoder_covers_every_contrast_and_the_difference():
    """Decoders that are the coordinate axes reconstruct exactly, so that shares add up to 1."""
    crosscoder = relu_crosscoder(torch.eye(6))
    rows = rows_of(random_activations(80).abs())
    assert concepts(crosscoder, None, [rows]).table.loc["a", "coverage"] == pytest.approx(1)
    assert concepts(crosscoder, None, [rows], target="difference").table.loc["a", "coverage"] == pytest.approx(1)


def test_shares_do_not_depend_on_the_units_of_latents_or_activations():
    crosscoder, activations = random_crosscoder(), random_activations(60)
    found = concepts(crosscoder, None, [rows_of(activations)]).latents
    louder = relu_crosscoder(
        crosscoder.W_dec * 7, crosscoder.b_dec * 7, crosscoder.W_enc / 7, crosscoder.b_enc, d_models=(3, 3)
    )
    again = concepts(louder, None, [rows_of(activations * 7)]).latents
    pd.testing.assert_frame_equal(found, again)


def test_positive_and_negative_are_a_matter_of_name_but_for_the_direction():
    crosscoder, activations = random_crosscoder(), random_activations(60)
    positive = torch.arange(60) % 2 == 0
    one = concepts(crosscoder, None, [rows_of(activations, positive)]).latents
    other = concepts(crosscoder, None, [rows_of(activations, ~positive)]).latents
    torch.testing.assert_close(torch.tensor(one["share"].array), torch.tensor(other["share"].array))
    assert (one["direction"] == -other["direction"]).mean() > 0.8  # both are 1 at an AUROC of exactly 1/2


def planted(n=80, seed=0):
    """Latent 0 carries the concept on 9 of 10 positive prompts; latent 1 is on everywhere and separates perfectly."""
    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.zeros(3, 6)
    W_dec[0, 3:] = torch.tensor([4.0, 0.0, 0.0])
    W_dec[1] = torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0, 0.0])
    W_dec[2] = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, 1.0])
    positive = torch.arange(n) % 2 == 0
    f = torch.zeros(n, 3)
    f[:, 0] = positive * (torch.arange(n) % 20 != 0)
    f[:, 1] = 5 + 0.01 * positive
    f[:, 2] = torch.rand(n, generator=generator)
    W_enc = torch.linalg.pinv(W_dec.double())
    return relu_crosscoder(W_dec, W_enc=W_enc), rows_of((f @ W_dec).double(), positive)


def test_the_carrier_writes_the_contrast_although_another_latent_separates_better():
    crosscoder, rows = planted()
    found = concepts(crosscoder, None, [rows])
    row = found.table.loc["a"]
    assert row["latent"] == 0
    assert row["share"] == pytest.approx(1, abs=0.01)
    assert (row["auroc"], row["on_positive"], row["on_negative"]) == (0.95, 0.9, 0)
    assert found.latents.loc[("a", 1), "auroc"] == 1  # by AUROC it would have been this one
    assert row["delta_contrast"] > 0.95
    assert str(found).startswith("a: latent 0 carries 1.00 of it (AUROC 0.95, on at 90% of positive and 0% of negative")


def test_nothing_carries_a_contrast_that_the_crosscoder_does_not_write():
    crosscoder, rows = planted()
    activations = rows.activations.clone()
    activations[rows.positive, 5] += 50  # along no decoder of its own, so latent 2 writes it
    crosscoder.W_enc.data[:, 2] = 0
    found = concepts(crosscoder, None, [rows_of(activations, rows.positive)])
    assert found.table["latent"].isna().all()
    assert "no latent carries it (largest share 0.0" in found.table.loc["a", "summary"]


def test_chosen_on_one_half_and_reported_on_the_other():
    crosscoder, rows = planted()
    activations = rows.activations.clone()
    held = rows.held_out
    activations[held & rows.positive] = activations[held & ~rows.positive]  # no contrast is left among held-out prompts
    activations[held & rows.positive, 4] += 3  # but along latent 1
    found = concepts(crosscoder, None, [rows_of(activations, rows.positive)])
    assert found.latents.loc["a"].index[0] == 0
    assert found.table["latent"].isna().all()


def test_the_nu_shown_is_that_of_the_probe_that_judged():
    crosscoder, rows = planted()
    latents = pd.DataFrame(
        {"delta_norm": 0.05, "label": "base_only", "verdict": "base_specific", "n_active": 900}, index=range(3)
    )
    for name, value in {"nu_error": 1.0, "nu_reconstruction": 2.0}.items():
        latents[name], latents[f"{name}_base_probe"] = value, value / 10
    row = concepts(crosscoder, None, [rows], latents).table.loc["a"]
    assert (row["probe"], row["nu_error"], row["nu_reconstruction"]) == ("base", 0.1, 0.2)
    row = concepts(crosscoder, None, [rows], latents.assign(label="chat_only")).table.loc["a"]
    assert (row["probe"], row["nu_error"]) == ("chat", 1.0)
    crosscoder.W_dec.data[:, 3:] = 0  # nothing is carried any more
    row = concepts(crosscoder, None, [rows], latents).table.loc["a"]
    assert row[["latent", "probe", "nu_error", "verdict"]].isna().all()


def test_the_share_of_specific_latents_counts_those_of_the_contrasts_model_alone():
    crosscoder, rows = planted()
    latents = pd.DataFrame({"delta_norm": 1.0, "label": "chat_only", "verdict": "shared"}, index=range(3))
    for name in ("nu_error", "nu_reconstruction"):
        latents[name] = latents[f"{name}_base_probe"] = 0.0
    every = concepts(crosscoder, None, [rows], latents).latents["share"].loc["a"]
    for ids, verdict, counted in (([], "", []), ([0], "base_specific", []), ([0, 2], "chat_specific", [0, 2])):
        latents.loc[ids, "verdict"] = verdict
        found = concepts(crosscoder, None, [rows], latents).table.loc["a", "share_specific"]
        assert found == pytest.approx(every[counted].sum())
    assert found > 0.9
    assert "share_specific" not in concepts(crosscoder, None, [rows]).table


def test_the_biases_share_of_the_difference():
    crosscoder, rows = planted()
    crosscoder.b_dec.data[3] = 2.0  # half of what the concept moves the chat model by
    row = concepts(crosscoder, None, [rows], target="difference").table.loc["a"]
    positive, negative = rows.part(True)
    size = (positive.mean(dim=0) - negative.mean(dim=0))[3].item()
    assert row["share_of_biases"] == pytest.approx(2 / size, rel=0.01)


def test_bad_input_is_refused():
    crosscoder, rows = planted()
    with pytest.raises(ValueError, match="needs the models"):
        concepts(crosscoder, None, [slc.data.Contrast.from_tokens("a", [[1]] * 4, [[2]] * 4)])
    with pytest.raises(ValueError, match="each with a name of its own"):
        concepts(crosscoder, None, [rows, rows])
    with pytest.raises(ValueError, match="Pass at least one"):
        concepts(crosscoder, None, [])
    with pytest.raises(ValueError, match="two models of one width"):
        concepts(random_crosscoder(d_models=(2, 4)), None, [rows], target="difference")


class TestTwoOfSeveralModels:
    """The third model has the first one's activations, so that a crosscoder of two has the same codes."""

    def test_contrasts_are_those_of_the_crosscoder_of_two(self):
        crosscoder = random_crosscoder(d_models=(3, 3, 3))
        (e_0, e_1, e_2), (_, d_1, d_2), (_, b_1, b_2) = (
            crosscoder.encoders,
            crosscoder.decoders,
            crosscoder.decoder_biases,
        )
        of_two = [torch.cat(parts, dim=-1) for parts in ((d_1, d_2), (b_1, b_2), (e_1, e_0 + e_2))]
        view = relu_crosscoder(*of_two[:2], of_two[2].T, crosscoder.b_enc, d_models=(3, 3))
        first, second = random_activations(60).split(3, dim=-1)
        for target, model in (("model", "base"), ("model", "chat"), ("difference", "chat")):
            whole = rows_of(torch.cat([first, second, first], dim=-1), model=model)
            pair = rows_of(torch.cat([second, first], dim=-1), model=model)
            chosen = concepts(crosscoder, None, [whole], models=("model_1", "model_2"), target=target)
            expected = concepts(view, None, [pair], target=target)
            pd.testing.assert_frame_equal(chosen.table, expected.table)
            pd.testing.assert_frame_equal(chosen.latents, expected.latents)

    def test_no_choice_and_tables_of_several_comparisons_are_refused(self):
        crosscoder = random_crosscoder(d_models=(3, 3, 3))
        rows = rows_of(random_activations(60, d_in=9))
        with pytest.raises(ValueError, match="concepts compares two models, but this crosscoder reads 3"):
            concepts(crosscoder, None, [rows])
        joined = pd.DataFrame({"verdict_model_1": ["shared"] * crosscoder.cfg.d_sae})
        with pytest.raises(ValueError, match=r"no column 'verdict'.*one of diagnosis.pairs"):
            concepts(crosscoder, None, [rows], joined, models=("model_0", "model_1"))
