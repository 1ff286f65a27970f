"""The swap readout: how two models use every latent."""

import copy
import importlib
import math

import numpy as np
import pandas as pd
import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.analysis.use import strong_firings
from sae_lens_crosscoder.crosscoders.swap_readout import own_latents
from sae_lens_crosscoder.data import TokenGroups
from sae_lens_crosscoder.storage import accumulators
from sae_lens_crosscoder.synthetic import Concept, PlantedWorld
from tests.analysis.conftest import D_SAE, random_activations, random_crosscoder, relu_crosscoder
from tests.reference import use as ref

use_module = importlib.import_module("sae_lens_crosscoder.analysis.use.latent_use")
N, N_MEAN = 700, 300


@pytest.fixture(autouse=True)
def _small_sizes(monkeypatch):
    """Means from a part of the tokens, levels from a part of the firings, as on large data."""
    monkeypatch.setattr(use_module, "MEAN_TOKENS", N_MEAN)
    monkeypatch.setattr(strong_firings, "N_FIRST", 40)


def groups_of(n, names=("a", "b", "c"), seed=5):
    """Labels from -1 (no group) to the last group."""
    labels = torch.randint(-1, len(names), (n, 1), generator=torch.Generator().manual_seed(seed))
    return TokenGroups(labels, names)


def use_of(crosscoder, x, groups=None, batches=None, **options):
    activations = x if batches is None else x.split(batches)
    data = slc.EvalData(activations=activations, groups=groups, max_norm_ratio=None)
    return slc.latent_use(crosscoder, data, **{"min_active": 1} | options)


def assert_same(first, second, **tolerance):
    pd.testing.assert_frame_equal(first.latents, second.latents, **tolerance)
    pd.testing.assert_frame_equal(first.by_group, second.by_group, **tolerance)


def test_every_number_is_that_of_the_definition():
    crosscoder, x = random_crosscoder(scales=(1.0, 2.5)), random_activations(N)
    with torch.no_grad():
        crosscoder.W_dec[:, [2, 5]] = 0  # so that two latents have directions of their own
        crosscoder.W_dec[1] = torch.tensor([0, 0, 0.02, 0, 0, 2.0])  # the chat model's alone
        crosscoder.W_dec[4] = torch.tensor([0, 0.75, 0.66, 0.01, 0, 0])  # the base model's alone
    groups = groups_of(N)
    use = use_of(crosscoder, x, groups, batches=97)
    labels = groups.labels.flatten().tolist()
    tokens = [[row[:3], row[3:]] for row in x.tolist()]
    encoders = [[row[:3] for row in crosscoder.W_enc.T.tolist()], [row[3:] for row in crosscoder.W_enc.T.tolist()]]
    weights = (encoders, crosscoder.b_enc.tolist(), crosscoder.thresholds.tolist())
    means = [ref.mean([token[m] for token in tokens[:N_MEAN]]) for m in (0, 1)]
    in_cell = {g: [i for i in range(N_MEAN) if labels[i] == g] for g in (-1, 0, 1, 2)}
    assert all(len(places) != 100 for places in in_cell.values())
    cell_means = {
        g: [ref.mean([tokens[i][m] for i in places]) if len(places) >= 100 else means[m] for m in (0, 1)]
        for g, places in in_cell.items()
    }
    joint = [ref.code(token, *weights) for token in tokens]
    mean_code = ref.mean(joint[:N_MEAN])
    own = [([4], crosscoder.decoders[0].tolist(), mean_code), ([1], crosscoder.decoders[1].tolist(), mean_code)]
    codes = [[ref.alone(token, m, means, (1.0, 2.5), *weights, own[m]) for token in tokens] for m in (0, 1)]
    strong = ref.strong_codes(codes, 40, 0.8)
    replaced = [
        [ref.without(token, m, cell_means[g], *weights) for token, g in zip(tokens, labels, strict=True)]
        for m in (0, 1)
    ]
    places = {"all": range(N)} | {g: [i for i in range(N) if labels[i] == n] for n, g in enumerate("abc")}
    for j in range(D_SAE):
        row = use.latents.loc[j]
        for place, chosen in places.items():
            expected = ref.columns(strong, j, list(chosen))
            shown = row if place == "all" else use.by_group[use.by_group["group"] == place].loc[j]
            for m, name in enumerate(("base", "chat")):
                assert shown[f"n_strong_{name}"] == expected["n_strong"][m]
                assert shown[f"rate_{name}"] == pytest.approx(expected["rate"][m])
            for name in ("log_use_ratio", "log_rate_ratio"):
                assert shown[name] == pytest.approx(expected[name], nan_ok=True)
        sums = [sum(token[j] for token in codes[m]) for m in (0, 1)]
        assert row.alone == pytest.approx(max(sums) / sum(f[j] for f in joint))
        for m, name in enumerate(("base", "chat")):
            assert row[f"moved_by_{name}"] == pytest.approx(ref.moved(joint, replaced[m], j))
        assert row.n_active == sum(f[j] > 0 for f in joint)


def one_sided_latents(W_dec):
    """Latents that `own_latents` finds for the second of two models of width 2."""
    crosscoder = relu_crosscoder(torch.tensor(W_dec), d_models=(2, 2))
    return own_latents(crosscoder, 1, 0).tolist()


def test_own_latents_are_one_sided_and_of_a_direction_of_their_own():
    shared, of_chat, of_base = [1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]
    assert one_sided_latents([shared, of_chat]) == [1]
    assert one_sided_latents([of_chat, shared, of_chat]) == [0, 2]
    assert one_sided_latents([shared, [0.0, 0.0, 1.0, 0.5]]) == []  # the shared concept, where chat alone uses it
    assert one_sided_latents([of_base, of_chat]) == []  # one concept, in two latents
    assert one_sided_latents([shared, [0.0, 0.0, -1.0, 0.0]]) == []  # the shared concept, taken back in chat
    assert one_sided_latents([shared, [0.0, 0.3, 0.0, 1.0]]) == []  # a weak one is in both


def test_a_concept_of_one_model_does_not_count_as_use_of_another_latent():
    """In base's slot the first latent answers to what only the chat model has; no training could have prevented it."""
    shared, of_chat = [1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]
    W_enc = torch.tensor([[0.5, 0.9, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0]]).T
    crosscoder = relu_crosscoder(torch.tensor([shared, of_chat]), W_enc=W_enc, d_models=(2, 2))
    on = torch.rand(2, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first, second = ((row < 0.3).double() for row in on)
    x = torch.stack([first, torch.zeros(N), first, second], dim=1)
    use = use_of(crosscoder, x)
    assert use.latents.loc[0, "log_use_ratio"] == pytest.approx(0)
    assert use.latents.loc[0, "use"] == "equal"
    assert use.latents.loc[1, "use"] == "more_in_chat"


def exchanged(crosscoder, x):
    """The same with the models' places exchanged."""
    order = torch.tensor([3, 4, 5, 0, 1, 2])
    W_dec, W_enc = crosscoder.W_dec.detach()[:, order], crosscoder.W_enc.detach()[order]
    other = relu_crosscoder(W_dec, crosscoder.b_dec.detach()[order], W_enc, crosscoder.b_enc.detach())
    return other, x[:, order]


def test_exchanging_the_models_negates_the_ratios():
    crosscoder, x = random_crosscoder(), random_activations(N)
    # The order of the two models decides which firings are the first ones; here all of them are.
    few = x[:60]
    use, turned = use_of(crosscoder, few), use_of(*exchanged(crosscoder, few))
    swap = {"base": "chat", "chat": "base"}
    for name, other in swap.items():
        for kind in ("rate", "magnitude", "moved_by", "n_strong"):
            np.testing.assert_allclose(use.latents[f"{kind}_{name}"], turned.latents[f"{kind}_{other}"])
    for name in ("log_use_ratio", "log_rate_ratio", "log_magnitude_ratio"):
        np.testing.assert_allclose(use.latents[name], -turned.latents[name], atol=1e-12)
    np.testing.assert_allclose(use.latents.log_use_ratio_low, -turned.latents.log_use_ratio_high, atol=1e-9)


def test_models_with_equal_activations_use_every_latent_equally():
    crosscoder, half = random_crosscoder(), random_activations(N)[:, :3]
    table = use_of(crosscoder, torch.cat([half, half], dim=1)).latents
    fires = table.n_strong_base > 0
    assert fires.sum() >= 4
    assert (table.log_use_ratio[fires] == 0).all()
    assert (table.log_use_ratio_low[fires] == 0).all()
    assert set(table.use) <= {"equal", "undetermined"}


def test_a_constant_added_to_one_model_changes_nothing():
    crosscoder, x = random_crosscoder(), random_activations(N)
    shift = torch.tensor([0.0, 0.0, 0.0, 30.0, -5.0, 2.0], dtype=torch.float64)
    b_enc = crosscoder.b_enc.detach() - shift @ crosscoder.W_enc.detach()
    moved = relu_crosscoder(crosscoder.W_dec.detach(), None, crosscoder.W_enc.detach(), b_enc)
    assert_same(use_of(crosscoder, x), use_of(moved, x + shift), rtol=1e-6, atol=1e-9)


def test_neither_units_nor_batches_nor_names_of_groups_matter():
    crosscoder, x, groups = random_crosscoder(), random_activations(N), groups_of(N)
    use = use_of(crosscoder, x, groups)
    assert_same(use, use_of(crosscoder, x, groups, batches=53), rtol=1e-9)
    factor = torch.tensor([1.0, 1.0, 1.0, 8.0, 8.0, 8.0], dtype=torch.float64)
    W_dec, W_enc = crosscoder.W_dec.detach() * factor, crosscoder.W_enc.detach() / factor[:, None]
    loud = relu_crosscoder(W_dec, None, W_enc, crosscoder.b_enc.detach(), scales=(1.0, 1 / 8))
    assert_same(use, use_of(loud, x * factor, groups), rtol=1e-6)
    renamed = use_of(crosscoder, x, groups=TokenGroups(groups.labels, ("b", "a", "d")))
    assert renamed.by_group.drop(columns="group").equals(use.by_group.drop(columns="group"))
    given = slc.EvalData(activations=x, max_norm_ratio=None)
    assert slc.latent_use(crosscoder, given, groups=groups, min_active=1).by_group.equals(use.by_group)


def test_a_latent_that_reads_one_model_moves_with_that_model_alone():
    W_dec = torch.cat([torch.zeros(4, 4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)], dim=1)
    x = random_activations(400, d_in=8)
    table = use_of(relu_crosscoder(W_dec, d_models=(4, 4)), x).latents
    assert (table.moved_by_base < 1e-12).all()
    assert (table.moved_by_chat > 0.9).all()


def planted_use(seed=0, n=12_000):
    """Six concepts on orthogonal directions, fired by base with probability q where chat fires, and read exactly."""
    qs = (0.2, 0.4, 0.6, 1.0, 1.0, 1.0)
    concepts = [Concept("less_used" if q < 1 else "shared", 0.03, q=q) for q in qs]
    world = PlantedWorld(concepts, d_models=(12, 12), seed=seed, noise=0.02, magnitude_cv=0.1)
    W_dec = torch.cat([part / 2 for part in world.directions], dim=1).double()
    W_enc = torch.linalg.pinv(W_dec)
    return qs, relu_crosscoder(W_dec, None, W_enc, torch.full((6,), -0.2), d_models=(12, 12)), world.sample(n, seed=1)


def test_the_ratio_is_the_planted_one_and_its_interval_contains_it():
    qs, crosscoder, tokens = planted_use()
    table = use_of(crosscoder, tokens.activations.double(), min_active=100).latents
    fired = (tokens.coefficients > 0).sum(dim=0)
    for j, q in enumerate(qs):
        row = table.loc[j]
        realised = math.log(fired[j, 1] / fired[j, 0])
        assert row.log_rate_ratio == pytest.approx(realised, abs=0.1)
        assert row.log_use_ratio_low - 0.05 <= -math.log(q) <= row.log_use_ratio_high + 0.05
        assert row.use == ("more_in_chat" if q < 1 else "equal")
    assert "3 of 6 judged latents are used differently" in use_of(crosscoder, tokens.activations.double()).conclusion


def test_latents_that_answer_to_the_difference_or_turned_too_far_are_not_judged():
    u = torch.eye(4, dtype=torch.float64)
    turned = torch.cat([u[1], 0.5 * u[1] + 0.866 * u[2]])
    difference, shared = torch.cat([0 * u[0], u[0]]), torch.cat([u[3], u[3]]) / 2
    W_enc = torch.stack([torch.cat([-u[0], u[0]]), turned / 2, shared], dim=1)
    x = random_activations(3000, d_in=8)
    table = use_of(relu_crosscoder(torch.stack([difference, turned, shared]), None, W_enc, d_models=(4, 4)), x).latents
    assert table.alone[0] < 0.25
    assert table.readable.tolist() == [False, False, True]
    assert table.use.tolist()[:2] == ["undetermined", "undetermined"]


def test_null_runs_give_q_values_and_take_back_verdicts():
    _, crosscoder, tokens = planted_use()
    x = tokens.activations.double()
    use = use_of(crosscoder, x)
    nothing = use_of(crosscoder, torch.cat([x[:, 12:], x[:, 12:] + 0.01 * random_activations(len(x), d_in=12)], dim=1))
    assert use.latents.q_use.isna().all()
    against_nothing = use_of(crosscoder, x, null=[nothing] * 20)
    assert (against_nothing.latents.q_use[:3] < 0.1).all()
    assert (against_nothing.latents.q_use[3:] > 0.1).all()
    assert "q < 0.1 against 20 null runs" in str(against_nothing)
    against_itself = use_of(crosscoder, x, null=use)
    assert (against_itself.latents.q_use > 0.1).all()
    assert not against_itself.latents.use.str.startswith("more_in").any()
    assert "no difference in use detected" in against_itself.conclusion


def test_of_several_kinds_of_null_runs_the_largest_q_of_use_counts():
    _, crosscoder, tokens = planted_use()
    x = tokens.activations.double()
    wild, mild = (null_use(crosscoder, x, kind, noise) for kind, noise in (("wild", 0.5), ("mild", 0.01)))
    nulls = [wild] * 3 + [mild] * 20
    of_each = [use_of(crosscoder, x, null=part).latents.q_use for part in (nulls[:3], nulls[3:])]
    read = use_of(crosscoder, x, null=nulls)
    assert read.latents.q_use.to_numpy() == pytest.approx(np.max(of_each, axis=0), nan_ok=True)
    assert not of_each[0].equals(of_each[1])
    assert "q < 0.1 against 23 null runs of 2 kinds" in str(read)
    assert read.manifest["null_kinds"] == ["wild", "mild"]


def null_use(crosscoder, x, kind, noise):
    """The use of the same latents where both halves are the chat model's activation, one with noise."""
    own = copy.deepcopy(crosscoder)
    own.cfg.metadata.null_kind = kind
    noisy = x[:, 12:] + noise * random_activations(len(x), d_in=12)
    return use_of(own, torch.cat([x[:, 12:], noisy], dim=1))


def test_a_diagnosis_takes_over_the_use_of_its_latents():
    _, crosscoder, tokens = planted_use()
    data = slc.EvalData(activations=tokens.activations.double(), max_norm_ratio=None)
    use = slc.latent_use(crosscoder, data)
    diagnosis = slc.diagnose(crosscoder, data, use=use)
    pd.testing.assert_frame_equal(diagnosis.latents[[*use.columns]], use.latents[[*use.columns]])
    assert use.conclusion in diagnosis.conclusion
    assert not diagnosis.conclusion.startswith("no difference detected")
    with pytest.raises(ValueError, match="`use` belongs to another crosscoder"):
        slc.diagnose(planted_use(seed=1)[1], data, use=use)


def test_a_result_is_saved_and_loaded(tmp_path):
    use = use_of(random_crosscoder(), random_activations(N), groups_of(N))
    assert use.save(tmp_path) == tmp_path
    loaded = slc.analysis.LatentUse.load(tmp_path)
    assert_same(loaded, use)
    assert loaded.manifest == use.manifest
    (tmp_path / "latent_use.parquet").unlink()
    with pytest.raises(ValueError, match=r"has no latent_use\.parquet"):
        slc.analysis.LatentUse.load(tmp_path)


def test_an_interrupted_readout_gives_the_unbroken_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(accumulators, "_SECONDS_BETWEEN_SAVES", 0.0)
    crosscoder, groups, path = random_crosscoder(), groups_of(N), tmp_path / "sums"
    batches = random_activations(N).split(130)

    def broken():
        yield from batches[:4]
        raise KeyboardInterrupt

    def read(activations, **options):
        data = slc.EvalData(activations=activations, groups=groups, max_norm_ratio=None)
        return slc.latent_use(crosscoder, data, min_active=1, **options)

    with pytest.raises(KeyboardInterrupt):
        read(broken(), checkpoint_path=path)
    assert path.exists()
    assert_same(read(batches, checkpoint_path=path), read(batches), check_exact=True)
    assert not path.exists()


@pytest.mark.parametrize("n_models", [2, 3, 4])
def test_all_models_beside_the_first_are_read_at_once_as_one_by_one(n_models):
    crosscoder, x = random_crosscoder(d_models=(3,) * n_models), random_activations(N, d_in=3 * n_models)
    groups = groups_of(N)
    data = slc.EvalData(activations=x.split(97), groups=groups, max_norm_ratio=None)
    uses = slc.analysis.latent_uses(crosscoder, data, min_active=1)
    first, *others = crosscoder.layout.names
    assert list(uses) == others
    for name in others:
        one = use_of(crosscoder, x, groups, batches=97, models=(first, name))
        assert_same(uses[name], one, check_exact=True)
        assert uses[name].manifest == one.manifest
        assert uses[name].conclusion == one.conclusion


def test_what_cannot_be_compared_is_refused():
    x = random_activations(N)
    with pytest.raises(ValueError, match="needs models of equal width"):
        use_of(random_crosscoder(d_models=(2, 4)), x)
    three = random_crosscoder(d_models=(2, 2, 2))
    with pytest.raises(ValueError, match=r"latent_use compares two models, but this crosscoder reads 3.*Choose two"):
        use_of(three, x)
    assert use_of(three, x, models=("model_0", "model_2")).names == ("model_0", "model_2")
    with pytest.raises(ValueError, match=r"models=\['base', 'model'\] must name two sources"):
        use_of(random_crosscoder(), x, models=("base", "model"))
    with pytest.raises(ValueError, match="Got 3 labels of groups for 700 tokens"):
        use_of(random_crosscoder(), x, groups_of(3))
    with pytest.raises(ValueError, match="No tokens to read"):
        use_of(random_crosscoder(), x[:0])
    null = use_of(random_crosscoder(), x)
    null.manifest["training"] = {"k": 3}
    with pytest.raises(ValueError, match=r"trained with other settings than the crosscoder: \['k'\]"):
        use_of(random_crosscoder(), x, null=null)


def test_without_judged_latents_the_conclusion_is_undecided():
    use = use_of(random_crosscoder(), random_activations(N), min_active=10_000)
    assert use.conclusion.startswith("undecided: the use of no latent could be judged on 700 tokens")
