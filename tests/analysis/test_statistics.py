"""Statistics are what counting token by token gives, whatever the order and the cut."""

import math
from itertools import permutations

import pandas as pd
import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.analysis import inputs
from sae_lens_crosscoder.models.tiny import TINY_HOOK, dialogues
from tests.analysis.conftest import D_SAE, random_activations, random_crosscoder, relu_crosscoder, scaling_of
from tests.reference import statistics as ref
from tests.reference.variance import variance_explained, variance_explained_of_difference

NAMES = ("bos", "template a", "template b", "user", "assistant")
N_ROWS, N_POS = 12, 20


def labelled_world():
    """Tokens of 12 contexts, 8 of them chats, with groups, of which one never occurs, and some left out."""
    x = random_activations(N_ROWS * N_POS)
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(-1, 4, (N_ROWS, N_POS), generator=generator)
    sources = ["web", "chat", "chat"] * 4
    web = torch.tensor([source == "web" for source in sources])
    labels[web] = labels[web].clamp(max=0) * -3  # BOS and words alone, for -1 becomes 3
    labels[0, 0] = -1
    crosscoder = random_crosscoder()
    with torch.no_grad():
        crosscoder.b_enc[2] = -1e6
    return crosscoder, x, slc.data.TokenGroups(labels, NAMES), sources


def check(statistics, crosscoder, x, groups, sources):
    """Every column and number against the loops."""
    table = statistics.table
    group_of = [None if label < 0 else groups.names[label] for label in groups.labels.flatten().tolist()]
    source_of = [source for source in sources for _ in range(groups.labels.shape[1])]
    f = crosscoder.encode(x).T.tolist()
    for name in ("all", *set(sources), *groups.names):
        place = [g is not None and name in ("all", g, s) for g, s in zip(group_of, source_of, strict=True)]
        for j in range(len(f)):
            expected = ref.statistics([score for score, here in zip(f[j], place, strict=True) if here])
            found = {column: table[f"{column}_{name}"][j] for column in expected}
            assert found == pytest.approx(expected, rel=1e-9, nan_ok=True), (name, j)
        assert statistics.n_tokens[name] == sum(place)
    expected = [ref.frac_template(scores, group_of, source_of) for scores in f]
    assert table.frac_template.tolist() == pytest.approx(expected, nan_ok=True)
    kept = torch.tensor([group is not None for group in group_of])
    h, h_hat = x[kept], crosscoder.decode(crosscoder.encode(x))[kept]
    d = x.shape[1] // 2
    cuts = {"base": slice(0, d), "chat": slice(d, None), "pooled": slice(None)}
    fve = {name: variance_explained(h[:, cut].tolist(), h_hat[:, cut].tolist()) for name, cut in cuts.items()}
    fve["difference"] = variance_explained_of_difference(h.tolist(), h_hat.tolist(), d)
    assert statistics.fve == pytest.approx(fve)
    assert statistics.l0["all"] == pytest.approx((crosscoder.encode(h) > 0).sum().item() / len(h))


@pytest.mark.parametrize("cut", [1, 7, 240])
def test_every_column_is_counted_token_by_token(cut):
    crosscoder, x, groups, sources = labelled_world()
    statistics = slc.analysis.latent_statistics(
        crosscoder, slc.EvalData(activations=x.split(cut), groups=groups, sources=sources)
    )
    check(statistics, crosscoder, x, groups, sources)
    table = statistics.table
    assert table.dead_all.tolist() == [j == 2 for j in range(D_SAE)]
    assert table.frequency_assistant.isna().all()
    assert math.isnan(statistics.l0["assistant"])
    assert 0 < table.frac_template[0] < 1


def test_the_order_of_contexts_changes_nothing():
    crosscoder, x, groups, sources = labelled_world()
    expected = slc.analysis.latent_statistics(crosscoder, slc.EvalData(activations=x, groups=groups, sources=sources))
    order = torch.randperm(N_ROWS, generator=torch.Generator().manual_seed(0))
    shuffled = slc.data.TokenGroups(groups.labels[order], NAMES)
    rows = x.view(N_ROWS, N_POS, -1)[order].flatten(0, 1)
    found = slc.analysis.latent_statistics(
        crosscoder,
        slc.EvalData(activations=rows.split(33), groups=shuffled, sources=[sources[i] for i in order.tolist()]),
    )
    pd.testing.assert_frame_equal(found.table, expected.table, rtol=1e-12)
    for part in ("base", "chat", "pooled"):
        assert found.fve[part] == pytest.approx(expected.fve[part], rel=1e-10)


def one_latent(acts):
    """A crosscoder of one latent that fires as strongly as the base model's activation, and these activations."""
    x = torch.tensor(acts, dtype=torch.float64)[:, None].repeat(1, 2)
    return relu_crosscoder([[1.0, 0.0]], d_models=(1, 1)), x


@pytest.mark.parametrize("order", permutations(range(3)))
def test_frac_template_by_hand(order):
    """A chat with BOS, 2 of 3 template tokens and 3 of 3 words on; web text, all on, must not count."""
    names = tuple(("bos", "template", "user")[i] for i in order)
    index = {name: i for i, name in enumerate(names)}
    chat = [index[name] for name in ("bos", "template", "template", "template", "user", "user", "user")]
    groups = slc.data.TokenGroups(torch.tensor([chat, [index["bos"], *[index["user"]] * 6]]), names)
    crosscoder, x = one_latent([5, 1, 0, 2, 3, 4, 1, *[9] * 7])
    table = slc.analysis.latent_statistics(
        crosscoder, slc.EvalData(activations=x, groups=groups, sources=["chat", "web"])
    ).table
    assert table.frac_template.tolist() == [2 / 5]
    assert slc.analysis.latent_statistics(
        crosscoder, slc.EvalData(activations=x, groups=groups)
    ).table.frac_template.tolist() == [2 / 11]
    dropped = groups.drop_first_n(2)
    statistics = slc.analysis.latent_statistics(
        crosscoder, slc.EvalData(activations=x, groups=dropped, sources=["chat", "web"])
    )
    assert statistics.table.frac_template.tolist() == [1 / 4]
    assert (statistics.table.n_active_all[0], statistics.n_tokens["all"]) == (9, 10)


def test_without_labels_everything_is_in_one_place():
    crosscoder, x = random_crosscoder(), random_activations(5000)
    statistics = slc.analysis.latent_statistics(crosscoder, slc.EvalData(activations=x))
    diagnosis = slc.diagnose(crosscoder, slc.EvalData(activations=x))
    table, diagnosed = statistics.table, diagnosis.latents
    assert all(name.endswith("_all") for name in table)
    for ours, theirs in (
        ("frequency", "frequency"),
        ("max_score", "max_activation"),
        ("mean_score", "mean_activation"),
    ):
        assert table[f"{ours}_all"].tolist() == pytest.approx(diagnosed[theirs].tolist())
    assert statistics.fve == diagnosis.manifest["fve"]
    assert statistics.l0["all"] == diagnosis.manifest["l0"]
    n_columns = len(diagnosed.columns)
    diagnosed[table.columns] = table.sample(frac=1, random_state=0)
    assert len(diagnosed.columns) == n_columns + len(table.columns)
    assert diagnosed.n_active_all.tolist() == diagnosed.n_active.tolist()
    by_token = slc.analysis.latent_statistics(crosscoder, slc.EvalData(activations=x, sources=["a", "b"] * 2500))
    assert by_token.n_tokens == {"all": 5000, "a": 2500, "b": 2500}
    by_token = by_token.table
    pd.testing.assert_series_equal(by_token.n_active_a + by_token.n_active_b, by_token.n_active_all, check_names=False)


@pytest.fixture(scope="module")
def tiny_chats():
    pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
    chats = [slc.data.chat_tokens(pair.tokenizer, messages) for messages in dialogues(8, seed=0)]
    W_dec = torch.randn(24, 192, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    crosscoder = relu_crosscoder(W_dec, b_enc=torch.full((24,), -20.0), d_models=(96, 96))
    crosscoder.cfg.metadata.hook_name = TINY_HOOK
    return pair, chats, crosscoder


@pytest.mark.parametrize("by", ["role", "place"])
def test_the_built_in_pairs_conversations(by, tiny_chats):
    pair, chats, crosscoder = tiny_chats
    tokens = torch.nn.utils.rnn.pad_sequence([chat.input_ids for chat in chats], batch_first=True)
    groups = slc.data.token_groups(chats, pair.tokenizer, by)
    found = slc.analysis.latent_statistics(
        crosscoder, slc.EvalData(pair=pair, tokens=tokens, groups=groups, sources=["chat"] * 8, batch_size=3)
    )
    x = pair.activations(tokens, TINY_HOOK).flatten(0, 1).double()
    check(found, crosscoder, x, groups, ["chat"] * 8)
    assert 0 < found.l0["all"] < 24
    assert found.n_tokens["all"] == sum(len(chat.input_ids) for chat in chats)


def test_nu_of_a_group_is_the_nu_of_its_tokens():
    crosscoder, x, groups, _ = labelled_world()
    for significant in (False, True):
        table = slc.analysis.nu_by_group(
            crosscoder, slc.EvalData(activations=x.split(50), groups=groups), significant=significant
        )
        for label, name in enumerate(NAMES):
            scaling = scaling_of(crosscoder, x[groups.labels.flatten() == label], batch=240)
            for target in ("error", "reconstruction"):
                expected = scaling.nu(target, significant=significant)
                assert table[f"nu_{target}_{name}"].tolist() == pytest.approx(expected.tolist(), nan_ok=True)
    whole = slc.data.TokenGroups(torch.zeros(N_ROWS, N_POS, dtype=torch.long), ("everything",))
    diagnosed = slc.diagnose(crosscoder, slc.EvalData(activations=x)).latents.nu_error_unfiltered
    found = slc.analysis.nu_by_group(
        crosscoder, slc.EvalData(activations=x, groups=whole), significant=False
    ).nu_error_everything
    pd.testing.assert_series_equal(found, diagnosed, check_names=False)


def test_correlations_are_those_of_the_columns_and_their_ranks():
    draws = torch.randint(0, 9, (3, 20), generator=torch.Generator().manual_seed(2)).double()
    table = pd.DataFrame({"nu_error": draws[0], "frequency": draws[1], "delta_norm": draws[2]})
    table.loc[4, "nu_error"] = float("nan")
    found = slc.analysis.correlations(table, ["nu_error"])
    known = table.drop(index=4)
    for other in ("frequency", "delta_norm"):
        row, x, y = found.loc[("nu_error", other)], known.nu_error.tolist(), known[other].tolist()
        assert row.n_latents == 19
        assert row.pearson == pytest.approx(ref.pearson(x, y))
        assert row.spearman == pytest.approx(ref.pearson(ref.ranks(x), ref.ranks(y)))
        assert row.spearman != pytest.approx(row.pearson)


def test_p_values_are_the_share_of_shuffled_columns_that_correlate_as_much():
    x = torch.randn(2, 30, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    x[1] += 0.3 * x[0]
    row = slc.analysis.correlations(
        pd.DataFrame({"nu_error": x[0], "frequency": x[1]}), ["nu_error"], ["frequency"]
    ).iloc[0]
    generator = torch.Generator().manual_seed(0)
    shuffled = torch.stack([x[1][torch.randperm(30, generator=generator)] for _ in range(4000)])
    for column, mine, others in (
        ("pearson", x[0], shuffled),
        ("spearman", x[0].argsort().argsort().double(), shuffled.argsort().argsort().double()),
    ):
        chance = torch.corrcoef(torch.cat([mine[None], others]))[0, 1:]
        expected = (chance.abs() >= abs(row[column])).double().mean().item()
        assert row[f"{column}_p"] == pytest.approx(expected, abs=0.02)
        assert 0.01 < expected < 0.9


def test_correlations_without_spread_or_latents_are_undefined():
    table = pd.DataFrame({"nu_error": [1.0, 2.0, 3.0], "frequency": [1.0] * 3, "delta_norm": [1.0, 2.0, float("nan")]})
    found = slc.analysis.correlations(table, ["nu_error"])
    assert found.n_latents.tolist() == [3, 2]
    assert found.drop(columns="n_latents").isna().all(axis=None)
    with pytest.raises(ValueError, match="has no column nu_reconstruction"):
        slc.analysis.correlations(table)


def test_sources_of_rows_are_sources_of_their_tokens():
    crosscoder, x, groups, sources = labelled_world()
    names = ("chat", "web")
    per_token = torch.tensor([names.index(source) for source in sources])[:, None].expand(N_ROWS, N_POS).clone()
    by_token = slc.data.TokenGroups(per_token, names)
    expected = slc.analysis.latent_statistics(crosscoder, slc.EvalData(activations=x, groups=groups, sources=sources))
    found = slc.analysis.latent_statistics(crosscoder, slc.EvalData(activations=x, groups=groups, sources=by_token))
    pd.testing.assert_frame_equal(found.table, expected.table)
    # A token without a source is left out like one without a group.
    per_token[groups.labels == 0] = -1
    left_out = slc.analysis.latent_statistics(
        crosscoder, slc.EvalData(activations=x, groups=groups, sources=slc.data.TokenGroups(per_token, names))
    )
    assert left_out.n_tokens["bos"] == 0 < expected.n_tokens["bos"]
    assert left_out.table.n_active_user.equals(expected.table.n_active_user)


def test_labels_that_do_not_fit_are_refused_by_name(monkeypatch):
    crosscoder, x, groups, sources = labelled_world()
    crosscoder.cfg.metadata.hook_name = TINY_HOOK
    tokens = torch.zeros(N_ROWS, N_POS + 1, dtype=torch.long)
    pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-null")
    monkeypatch.setattr(inputs, "validate_pair", lambda crosscoder, pair: TINY_HOOK)  # whose widths are others
    with pytest.raises(ValueError, match=r"Shapes do not match: tokens \(12, 21\) and the groups' labels \(12, 20\)"):
        slc.analysis.latent_statistics(crosscoder, slc.EvalData(pair=pair, tokens=tokens, groups=groups))
    with pytest.raises(ValueError, match="Got 3 sources for 12 rows"):
        slc.analysis.latent_statistics(crosscoder, slc.EvalData(activations=x, groups=groups, sources=sources[:3]))
    with pytest.raises(ValueError, match="Got 240 labels for 239 tokens"):
        slc.analysis.latent_statistics(crosscoder, slc.EvalData(activations=x[1:], groups=groups))
    with pytest.raises(ValueError, match="Got 240 labels for 239 tokens"):
        slc.analysis.latent_statistics(crosscoder, slc.EvalData(activations=[x[1:]], groups=groups))
    with pytest.raises(ValueError, match="Got 240 labels for more tokens"):
        slc.analysis.latent_statistics(crosscoder, slc.EvalData(activations=[x, x], groups=groups))
    with pytest.raises(ValueError, match=r"\['user'\] name both a group and a source"):
        slc.analysis.latent_statistics(
            crosscoder, slc.EvalData(activations=x, groups=groups, sources=["user"] * N_ROWS)
        )
    with pytest.raises(ValueError, match="or its mask or groups leave out every token"):
        slc.analysis.latent_statistics(crosscoder, slc.EvalData(activations=x, groups=groups.drop_first_n(N_POS)))
    with pytest.raises(ValueError, match="nu_by_group needs the group of each token"):
        slc.analysis.nu_by_group(crosscoder, slc.EvalData(activations=x))
