"""Families of atoms: tokens on which a parent is alone tell it from a mixture with its child."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from sae_lens_crosscoder.crosscoders.sparse_step.pairs import pairs_of
from sae_lens_crosscoder.synthetic import Concept, PlantedWorld
from sae_lens_crosscoder.training.polishing.families import families_of, family_directions, with_lone_parents
from sae_lens_crosscoder.training.polishing.rounds import PolishState, polish_round
from tests.reference import families as ref
from tests.training.test_reading import acausal

NOISE, MIN_GAIN, N_TOKENS = 0.02, 0.02, 300
# Rows of the true parent p and child e in two wrong dictionaries, neither of which has nested atoms to separate.
DIVIDED = torch.tensor([[1.0, 0.8], [1.0, -0.4]], dtype=torch.float64)
TAKEN_AWAY = torch.tensor([[1.0, 0.3], [0.0, -1.0]], dtype=torch.float64)
TRUE = torch.eye(2, dtype=torch.float64)
MIXTURES = {"divided": DIVIDED, "taken away": TAKEN_AWAY}


def mixed(mixture, child_everywhere=False, seed=0):
    """Tokens with p on most, e on half of these, and an atom apart; codes over a mixture of p and e, and the atom.

    Returns:
        true directions (p, e), decoder, codes, residual.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    p, apart = normalize(normal(8), dim=0), normalize(normal(8), dim=0)
    e = normalize(0.6 * p + 0.8 * normalize(normal(8), dim=0), dim=0)
    on = torch.rand(N_TOKENS, generator=generator) < (1.0 if child_everywhere else 0.5)
    sizes = 1 + 0.25 * normal(N_TOKENS, 3).clamp(-2, 2)
    c = torch.stack([3 * sizes[:, 0], sizes[:, 1] * on], dim=1) * (torch.arange(N_TOKENS) % 3 > 0)[:, None]
    f = torch.cat([(c @ mixture.inverse()).clamp(min=0), sizes[:, 2:] * (normal(N_TOKENS, 1) > 1)], dim=1)
    decoder = torch.cat([mixture @ torch.stack([p, e]), apart[None]])
    x = c @ torch.stack([p, e]) + f[:, 2:] * apart + NOISE * normal(N_TOKENS, 8)
    return (p, e), decoder, f, x - f @ decoder


def changes(decoder, f, residual, scale=1.0):
    arguments = (decoder, *pairs_of(f), residual, scale * NOISE, scale**2 * MIN_GAIN)
    return list(with_lone_parents(*arguments))


@pytest.mark.parametrize("name", MIXTURES)
def test_the_parent_is_what_tokens_without_the_child_share(name):
    (p, e), decoder, f, residual = mixed(MIXTURES[name])
    ((atoms, rows),) = changes(decoder, f, residual)
    assert set(atoms) == {0, 1}
    assert rows[0] @ p > 0.9999
    assert normalize(decoder[atoms[0]], dim=0) @ p < 0.99
    beside = normalize(e - (e @ p) * p, dim=0)
    assert rows[1] @ beside > 0.999


@pytest.mark.parametrize("name", MIXTURES)
def test_families_and_directions_are_the_loops_over_tokens(name):
    _, decoder, f, residual = mixed(MIXTURES[name])
    families = ref.families(f.tolist())
    assert [(family.parent, family.children) for family in families_of(*pairs_of(f))] == families
    ((parent, children),) = families
    ((atoms, rows),) = changes(decoder, f, residual)
    assert atoms == [parent, *children]
    written = ref.written(f.tolist(), decoder.tolist(), residual.tolist(), atoms)
    expected = ref.directions(written, len(atoms), NOISE, MIN_GAIN)
    torch.testing.assert_close(rows, torch.tensor(expected, dtype=rows.dtype))


def test_a_parent_that_is_right_and_one_that_is_never_alone_stay():
    _, *right = mixed(TRUE)
    assert changes(*right) == []
    _, *never_alone = mixed(DIVIDED, child_everywhere=True)
    assert families_of(*pairs_of(never_alone[1])) != []
    assert changes(*never_alone) == []


def test_directions_turn_with_the_space_and_do_not_depend_on_its_scale():
    _, decoder, f, residual = mixed(DIVIDED)
    ((_, rows),) = changes(decoder, f, residual)
    turn = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).Q
    ((_, turned),) = changes(decoder @ turn, f, residual @ turn)
    torch.testing.assert_close(turned, rows @ turn)
    ((_, louder),) = changes(5 * decoder, f, 5 * residual, scale=5.0)
    torch.testing.assert_close(louder, rows)
    order = torch.tensor([2, 1, 0])
    ((atoms, permuted),) = changes(decoder[order], f[:, order], residual)
    assert set(atoms) == {1, 2}
    torch.testing.assert_close(permuted, rows)


def test_tokens_without_a_common_direction_have_none():
    noise = NOISE * torch.randn(200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    spread = (
        torch.tensor([math.cos(t / 100) for t in range(157)]),
        torch.tensor([math.sin(t / 100) for t in range(157)]),
    )
    assert len(family_directions(3 * torch.stack(spread, dim=1).double(), 0.01, MIN_GAIN)) == 0
    assert len(family_directions(noise, NOISE / 100, MIN_GAIN)) == 0


@pytest.mark.parametrize(("stop", "is_found"), [("noise", True), ("k", False)])
def test_rounds_find_a_chat_only_concept_on_one_place_where_the_activations_have_a_noise_floor(stop, is_found):
    concepts = [Concept("shared", 0.3, size=3.0, is_place=True)]
    concepts += [Concept("chat_only", 0.3, fires_with=0, share_of_lead=0.6, near=0, cosine=0.6)]
    concepts += [Concept("shared", 0.1) for _ in range(6)]
    world = PlantedWorld(concepts, d_models=(16, 16), seed=3)
    true = torch.cat(world.directions, dim=1)
    true[1, :16] = 0  # the chat-only concept
    start = true.clone()
    start[:2] = TAKEN_AWAY.float() @ true[:2]
    state = PolishState(start, world.offset, acausal(start))
    for n in range(8):
        polish_round(state, world.sample(1500, seed=n).activations, world.l0, 8, stop, len(start))
    base, chat = (rows.norm(dim=1) for rows in state.W_dec.split(16, dim=1))
    assert bool((base < 0.2 * chat).any()) is is_found
