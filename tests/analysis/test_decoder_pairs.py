"""Which decoders are pairs: the brute-force graph, hand-made graphs, and what cannot be in any pair."""

import pandas as pd
import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.analysis.decoupling import decoder_pairs
from sae_lens_crosscoder.analysis.diagnosis.classes import label
from tests.analysis.conftest import random_crosscoder, relu_crosscoder
from tests.reference import decoupling as ref


def table_of(crosscoder, dead=()):
    labels = [label(delta) for delta in slc.delta_norm(crosscoder.decoder_norms).tolist()]
    return pd.DataFrame({"label": labels, "dead": [j in dead for j in range(len(labels))]})


def unit(degrees):
    angle = torch.tensor(float(degrees)).deg2rad()
    return torch.stack([angle.cos(), angle.sin(), torch.tensor(0.0)]).double()


def built(*latents):
    """A crosscoder of latents (kind, degrees), each writing one direction of a plane."""
    lengths = {"chat": (0.01, 1.0), "base": (1.0, 0.01), "shared": (1.0, 1.0)}
    rows = [torch.cat([length * unit(degrees) for length in lengths[kind]]) for kind, degrees in latents]
    return relu_crosscoder(torch.stack(rows))


def pairs_of(crosscoder, dead=(), **options):
    found = slc.analysis.decoupled_pairs(crosscoder, table_of(crosscoder, dead), **options)
    raw = list(zip(found.chat_latent, found.base_latent, strict=True))
    return raw, [pair for pair, alone in zip(raw, found.isolated, strict=True) if alone]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("min_cosine", [0.5, 0.9])
@pytest.mark.parametrize("max_cosines", [1, 100, 2**24])
def test_pairs_are_those_of_the_brute_force_graph_however_it_is_cut(seed, min_cosine, max_cosines, monkeypatch):
    monkeypatch.setattr(decoder_pairs, "_MAX_COSINES", max_cosines)
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([[0.01, 1.0], [1.0, 0.01], [1.0, 1.0], [0.5, 1.0]], dtype=torch.float64)
    kinds = lengths[torch.tensor([0] * 9 + [1] * 9 + [2] * 4 + [3] * 2)]
    directions = torch.randn(24, 2, 3, generator=generator, dtype=torch.float64)
    directions = torch.nn.functional.normalize(directions, dim=-1) * kinds[..., None]
    crosscoder, dead = relu_crosscoder(directions.flatten(1)), (0, 11, 20)
    naive = (directions.tolist(), list(table_of(crosscoder).label), [j in dead for j in range(24)], min_cosine)
    raw, isolated = pairs_of(crosscoder, dead, min_cosine=min_cosine)
    assert sorted(raw) == ref.raw_pairs(*naive)
    assert sorted(isolated) == ref.isolated_pairs(*naive)
    assert raw or min_cosine == 0.9


@pytest.mark.parametrize(
    ("others", "isolated"),
    [
        ((), True),
        ((("shared", 60),), True),
        ((("shared", 10),), False),
        ((("chat", -10),), False),
        ((("chat", 30),), False),  # close to the base-only latent alone
        ((("base", -20),), False),
        ((("chat", 90), ("chat", 91)), True),  # a component of its own
    ],
)
def test_a_pair_is_isolated_unless_another_decoder_is_close_to_either(others, isolated):
    raw, alone = pairs_of(built(("chat", 0), ("base", 10), *others))
    assert (0, 1) in raw
    assert ((0, 1) in alone) == isolated


def test_a_one_sided_latent_has_no_direction_in_the_model_it_is_not_about():
    """The chat decoder of a base-only latent is as good as noise, wherever it points."""
    crosscoder = built(("chat", 0), ("base", 10), ("base", 90))
    with torch.no_grad():
        crosscoder.W_dec[2] = torch.cat([unit(90), 0.01 * unit(0)])
    assert pairs_of(crosscoder) == ([(0, 1)], [(0, 1)])


def test_dead_latents_are_in_no_pair_and_part_none():
    latents = (("chat", 0), ("base", 10), ("shared", 5))
    assert pairs_of(built(*latents))[1] == []
    assert pairs_of(built(*latents), dead=[2])[1] == [(0, 1)]
    assert pairs_of(built(*latents), dead=[0]) == ([], [])
    assert pairs_of(built(*latents), dead=[1]) == ([], [])


def test_the_cosine_is_reported_and_must_exceed_the_threshold():
    crosscoder = built(("chat", 0), ("base", 10))
    cosine = slc.analysis.decoupled_pairs(crosscoder, table_of(crosscoder)).cosine[0]
    assert cosine == pytest.approx(unit(10)[0].item())
    assert pairs_of(crosscoder, min_cosine=cosine - 1e-6)[0] == [(0, 1)]
    assert pairs_of(crosscoder, min_cosine=cosine + 1e-6)[0] == []


def test_scales_of_the_models_move_no_cosine():
    plain = built(("chat", 0), ("base", 10))
    scaled = relu_crosscoder(plain.W_dec.detach(), scales=(0.5, 4.0))
    expected = slc.analysis.decoupled_pairs(plain, table_of(plain))
    pd.testing.assert_frame_equal(slc.analysis.decoupled_pairs(scaled, table_of(plain)), expected)


def test_without_one_sided_latents_there_are_no_pairs():
    found = slc.analysis.decoupled_pairs(built(("shared", 0)), table_of(built(("shared", 0))))
    assert len(found) == 0
    assert list(found.columns) == ["chat_latent", "base_latent", "cosine", "isolated"]


def test_what_cannot_be_paired_is_refused():
    crosscoder = built(("chat", 0), ("base", 10))
    with pytest.raises(ValueError, match=r"widths \(2, 4\) have no cosine"):
        slc.analysis.decoupled_pairs(random_crosscoder(d_models=(2, 4)), table_of(crosscoder))
    with pytest.raises(ValueError, match="2 latents, but the crosscoder has 6"):
        slc.analysis.decoupled_pairs(random_crosscoder(), table_of(crosscoder))
    for value in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="must lie in"):
            slc.analysis.decoupled_pairs(crosscoder, table_of(crosscoder), min_cosine=value)


def test_neighbours_are_counted_for_paired_latents_only(monkeypatch):
    counted = []
    original = decoder_pairs._n_neighbours

    def count(latents, *args):
        counted.append(latents.tolist())
        return original(latents, *args)

    monkeypatch.setattr(decoder_pairs, "_n_neighbours", count)
    crosscoder = built(("chat", 0), ("base", 5), ("chat", 90), ("base", 45), ("shared", 120))
    assert pairs_of(crosscoder) == ([(0, 1)], [(0, 1)])
    assert counted == [[0], [1]]
