"""Concepts that fire on exactly the same tokens are one to any method, and are scored as one."""

import pandas as pd
import pytest
import torch

from sae_lens_crosscoder.synthetic import Concept, PlantedWorld
from sae_lens_crosscoder.synthetic.scoring import (
    Attribution,
    base_presence,
    concept_recovery,
    match_concepts,
    score_card,
    truth_table,
)
from sae_lens_crosscoder.synthetic.worlds import world_a
from tests.analysis.conftest import relu_crosscoder
from tests.reference import planted as ref

CONCEPTS = [
    Concept("chat_only", 0.2),
    Concept("chat_only", 0.2, fires_with=0),
    Concept("chat_only", 0.2, fires_with=0, share_of_lead=0.7),
    Concept("shared", 0.2, fires_with=0),
    Concept("weak", 0.1, rho=0.35),
    Concept("weak", 0.1, rho=0.5, fires_with=4),
]
GROUPS = [0, 0, 2, 3, 4, 4]


def world_and_rows():
    world = PlantedWorld(CONCEPTS, d_models=(12, 12), seed=0, offset_norm=0.0)
    base, chat = world.directions
    zero = torch.zeros(12)
    rows = [
        torch.cat([zero, chat[0] + 0.2 * chat[1]]),  # inside the span of the pair, mostly along its first
        torch.cat([zero, chat[0] - 0.2 * chat[2]]),  # outside it by a little
        torch.cat([zero, -chat[0] - chat[1]]),  # away from the pair
        torch.cat([zero, chat[2]]),
        torch.cat([0.4 * (base[4] + base[5]), chat[4] + chat[5]]),
        torch.cat([base[3], chat[3]]),
    ]
    return world, torch.stack(rows)


def crosscoder_of(world, rows):
    return relu_crosscoder(rows.double(), b_enc=torch.full((len(rows),), -0.2), d_models=(12, 12))


def test_only_concepts_of_one_kind_that_always_fire_together_are_one():
    world, _ = world_and_rows()
    assert world.support_groups.tolist() == GROUPS
    fires = (world.sample(5000, seed=1).coefficients > 0).any(dim=-1)
    for index, first in enumerate(GROUPS):
        assert torch.equal(fires[:, index], fires[:, first])
    assert not torch.equal(fires[:, 2], fires[:, 0])
    assert world_a(seed=0).support_groups.tolist() == list(range(174))
    pairs = world_a(seed=0, co_occurring=True).support_groups
    assert [index for index, first in enumerate(pairs.tolist()) if first != index] == list(range(97, 112, 2))


def test_a_latent_matches_a_group_by_its_projection_on_the_span():
    world, rows = world_and_rows()
    crosscoder = crosscoder_of(world, rows)
    chat = world.directions[1].double()
    expected = []
    for row in rows[:, 12:].double():
        unit = (row / row.norm()).tolist()
        cosines = {
            first: ref.cosine_to_span(unit, [chat[i].tolist() for i, g in enumerate(GROUPS) if g == first])
            for first in GROUPS
        }
        best = max(cosines, key=lambda first: cosines[first])
        expected.append(best if cosines[best] > 0.7 else -1)
    assert match_concepts(world, crosscoder).tolist() == expected
    assert expected[:2] == [0, 0]
    assert expected[2] == -1  # its projection is as long as any, but points the wrong way
    assert expected[3:] == [2, 4, 3]


def test_a_single_concept_is_matched_by_its_cosine_as_before():
    world, rows = world_and_rows()
    unit = (rows[3, 12:] / rows[3, 12:].norm()).tolist()
    direction = world.directions[1][2].tolist()
    cosine = sum(a * b for a, b in zip(unit, direction, strict=True))
    assert ref.cosine_to_span(unit, [direction]) == pytest.approx(cosine)


def test_the_presence_of_a_group_is_that_of_its_summed_coefficients():
    world, rows = world_and_rows()
    crosscoder, tokens = crosscoder_of(world, rows), world.sample(3000, seed=1)
    acts = crosscoder.encode(tokens.activations.double())
    found = base_presence(acts, tokens, torch.tensor([0, 0, -1, 2, 4, 3]), world.support_groups)
    both = ref.group_presence(acts[:, 4].tolist(), tokens.coefficients.tolist(), [4, 5])
    assert found[4].item() == pytest.approx(both)
    assert 0.35 < both < 0.5  # between those of its members
    assert found[0] == 0
    assert found[2].isnan()


def test_one_right_latent_finds_a_whole_group_and_counts_it_once():
    world, rows = world_and_rows()
    truth = truth_table(world, crosscoder_of(world, rows), world.sample(3000, seed=1))
    table = pd.DataFrame(
        {"label": "other", "verdict": ["chat_specific", *["other"] * 5], "dead": False, "delta_norm": 0.5,
         "nu_error": 0.0, "nu_reconstruction": 0.0, "nu_error_base_probe": 0.0, "nu_reconstruction_base_probe": 0.0},
        index=truth.index,
    )  # fmt: skip
    card = score_card(world, truth, table)
    assert card.chat_verdict == Attribution(1, 1.0, 1 / 2)  # of the pair, and the concept that overlaps it
    assert card.frac_recovered == 1.0
    recovery = concept_recovery(world, truth, table)
    assert recovery.latent[0] == recovery.latent[1] != recovery.latent[2]
    assert recovery.kind.tolist() == [concept.kind for concept in CONCEPTS]
