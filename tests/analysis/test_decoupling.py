"""Divergence of pairs: the definition, a planted world, and what is undefined."""

import pandas as pd
import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.analysis.decoupling.divergence import ActivationDivergence
from sae_lens_crosscoder.synthetic.concepts import Concept
from sae_lens_crosscoder.synthetic.planted import PlantedWorld
from sae_lens_crosscoder.synthetic.worlds import world_a
from tests.analysis.conftest import random_activations, random_crosscoder, relu_crosscoder
from tests.reference import decoupling as ref


def alike_crosscoder():
    """A random one whose latents fire on much the same tokens."""
    crosscoder = random_crosscoder()
    with torch.no_grad():
        crosscoder.W_enc[0] += 3
    return crosscoder


PAIRS = pd.DataFrame({"chat_latent": [0, 4, 2, 0], "base_latent": [1, 1, 3, 5]})


@pytest.mark.parametrize("thresholds", [(0.7, 0.3), (0.4, 0.1), (0.5, 0.5)])
@pytest.mark.parametrize("given", [False, True])
def test_divergence_is_its_naive_definition(thresholds, given):
    crosscoder, x = alike_crosscoder(), random_activations(400)
    high, low = thresholds
    f = crosscoder.encode(x).T.tolist()
    highest = [0.6 * max(scores) for scores in f] if given else [max(scores) for scores in f]
    maxima = pd.Series(highest) if given else None
    found = slc.analysis.activation_divergence(
        crosscoder, slc.EvalData(activations=[*x.split(150)]), PAIRS, max_activation=maxima, high=high, low=low
    )
    for row in found.itertuples():
        i, j = row.chat_latent, row.base_latent
        expected = ref.divergence(f[i], f[j], max(highest[i], highest[j]), high, low)
        assert (row.divergence, row.n_high, row.n_only_chat, row.n_only_base) == pytest.approx(expected)
        assert (row.chat_max, row.base_max) == pytest.approx((highest[i], highest[j]))
    assert (found.n_high > 3).all()
    assert found.divergence.between(0.1, 0.9).any()


def test_dense_and_sparse_activations_in_any_cut_count_the_same():
    crosscoder, x = alike_crosscoder(), random_activations(100)
    indices, highest = torch.tensor(PAIRS.to_numpy()), torch.full((4,), 5.0)
    dense, sparse = ActivationDivergence(indices, highest), ActivationDivergence(indices, highest)
    dense.add(crosscoder.encode(x))
    for part in x.split(7):
        sparse.add(crosscoder.encode_sparse(part))
    assert torch.equal(dense.n_high, sparse.n_high)
    assert torch.equal(dense.n_only, sparse.n_only)
    assert dense.n_only.sum() > 0


def decoupled_by_hand(world, decoupled, split):
    """One-sided twins for each concept: of decoupled ones where it is in one model alone, of split ones anywhere."""
    rows, columns = [], []
    for concepts, inhibition in ((decoupled, 1.0), (split, 0.0)):
        for concept in concepts:
            base, chat = (direction[concept].double() for direction in world.directions)
            nothing = torch.zeros_like(base)
            rows += [torch.cat([nothing, chat]), torch.cat([base, nothing])]
            columns += [torch.cat([-inhibition * base, chat]), torch.cat([base, -inhibition * chat])]
    W_enc = torch.stack(columns, dim=1)
    bias = -0.4 - world.offset.double() @ W_enc
    return relu_crosscoder(torch.stack(rows), world.offset, W_enc, bias, d_models=world.layout.d_models)


def test_planted_decoupled_concepts_diverge_and_shared_ones_that_were_split_do_not():
    world = world_a(seed=0)
    decoupled, split = world.indices("decoupled"), world.indices("shared")[:20]
    crosscoder = decoupled_by_hand(world, decoupled, split)
    x = world.sample(6000, seed=1).activations.double()
    pairs = slc.analysis.decoupled_pairs(crosscoder, slc.diagnose(crosscoder, slc.EvalData(activations=x)).latents)
    assert pairs.isolated.all()
    assert list(zip(pairs.chat_latent, pairs.base_latent, strict=True)) == [(j, j + 1) for j in range(0, 76, 2)]
    found = slc.analysis.activation_divergence(crosscoder, slc.EvalData(activations=x), pairs)
    assert (found.chat_label == "chat_only").all()
    assert (found.base_label == "base_only").all()
    assert found.divergence[: len(decoupled)].min() > 0.95
    assert found.divergence[len(decoupled) :].max() < 0.05
    assert found.n_high.min() >= 3


@pytest.mark.parametrize("q", [0.0, 0.5, 1.0])
def test_twins_that_read_a_model_each_diverge_where_the_concept_is_in_one_alone(q):
    world = PlantedWorld([Concept("decoupled", 0.3, q=q)], d_models=(8, 8), magnitude_cv=0.0)
    crosscoder = decoupled_by_hand(world, [], [0])
    found = slc.analysis.activation_divergence(
        crosscoder,
        slc.EvalData(activations=world.sample(8000, seed=2).activations.double()),
        pd.DataFrame({"chat_latent": [0], "base_latent": [1]}),
    )
    assert found.divergence[0] == pytest.approx(1 - q, abs=0.04)


def test_a_pair_that_is_never_high_has_no_divergence():
    crosscoder, x = random_crosscoder(), random_activations(100)
    with torch.no_grad():
        crosscoder.b_enc[:2] = -1e9
    silent = slc.analysis.activation_divergence(crosscoder, slc.EvalData(activations=x), PAIRS[:1])
    assert silent.divergence.isna().all()
    assert silent.n_high[0] == 0
    unheard = slc.analysis.activation_divergence(
        random_crosscoder(), slc.EvalData(activations=x), PAIRS, max_activation=pd.Series([0.0] * 6)
    )
    assert unheard.divergence.isna().all()


def test_no_pairs_give_no_rows():
    found = slc.analysis.activation_divergence(
        random_crosscoder(), slc.EvalData(activations=random_activations()), PAIRS[:0]
    )
    assert len(found) == 0
    assert "divergence" in found


def test_activations_that_come_once_are_enough_when_the_highest_scores_are_known():
    crosscoder, x = random_crosscoder(), random_activations(100)
    with pytest.raises(ValueError, match="read only once"):
        slc.analysis.activation_divergence(crosscoder, slc.EvalData(activations=iter([x])), PAIRS)
    known = pd.Series(crosscoder.encode(x).amax(dim=0).detach().numpy())
    once = slc.analysis.activation_divergence(
        crosscoder, slc.EvalData(activations=iter([x])), PAIRS, max_activation=known
    )
    pd.testing.assert_frame_equal(
        once, slc.analysis.activation_divergence(crosscoder, slc.EvalData(activations=x), PAIRS)
    )


def test_what_cannot_be_compared_is_refused():
    crosscoder, x = random_crosscoder(), random_activations()
    for high, low in ((0.3, 0.7), (1.0, 0.3), (0.7, 0.0)):
        with pytest.raises(ValueError, match="0 < low <= high < 1"):
            slc.analysis.activation_divergence(crosscoder, slc.EvalData(activations=x), PAIRS, high=high, low=low)
    with pytest.raises(ValueError, match="contains latents outside 0 to 5"):
        slc.analysis.activation_divergence(crosscoder, slc.EvalData(activations=x), PAIRS + 4)
    with pytest.raises(ValueError, match="max_activation has 2 entries"):
        slc.analysis.activation_divergence(
            crosscoder, slc.EvalData(activations=x), PAIRS, max_activation=pd.Series([1.0, 2.0])
        )
    with pytest.raises(ValueError, match="No tokens to compare pairs on"):
        slc.analysis.activation_divergence(crosscoder, slc.EvalData(activations=x[:0]), PAIRS)
