"""Judging a crosscoder by planted truth: matches, presence, precision, recall and AUROC are what their names say."""

import math

import pandas as pd
import pytest
import torch

from sae_lens_crosscoder.analysis.contrasts.auroc import auroc
from sae_lens_crosscoder.synthetic import Concept, PlantedTokens, PlantedWorld
from sae_lens_crosscoder.synthetic.scoring import (
    Attribution,
    base_presence,
    concept_recovery,
    match_concepts,
    score_card,
    truth_table,
)
from tests.analysis.conftest import relu_crosscoder
from tests.reference import planted as ref

NAN = float("nan")
CONCEPTS = [
    Concept("chat_only", 0.1),
    Concept("weak", 0.1, rho=0.35),
    Concept("decoupled", 0.1, q=0.6),
    Concept("shared", 0.1),
    Concept("chat_only", 0.1),
    Concept("base_only", 0.1),
]


def oracle():
    """Latents 0 to 3 and 5 are the concepts of these numbers; latent 4 points nowhere in particular."""
    world = PlantedWorld(CONCEPTS, d_models=(16, 16), seed=0, offset_norm=0.0)
    base, chat = world.directions
    rows = torch.cat([base, 1.1 * chat], dim=-1).double()
    rows[5, 16:] = 0
    rows[4] = 1 / 32**0.5
    crosscoder = relu_crosscoder(rows, b_enc=torch.full((6,), -0.2), d_models=(16, 16))
    return world, crosscoder, world.sample(20_000, seed=1)


def table_of(labels, nu_error=0.0, nu_reconstruction=0.0, dead=False, verdicts="other"):
    columns = {"label": labels, "verdict": verdicts, "dead": dead, "delta_norm": 0.5, "n_active": 1000}
    for probe in ("", "_base_probe"):
        columns |= {f"nu_error{probe}": nu_error, f"nu_reconstruction{probe}": nu_reconstruction}
    return pd.DataFrame(columns, index=pd.RangeIndex(len(labels), name="latent"))


FLAGGED = ["chat_only", "chat_only", "chat_only", "shared", "chat_only", "base_only"]


def test_a_latent_matches_the_concept_its_longer_half_points_along():
    world, crosscoder, _ = oracle()
    assert match_concepts(world, crosscoder).tolist() == [0, 1, 2, 3, -1, 5]


def test_presence_is_the_base_models_share_of_the_concept_while_the_latent_is_on():
    world, crosscoder, tokens = oracle()
    f = crosscoder.encode(tokens.activations.double())
    f[:, 3] = 0
    concepts = match_concepts(world, crosscoder)
    found = base_presence(f, tokens, concepts, world.support_groups)
    sums = [[0.0, 0.0] for _ in CONCEPTS]
    for acts, shares in zip(f.tolist(), tokens.coefficients.tolist(), strict=True):
        for j in (0, 1, 2):
            for m in (0, 1):
                sums[j][m] += acts[j] * shares[j][m]
    assert found[:3].tolist() == pytest.approx([base / chat for base, chat in sums[:3]])
    assert found[3:5].isnan().all()  # dead, unmatched
    assert found[5] == math.inf  # base only
    assert found[1].item() == pytest.approx(ref.base_presence(tokens.coefficients[:, [1]].tolist(), 0), abs=1e-6)


def test_the_hit_rate_is_the_share_of_a_concepts_firings_on_which_its_latent_fires():
    world, crosscoder, tokens = oracle()
    with torch.no_grad():
        crosscoder.b_enc[0] = -1.4  # of magnitudes around 1.1, only the largest pass
    truth = truth_table(world, crosscoder, tokens)
    f = crosscoder.encode(tokens.activations.double())
    for j in (0, 1, 2, 3, 5):
        hits = misses = 0
        for acts, shares in zip(f[:, j].tolist(), tokens.coefficients[:, j].tolist(), strict=True):
            if max(shares) > 0:
                hits, misses = (hits + 1, misses) if acts > 0 else (hits, misses + 1)
        assert truth.hit_rate[j] == pytest.approx(hits / (hits + misses))
    assert 0 < truth.hit_rate[0] < 0.5 < truth.hit_rate[1]
    assert math.isnan(truth.hit_rate[4])
    assert truth.kind.tolist() == ["chat_only", "weak", "decoupled", "shared", "none", "base_only"]


def judged(table, b_enc=None):
    world, crosscoder, tokens = oracle()
    if b_enc is not None:
        with torch.no_grad():
            crosscoder.b_enc.copy_(b_enc)
    return score_card(world, truth_table(world, crosscoder, tokens), table)


def test_precision_and_recall_count_every_flagged_latent():
    table = table_of(FLAGGED, nu_error=[0.1, 0.4, 0.1, 0.0, NAN, 0.0], nu_reconstruction=[0.1, 0.1, 0.6, 1.0, 0.0, 0.0])
    card = judged(table)
    assert (card.n_dead, card.n_unmatched) == (0, 1)
    # The weak, the decoupled and the unmatched one are wrong; no latent matches concept 4.
    assert card.chat_delta_norm == Attribution(4, 1 / 4, 1 / 2)
    assert card.base_delta_norm == Attribution(1, 1.0, 1.0)
    assert (card.frac_weak_flagged, card.frac_decoupled_flagged) == (1, 1)
    assert card.nu_auroc_in_flagged == 1
    assert card.chat_absolute_nu == Attribution(1, 1.0, 0.5)
    negative = table.assign(nu_error=[-0.3, 0.4, 0.1, 0.0, NAN, 0.0])
    assert judged(negative).chat_absolute_nu.n == 0
    assert card.frac_recovered == 5 / 6
    assert judged(table.assign(nu_error_base_probe=0.3)).base_absolute_nu.n == 0
    said = table.assign(verdict=["chat_specific", "chat_specific", *["other"] * 3, "base_specific"])
    assert judged(said).chat_verdict == Attribution(2, 1 / 2, 1 / 2)
    assert judged(said).base_verdict == Attribution(1, 1.0, 1.0)


def test_truth_is_that_of_the_tokens_that_a_diagnosis_judges():
    """Sinks are left out of a diagnosis. With 100 times the activation, a few would decide the truth alone."""
    world, crosscoder, plain = oracle()
    loud_world = PlantedWorld(CONCEPTS, d_models=(16, 16), seed=0, offset_norm=0.0, frac_sinks=0.05)
    loud = loud_world.sample(20_000, seed=1)
    kept = ~loud.is_sink
    calm = PlantedTokens(plain.activations[kept], plain.coefficients[kept], plain.is_sink[kept], plain.places[kept])
    found = truth_table(loud_world, crosscoder, loud)
    pd.testing.assert_frame_equal(found, truth_table(world, crosscoder, calm))
    assert 0.5 < found.base_presence[2] < 1


def test_a_latent_that_hardly_ever_fires_finds_nothing():
    """Its direction is right, but nobody could find the concept by it."""
    quiet = torch.tensor([-1.9, -0.2, -0.2, -0.2, -0.2, -0.2], dtype=torch.float64)
    card = judged(table_of(FLAGGED), b_enc=quiet)
    assert card.chat_delta_norm.recall == 0
    assert card.frac_recovered == 4 / 6


def test_a_flagged_latent_of_a_trap_counts_only_where_it_is_wrong():
    """One that fires just where a decoupled concept is in the chat model alone tells the truth."""
    world, crosscoder, tokens = oracle()
    truth = truth_table(world, crosscoder, tokens)
    assert score_card(world, truth, table_of(FLAGGED)).frac_decoupled_flagged == 1
    alone = truth.assign(base_presence=truth.base_presence.where(truth.concept != 2, 0.0))
    card = score_card(world, alone, table_of(FLAGGED))
    assert card.frac_decoupled_flagged == 0
    assert card.chat_delta_norm.precision == 2 / 4


def test_rank_correlations_with_the_presence_in_base():
    world, crosscoder, tokens = oracle()
    truth = truth_table(world, crosscoder, tokens)
    perfect = table_of(["other"] * 6, nu_error=truth.base_presence)
    card = score_card(world, truth, perfect.assign(delta_norm=-truth.base_presence))
    assert (card.delta_norm_spearman, card.nu_error_spearman) == pytest.approx((1, 1))
    reverse = perfect.assign(delta_norm=truth.base_presence, nu_error=-truth.base_presence)
    card = score_card(world, truth, reverse)
    assert (card.delta_norm_spearman, card.nu_error_spearman) == pytest.approx((-1, -1))


def test_an_uninformative_nu_has_an_auroc_of_one_half_and_no_flag_has_none():
    labels = ["chat_only", "chat_only", "shared", "shared", "shared", "shared"]
    assert judged(table_of(labels, 0.1, 0.1)).nu_auroc_in_flagged == 0.5
    assert judged(table_of(labels, nu_error=[0.15, 0.05, 0, 0, 0, 0])).nu_auroc_in_flagged == 0
    none = judged(table_of(["shared"] * 6, dead=True))
    assert (none.chat_delta_norm.n, none.n_dead, none.chat_delta_norm.recall) == (0, 6, 0)
    assert [none.chat_delta_norm.precision, none.nu_auroc_in_flagged] == pytest.approx([NAN, NAN], nan_ok=True)


def test_recovery_lists_every_concept_with_the_latent_that_carries_it():
    world, crosscoder, tokens = oracle()
    table = table_of(FLAGGED, verdicts=[f"said of {j}" for j in range(6)])
    recovery = concept_recovery(world, truth_table(world, crosscoder, tokens), table)
    assert recovery.latent.tolist() == [0, 1, 2, 3, -1, 5]
    assert recovery.verdict.tolist()[:4] == ["said of 0", "said of 1", "said of 2", "said of 3"]
    assert recovery.verdict.isna().tolist() == [False] * 4 + [True, False]
    assert recovery.kind.tolist() == [concept.kind for concept in CONCEPTS]
    assert recovery.firing_probability.tolist() == [0.1] * 6


def auroc_by_pairs(positive, negative):
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in positive for b in negative]
    return sum(wins) / len(wins)


def test_auroc_is_the_share_of_pairs_in_order_ties_counting_half():
    positive, negative = torch.randn(9, 4).relu(), torch.randn(7, 4).relu()
    expected = [auroc_by_pairs(positive[:, j].tolist(), negative[:, j].tolist()) for j in range(4)]
    assert auroc(positive, negative).tolist() == pytest.approx(expected)
    torch.testing.assert_close(auroc(negative, positive), 1 - auroc(positive, negative))
    torch.testing.assert_close(auroc(positive.exp(), negative.exp()), auroc(positive, negative))
