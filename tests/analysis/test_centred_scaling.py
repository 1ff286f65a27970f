"""Latent Scaling within groups of tokens: what both models have on all tokens of a group does not count."""

import pandas as pd
import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.analysis.latent_scaling.background_groups import BackgroundGroups
from sae_lens_crosscoder.analysis.latent_scaling.centred_scaling import CentredScaling
from sae_lens_crosscoder.data.token_groups import TokenGroups
from sae_lens_crosscoder.synthetic import background_world
from tests.analysis.conftest import lists, random_activations, random_crosscoder, relu_crosscoder
from tests.reference import centred_scaling as ref

TARGETS = ("activation", "reconstruction", "error")
N_GROUPS = 4


def groups_of(n, seed=5):
    return torch.randint(N_GROUPS, (n,), generator=torch.Generator().manual_seed(seed))


def centred_of(crosscoder, x, groups, batch=None, shift=0.0):
    scaling = slc.analysis.LatentScaling(crosscoder)
    centred = CentredScaling(scaling, N_GROUPS)
    for part, label in zip(x.split(batch or len(x)), groups.split(batch or len(x)), strict=True):
        f = crosscoder.encode(part)
        moved = part if isinstance(shift, float) else part + shift[label]
        for sums, more in ((scaling, ()), (centred, (label,))):
            sums.add(moved, f, crosscoder.decode(f), *more)
    return centred


def all_betas(centred):
    return torch.stack([centred.beta(t, m, p) for t in TARGETS for m in (0, 1) for p in (0, 1)])


def test_every_beta_is_the_regression_of_deviations():
    crosscoder, x = random_crosscoder(), random_activations(30)
    groups = groups_of(30)
    centred = centred_of(crosscoder, x, groups, batch=7)
    for name in TARGETS:
        for m in (0, 1):
            for probe in (0, 1):
                expected = [
                    ref.centred_beta(name, j, m, probe, *lists(crosscoder, x), groups.tolist()) for j in range(6)
                ]
                assert centred.beta(name, m, probe).tolist() == pytest.approx(expected, rel=1e-9)


def test_a_constant_added_to_a_groups_activations_changes_nothing():
    crosscoder, x, groups = random_crosscoder(), random_activations(50), groups_of(50)
    shift = 30 * random_activations(N_GROUPS, seed=9)
    plain, shifted = (centred_of(crosscoder, x, groups, shift=s) for s in (0.0, shift))
    torch.testing.assert_close(all_betas(shifted), all_betas(plain))


def test_neither_the_order_nor_the_batches_nor_the_names_of_groups_matter():
    crosscoder, x, groups = random_crosscoder(), random_activations(50), groups_of(50)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    plain = all_betas(centred_of(crosscoder, x, groups))
    torch.testing.assert_close(all_betas(centred_of(crosscoder, x[order], groups[order], batch=9)), plain)
    torch.testing.assert_close(all_betas(centred_of(crosscoder, x, N_GROUPS - 1 - groups)), plain)


def test_scaled_models_scale_nu_and_not_more():
    x, groups = random_activations(50), groups_of(50)
    plain, scaled = (centred_of(random_crosscoder(scales=s), x, groups) for s in ((1.0, 1.0), (2.0, 3.0)))
    for target in TARGETS:
        torch.testing.assert_close(scaled.nu(target), plain.nu(target) * 2 / 3, equal_nan=True)
        torch.testing.assert_close(scaled.nu(target, 0), plain.nu(target, 0) * 3 / 2, equal_nan=True)
        assert plain.nu(target).isfinite().any()


def test_a_latent_that_explains_nothing_of_its_own_model_has_no_ratio():
    crosscoder, x, groups = random_crosscoder(), random_activations(50), groups_of(50)
    x[:, 3:] = 0.0
    centred = centred_of(crosscoder, x, groups)
    assert centred.beta("activation", 1).abs().max() < 1e-12
    assert centred.nu("activation").isnan().all()


def test_a_state_continues_to_the_same_sums():
    crosscoder, x, groups = random_crosscoder(), random_activations(40), groups_of(40)
    first = centred_of(crosscoder, x, groups)
    again = CentredScaling(first.scaling, N_GROUPS)
    again.load_state_dict(first.state_dict())
    torch.testing.assert_close(all_betas(again), all_betas(first), rtol=0, atol=0)


def test_a_latent_without_variance_within_groups_has_no_centred_nu():
    u = torch.eye(4, dtype=torch.float64)
    crosscoder = relu_crosscoder(torch.cat([u, u], dim=-1), W_enc=torch.cat([u, u]) / 2, d_models=(4, 4))
    groups = torch.arange(400) % N_GROUPS
    x = torch.cat([u, u], dim=-1)[groups]  # latent g fires by 1 on every token of group g, and on no other
    x[:, [3, 7]] += torch.rand(400, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:, [2, 6]] = -1.0
    centred = centred_of(crosscoder, x, groups)
    for target in TARGETS:
        assert centred.nu(target).isnan().tolist() == [True, True, True, False]  # latent 2 is dead
    assert centred.nu("activation")[3] == pytest.approx(1)


@pytest.mark.parametrize("d_models", [(2, 4), (2, 2, 2)])
def test_models_without_a_common_direction_have_no_centred_nu(d_models):
    centred = centred_of(random_crosscoder(d_models=d_models), random_activations(), groups_of(40))
    assert all(centred.nu(target).isnan().all() for target in TARGETS)


@pytest.mark.parametrize("rho", [0.0, 0.3, 1.0])
def test_presence_is_the_planted_share_whatever_the_background(rho):
    generator = torch.Generator().manual_seed(0)
    u = torch.eye(4, dtype=torch.float64)[:1]
    a = (torch.rand(2000, 1, generator=generator) < 0.5) * (1 + 0.25 * torch.randn(2000, 1, generator=generator))
    groups = groups_of(2000)
    background = torch.randn(N_GROUPS, 4, generator=generator, dtype=torch.float64)[groups]
    f, zero = a.clamp(min=0).double(), torch.zeros(1, 4, dtype=torch.float64)
    crosscoder = relu_crosscoder(torch.cat([zero, u], dim=-1), d_models=(4, 4))
    scaling = slc.analysis.LatentScaling(crosscoder)
    centred = CentredScaling(scaling, N_GROUPS)
    x = torch.cat([rho * f * u + 5 * background, f * u + 5 * background], dim=-1)
    scaling.add(x, f, crosscoder.decode(f))
    centred.add(x, f, crosscoder.decode(f), groups)
    assert centred.nu("activation").item() == pytest.approx(rho, abs=1e-9)
    assert centred.nu("error").item() == pytest.approx(rho, abs=1e-9)
    plain = scaling.nu("activation", significant=False).item()
    assert rho == 1 or abs(plain - rho) > 0.3


def test_frequent_ids_have_a_group_each_and_the_rest_one():
    ids = torch.tensor([7] * 150 + [3] * 300 + [5] * 99 + list(range(100, 150)))
    mask = torch.ones(1, len(ids), dtype=torch.bool)
    mask[0, -1] = False
    pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-null")
    data = slc.EvalData(pair=pair, tokens=ids[None], token_mask=mask)
    groups = BackgroundGroups.of(data)
    assert groups.labels is not None
    assert groups.labels.tolist() == [2] * 150 + [1] * 300 + [0] * (99 + 49)
    assert (groups.n_groups, groups.source) == (3, "token ids")
    assert groups.at(torch.tensor([0, 200])).tolist() == [2, 1]
    places = torch.zeros(1, len(ids), dtype=torch.int64)
    places[0, 150:290] = 1
    split = slc.EvalData(pair=pair, tokens=ids[None], token_mask=mask, groups=TokenGroups(places, ("text", "template")))
    both = BackgroundGroups.of(split)
    assert both.n_groups == 4
    assert both.source == "token ids and groups"
    with pytest.raises(ValueError, match="Got 598 labels for 599 tokens"):
        groups.validate_count(599)
    with pytest.raises(ValueError, match="Got 598 labels for more tokens"):
        groups.at(torch.tensor([598]))


def test_activations_are_told_apart_by_their_groups_or_not_at_all():
    x = random_activations(400)
    labels = (torch.arange(400) % 2)[:, None]
    alone = BackgroundGroups.of(slc.EvalData(activations=x))
    assert (alone.labels, alone.n_groups, alone.source) == (None, 1, "one group")
    assert alone.at(torch.tensor([3, 5])).tolist() == [0, 0]
    told = BackgroundGroups.of(slc.EvalData(activations=x, groups=TokenGroups(labels, ("a", "b"))))
    assert told.labels is not None
    assert told.n_groups == 3
    assert told.source == "groups"
    assert (told.labels[::2] == told.labels[0]).all()
    assert told.labels[0] != told.labels[1]
    manifest = slc.diagnose(random_crosscoder(), slc.EvalData(activations=x)).manifest
    assert manifest["background_groups"] == "one group"
    wrong = slc.EvalData(activations=x, groups=TokenGroups(labels[:300], ("a", "b")))
    with pytest.raises(ValueError, match="Got 300 labels for 400 tokens"):
        slc.diagnose(random_crosscoder(), wrong)


def oracle(world):
    """The crosscoder that knows the world's directions; a decoupled concept has one latent for each model.

    Returns it, and the concept of each latent.
    """
    base, chat = (part.double() for part in world.directions)
    kinds = [concept.kind for concept in world.concepts]
    concepts = list(range(len(kinds))) + [i for i, kind in enumerate(kinds) if kind == "decoupled"]
    rows = torch.cat([base, chat], dim=-1)[concepts]
    d = base.shape[1]
    for latent, concept in enumerate(concepts):
        if kinds[concept] == "chat_only" or (kinds[concept] == "decoupled" and latent < len(kinds)):
            rows[latent, :d] = 0
        elif kinds[concept] in ("base_only", "decoupled"):
            rows[latent, d:] = 0
    W_enc = torch.linalg.pinv(rows)
    crosscoder = relu_crosscoder(rows, world.offset, W_enc, -0.1 - world.offset.double() @ W_enc, d_models=(d, d))
    return crosscoder, concepts


@pytest.fixture(scope="module")
def background():
    world = background_world(0, d_models=(256, 256))
    crosscoder, concepts = oracle(world)
    tokens = world.sample(20_000, seed=1)
    groups = TokenGroups(tokens.places[:, None], world.place_names)
    table = slc.diagnose(crosscoder, slc.EvalData(activations=tokens.activations.double(), groups=groups)).latents
    kinds = [world.concepts[index].kind for index in concepts]
    near = [world.concepts[index].near is not None for index in concepts]
    return table.assign(kind=kinds, near=near)


def test_a_concept_that_lives_on_a_background_is_acquitted(background):
    side = background[background.kind.isin(["chat_only", "base_only"])]
    specific = {"chat_only": "chat_specific", "base_only": "base_specific"}
    assert (side.verdict == side.kind.map(specific)).all()
    on_background = side[side.near & (side.kind == "chat_only")]
    assert (on_background.nu_reconstruction >= 0.5).mean() > 0.5  # the plain reading alone convicts
    assert on_background.presence.abs().max() < 0.1


def test_decoupled_concepts_are_still_convicted(background):
    decoupled = background[background.kind == "decoupled"]
    assert len(decoupled) == 2 * 18
    assert (decoupled.verdict == "latent_decoupling").all()


def test_the_table_says_which_probe_judged(background):
    judged = {"chat_only": "chat", "base_only": "base"}
    for label, probe in zip(background.label, background.probe, strict=True):
        assert probe == judged[label] if label in judged else pd.isna(probe)
