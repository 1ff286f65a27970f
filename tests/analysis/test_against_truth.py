"""Judging a crosscoder by planted truth: matches, presence, precision, recall and AUROC are what their names say."""

from dataclasses import dataclass

import pandas as pd
import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations.planted import Concept, PlantedWorld
from sae_lens_crosscoder.analysis.concepts import auroc, concept_table
from sae_lens_crosscoder.analysis.score_card import base_presence, match_concepts, score_card
from sae_lens_crosscoder.models.tiny import TINY_HOOK
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
    world = PlantedWorld(CONCEPTS, d_model=16, seed=0, offset_norm=0.0)
    base, chat = world.directions
    rows = torch.cat([base, 1.1 * chat], dim=-1).double()
    rows[5, 16:] = 0
    rows[4] = 1 / 32**0.5
    crosscoder = relu_crosscoder(rows, b_enc=torch.full((6,), -0.2), d_models=(16, 16))
    return world, crosscoder, world.sample(20_000, seed=1)


def table_of(labels, nu_error=0.0, nu_reconstruction=0.0, dead=False):
    columns = {"label": labels, "nu_error": nu_error, "nu_reconstruction": nu_reconstruction, "dead": dead}
    return pd.DataFrame(columns, index=range(len(labels)))


def test_a_latent_matches_the_concept_its_longer_half_points_along():
    world, crosscoder, _ = oracle()
    assert match_concepts(world, crosscoder).tolist() == [0, 1, 2, 3, -1, 5]


def test_presence_is_the_base_models_share_of_the_concept_while_the_latent_is_on():
    world, crosscoder, tokens = oracle()
    f = crosscoder.encode(tokens.activations.double())
    f[:, 3] = 0
    concepts = match_concepts(world, crosscoder)
    found = base_presence(f, tokens, concepts)
    sums = [[0.0, 0.0] for _ in CONCEPTS]
    for acts, shares in zip(f.tolist(), tokens.coefficients.tolist(), strict=True):
        for j in (0, 1, 2):
            for m in (0, 1):
                sums[j][m] += acts[j] * shares[j][m]
    assert found[:3].tolist() == pytest.approx([base / chat for base, chat in sums[:3]])
    assert found[3:5].isnan().all()  # dead, unmatched
    assert found[1].item() == pytest.approx(ref.base_presence(tokens.coefficients[:, [1]].tolist(), 0), abs=1e-6)


def test_precision_and_recall_count_every_flagged_latent():
    world, crosscoder, tokens = oracle()
    flagged = ["chat_only", "chat_only", "chat_only", "shared", "chat_only", "base_only"]
    table = table_of(flagged, nu_error=[0.1, 0.4, 0.1, 0.0, NAN, 0.0], nu_reconstruction=[0.1, 0.1, 0.6, 1.0, 0.0, 0.0])
    card = score_card(world, crosscoder, tokens, table)
    assert (card.n_flagged, card.n_dead) == (4, 0)
    assert card.precision == 1 / 4  # the weak, the decoupled and the unmatched one are wrong
    assert card.recall == 1 / 2  # no latent matches concept 4
    assert (card.frac_weak_flagged, card.frac_decoupled_flagged) == (1, 1)
    assert card.nu_auroc_in_flagged == 1
    negative = table.assign(nu_error=[-0.3, 0.4, 0.1, 0.0, NAN, 0.0])
    assert score_card(world, crosscoder, tokens, negative).n_flagged_after_nu == 0
    assert (card.n_flagged_after_nu, card.precision_after_nu, card.recall_after_nu) == (1, 1, 0.5)


def test_an_uninformative_nu_has_an_auroc_of_one_half_and_no_flag_has_none():
    world, crosscoder, tokens = oracle()
    labels = ["chat_only", "chat_only", "shared", "shared", "shared", "shared"]
    assert score_card(world, crosscoder, tokens, table_of(labels, 0.1, 0.1)).nu_auroc_in_flagged == 0.5
    inverted = table_of(labels, nu_error=[0.15, 0.05, 0, 0, 0, 0])
    assert score_card(world, crosscoder, tokens, inverted).nu_auroc_in_flagged == 0
    none = score_card(world, crosscoder, tokens, table_of(["shared"] * 6, dead=True))
    assert (none.n_flagged, none.n_dead, none.recall) == (0, 6, 0)
    assert [none.precision, none.nu_auroc_in_flagged] == pytest.approx([NAN, NAN], nan_ok=True)


def auroc_by_pairs(positive, negative):
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in positive for b in negative]
    return sum(wins) / len(wins)


def test_auroc_is_the_share_of_pairs_in_order_ties_counting_half():
    positive, negative = torch.randn(9, 4).relu(), torch.randn(7, 4).relu()
    expected = [auroc_by_pairs(positive[:, j].tolist(), negative[:, j].tolist()) for j in range(4)]
    assert auroc(positive, negative).tolist() == pytest.approx(expected)
    torch.testing.assert_close(auroc(negative, positive), 1 - auroc(positive, negative))
    torch.testing.assert_close(auroc(positive.exp(), negative.exp()), auroc(positive, negative))


@dataclass
class Contrast:
    positive: torch.Tensor
    negative: torch.Tensor
    decision_position: int = 1
    kind_of_change: str = "new"


def test_the_latent_of_a_concept_is_chosen_on_one_half_and_scored_on_the_other():
    pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-null")
    crosscoder = relu_crosscoder(torch.randn(12, 192, dtype=torch.float64), d_models=(96, 96))
    crosscoder.cfg.metadata.hook_name = TINY_HOOK
    prompts = torch.randint(8, 100, (2, 10, 3), generator=torch.Generator().manual_seed(0))
    table = slc.diagnose(crosscoder, pair, prompts.flatten(0, 1), min_active=1)
    found = concept_table(crosscoder, pair, table, {"concept": Contrast(*prompts)}).loc["concept"]
    on, off = (crosscoder.encode(pair.activations(p, TINY_HOOK)[:, 1]).T.tolist() for p in prompts)
    first = [auroc_by_pairs(a[:5], b[:5]) for a, b in zip(on, off, strict=True)]
    best = first.index(max(first))
    everywhere = [auroc_by_pairs(a, b) for a, b in zip(on, off, strict=True)]
    assert best != everywhere.index(max(everywhere))  # so that the half matters
    assert found.latent == best
    assert found.auroc == pytest.approx(auroc_by_pairs(on[best][5:], off[best][5:]))
    assert found.kind_of_change == "new"
    assert found.delta_norm == table.delta_norm[best]
    assert found.verdict == table.verdict[best]
    single = Contrast(prompts[0, :1], prompts[1, :1])
    with pytest.raises(ValueError, match="Concept 'alone' has 1 pair of prompts, but needs two"):
        concept_table(crosscoder, pair, table, {"alone": single})
