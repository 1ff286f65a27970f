"""Laws of the baselines: those of references in loops, planted directions found, dominant tokens without a say."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.analysis import DifferenceDirections, DifferenceRows, difference_pca, mean_difference
from sae_lens_crosscoder.data.token_groups import TokenGroups
from sae_lens_crosscoder.workflows import train_difference_sae
from tests.models.small_models import random_hooked_transformer, some_tokens
from tests.reference import baselines as reference

NAMES = ("user", "assistant")


def random_rows(n=40, d_model=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    difference = torch.randn(n, d_model, generator=generator) + torch.arange(d_model)
    return DifferenceRows(difference=difference, labels=torch.arange(n) % 3 - 1, names=NAMES)


def planted_rows(n=4000, d_model=24, n_directions=8, seed=0):
    """Each token has some of a few orthogonal directions, so that a sparse dictionary of them is unique."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(d_model, d_model, generator=generator)).Q[:n_directions]
    is_on = torch.rand(n, n_directions, generator=generator) < 0.15
    strengths = 3 + torch.rand(n, n_directions, generator=generator)
    return DifferenceRows(difference=(is_on * strengths) @ directions), directions


def close(values, expected):
    return torch.as_tensor(values).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("against", [None, "assistant"])
def test_mean_differences_are_the_references(against):
    rows = random_rows()
    found = mean_difference(rows, against=against)
    table = {name: rows.difference[rows.labels == i].tolist() for i, name in enumerate(NAMES)}
    if against is None:
        bias, expected = [0.0] * 5, {name: reference.mean(group) for name, group in table.items()}
    else:
        bias = reference.mean(table["assistant"])
        expected = {"user - assistant": reference.minus(reference.mean(table["user"]), bias)}
    assert found.names == tuple(expected)
    assert close(found.bias, bias)
    acts = found.activations(rows.difference)
    for j, direction in enumerate(expected.values()):
        assert close(found.directions[j], direction)
        coordinates = [reference.coordinate(row, direction, bias) for row in rows.difference.tolist()]
        assert close(acts[:, j], coordinates)
        explained = reference.explained(rows.difference.tolist(), coordinates, direction, bias)
        assert found.explained[j].item() == pytest.approx(explained, abs=1e-5)
    assert found.table.explained.tolist() == found.explained.tolist()
    assert found.explained.max() <= found.explained_together + 1e-6


def test_the_mean_difference_is_all_of_its_own_contrast():
    rows = random_rows()
    positive, negative = rows.group("user"), rows.group("assistant")
    found = mean_difference(rows, against="assistant")
    assert found.contrast_shares(positive, negative).tolist() == pytest.approx([1.0])
    assert found.activations(positive).mean().item() == pytest.approx(1.0, abs=1e-5)
    assert found.activations(negative).mean().item() == pytest.approx(0.0, abs=1e-5)


def test_shares_of_a_contrast_are_the_references():
    rows = random_rows()
    positive, negative = rows.group("user"), rows.group("assistant")
    found = difference_pca(rows, 5)
    bias = found.bias.tolist()
    expected = [
        reference.contrast_share(
            positive.tolist(), negative.tolist(), lambda row, d=d: reference.coordinate(row, d, bias), d
        )
        for d in found.directions.tolist()
    ]
    assert close(found.contrast_shares(positive, negative), expected)
    assert sum(expected) == pytest.approx(1, abs=1e-5)  # components of a whole basis


def test_without_groups_the_direction_is_the_mean_over_all_rows():
    rows = DifferenceRows(difference=random_rows().difference)
    found = mean_difference(rows)
    assert found.names == ("all",)
    assert torch.allclose(found.directions[0], rows.difference.mean(dim=0))


def test_components_are_those_of_the_singular_value_decomposition():
    rows = random_rows()
    found = difference_pca(rows, 3)
    centred = (rows.difference - rows.difference.mean(dim=0)).double().numpy()
    _, values, vectors = np.linalg.svd(centred, full_matrices=False)
    cosines = np.abs(np.sum(vectors[:3] * found.directions.double().numpy(), axis=1))
    assert cosines == pytest.approx(1, abs=1e-6)
    assert found.explained.tolist() == pytest.approx((values[:3] ** 2 / (values**2).sum()).tolist(), rel=1e-5)
    assert found.explained_together == pytest.approx(found.explained.sum().item())
    assert (found.activations(rows.difference).pow(3).sum(dim=0) >= 0).all()
    assert difference_pca(rows, 99).names[-1] == "component 5"  # no more than the width


def test_a_planted_direction_is_the_first_component_whatever_a_few_huge_tokens_do():
    generator = torch.Generator().manual_seed(0)
    planted = torch.zeros(8)
    planted[3] = 1.0
    base = torch.randn(500, 8, generator=generator)
    chat = base + 2 * torch.randn(500, 1, generator=generator) * planted
    sinks = torch.zeros(500, dtype=torch.bool)
    sinks[::50] = True
    base[sinks] *= 200
    chat[sinks] = base[sinks] + 500 * torch.eye(8)[0]
    data = slc.EvalData(activations=torch.cat([base, chat], dim=-1))
    rows = slc.analysis.difference_rows(data)
    assert len(rows.difference) == 490
    first = difference_pca(rows, 1)
    assert abs(first.directions[0, 3]) > 0.99
    assert first.explained[0] > 0.9
    with_sinks = difference_pca(slc.analysis.difference_rows(data, max_norm_ratio=None), 1)
    assert abs(with_sinks.directions[0, 3]) < 0.1


def test_rows_are_chat_minus_base_of_the_masked_tokens_with_their_groups():
    pair = slc.HookedModelPair(*[random_hooked_transformer(16, seed=seed) for seed in (1, 2)])
    tokens, hook = some_tokens(3, 6), "blocks.0.hook_resid_post"
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[1, 4:] = False
    labels = torch.arange(tokens.numel()).reshape(tokens.shape) % 2
    data = slc.EvalData(pair=pair, tokens=tokens, token_mask=mask, groups=TokenGroups(labels, NAMES), batch_size=2)
    rows = slc.analysis.difference_rows(data, hook, max_norm_ratio=None)
    base, chat = (model.run_with_cache(tokens)[1][hook] for model in (pair.base, pair.chat))
    assert torch.allclose(rows.difference, (chat - base)[mask], atol=1e-6)
    assert torch.equal(rows.labels, labels[mask])
    assert len(slc.analysis.difference_rows(data, hook, max_norm_ratio=None, max_tokens=5).difference) == 5
    with pytest.raises(ValueError, match="hook_name is missing"):
        slc.analysis.difference_rows(data)


def test_an_sae_finds_planted_directions_and_its_activations_are_the_references():
    rows, planted = planted_rows()
    found = train_difference_sae(rows, d_sae=16, k=1.2, n_steps=300, batch_size=128, lr=5e-3)
    cosines = torch.nn.functional.normalize(found.directions, dim=-1) @ planted.T
    assert cosines.max(dim=0).values.min() > 0.95
    assert found.explained_together > 0.9
    acts = found.activations(rows.difference[:30])
    assert 0 < (acts > 0).float().mean() < 0.5
    for i, row in enumerate(rows.difference[:30].tolist()):
        for j in range(16):
            columns = found.encoder[:, j].tolist(), found.encoder_bias[j].item(), found.bias.tolist()
            assert acts[i, j].item() == pytest.approx(
                reference.latent(row, *columns, found.threshold[j].item()), abs=1e-3
            )
    one = int(found.explained.argmax())
    expected = reference.explained(
        rows.difference.tolist(),
        found.activations(rows.difference)[:, one].tolist(),
        found.directions[one].tolist(),
        found.bias.tolist(),
    )
    assert found.explained[one].item() == pytest.approx(expected, abs=1e-4)


def test_an_sae_learns_the_rows_that_differ_most():
    """They are what fine-tuning changed, and not tokens that dominate: those were left out by the models' own norms."""
    rows, planted = planted_rows()
    is_rare = torch.arange(len(rows.difference)) % 50 == 0
    direction = torch.linalg.qr(planted.T, mode="complete").Q[:, -1]
    rows = replace(rows, difference=rows.difference + 300 * is_rare[:, None] * direction)
    found = train_difference_sae(rows, d_sae=16, k=1.2, n_steps=300, batch_size=128, lr=5e-3)
    assert found.explained_together > 0.9  # the rare rows hold most of the energy


def test_a_saved_result_is_loaded_as_it_was(tmp_path):
    rows, _ = planted_rows(n=300)
    for result in (mean_difference(rows), train_difference_sae(rows, d_sae=8, k=2, n_steps=20, batch_size=32)):
        loaded = DifferenceDirections.load(result.save(tmp_path / result.kind))
        assert (loaded.kind, loaded.names, loaded.n_tokens) == (result.kind, result.names, result.n_tokens)
        assert loaded.explained_together == pytest.approx(result.explained_together)
        assert torch.equal(loaded.activations(rows.difference), result.activations(rows.difference))
        assert (loaded.threshold is None) == (result.threshold is None)


def test_what_has_no_direction_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match="identical on all tokens"):
        mean_difference(DifferenceRows(difference=torch.zeros(3, 2)))
    with pytest.raises(ValueError, match="identical on all tokens"):
        difference_pca(DifferenceRows(difference=torch.zeros(3, 2)))
    with pytest.raises(ValueError, match="No group 'tool'"):
        mean_difference(random_rows(), against="tool")
    with pytest.raises(ValueError, match="at least 1 component"):
        difference_pca(random_rows(), 0)
    pair = slc.HookedModelPair(*[random_hooked_transformer(width, seed=1) for width in (16, 32)])
    data = slc.EvalData(pair=pair, tokens=some_tokens())
    with pytest.raises(ValueError, match="widths are"):
        slc.analysis.difference_rows(data, "blocks.0.hook_resid_post")
    with pytest.raises(ValueError, match="one label for each of 3 rows"):
        DifferenceRows(difference=torch.ones(3, 2), labels=torch.zeros(2, dtype=torch.long), names=("a",))
