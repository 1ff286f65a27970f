"""Every public function that takes a crosscoder reads any number of models, takes two by name, or refuses by name."""

import inspect
from functools import cached_property

import numpy as np
import pandas as pd
import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.models.tiny import TINY_HOOK
from tests.house.public_calls import OF_MODELS, OF_TENSORS, World, functions, used_up

TWO = ("model_0", "model_2")
ANY_NUMBER = {
    "diagnose",  # compares all with the first
    "activation_divergence",
    "activation_profiles",
    "collect_examples",
    "diagnose_weights",
    "explore",  # shows the two that its diagnosis compares
    "interpretation_cases",
    "latent",
    "latent_statistics",
    "latent_uses",  # compares all with the first
    "splice_evals",
    "write_delphi_cache",
}
REFUSED = {
    "changed": r"Turned latents need two models of one width.*Train a crosscoder on two of the models",
    "paper_report": "paper_tables compares two models, but this crosscoder reads 3",
    "polish": "",  # is called in the tests of training
    "save_dictionary_learning": r"d_models=\(96, 96, 96\) cannot be saved: dictionary_learning needs two models",
}
PLANTED = {"layers_found", "truth_table"}  # read worlds of their own, of any number of models
FUNCTIONS = functions()
CALLS = OF_MODELS | OF_TENSORS


def takes_a_crosscoder(function):
    return {"crosscoder", "crosscoders"} & {*inspect.signature(function).parameters}


READERS = sorted(name for name in CALLS if takes_a_crosscoder(FUNCTIONS[name]))
COMPARED = [name for name in READERS if "models" in inspect.signature(FUNCTIONS[name]).parameters]


class Family(World):
    @cached_property
    def pair(self):
        return slc.HookedModelPair.from_pretrained("tiny-base", "tiny-null", "tiny-chat")

    @cached_property
    def crosscoder(self):
        return self.crosscoder_of(96, 96, 96)

    @cached_property
    def diagnosis(self):
        return slc.diagnose(self.crosscoder, self.data, models=TWO)


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return Family("HookedTransformer", tmp_path_factory.mktemp("family"))


def call(name, family, **options):
    with torch.set_grad_enabled(name == "changed"):
        result = FUNCTIONS[name](**{**CALLS[name](family), **options})
        used_up(result)
    return result


def test_every_reader_of_a_crosscoder_is_of_one_kind():
    everything = {name for name, function in FUNCTIONS.items() if takes_a_crosscoder(function)}
    kinds = [{*COMPARED} - {"diagnose"} - PLANTED, ANY_NUMBER, {*REFUSED}, PLANTED]
    assert set().union(*kinds) == everything
    assert sum(map(len, kinds)) == len(everything)


@pytest.mark.parametrize("name", sorted({*COMPARED} - PLANTED - {"diagnose", "intervention"}))
def test_two_of_three_models_are_compared_by_name_and_asked_for_without(family, name):
    with pytest.raises(ValueError, match=r"compares two models, but this crosscoder reads 3.*models=\('model_0'"):
        call(name, family)
    call(name, family, models=TWO)


@pytest.mark.parametrize("name", sorted(ANY_NUMBER))
def test_other_readers_take_three_models(family, name):
    call(name, family)


@pytest.mark.parametrize("name", sorted({*REFUSED} - {"polish"}))
def test_the_rest_refuses_three_models_by_name(family, name):
    with pytest.raises(ValueError, match=REFUSED[name]):
        call(name, family)


def test_what_needs_a_pair_refuses_a_family_by_name(family):
    nulls = slc.workflows.null_family(family.pair, n_per_kind=1)
    with pytest.raises(ValueError, match="null_family compares two models, but this crosscoder reads 3"):
        nulls.run(family.crosscoder, family.data, family.tokens)
    with pytest.raises(ValueError, match=r"first_look.*model"):
        slc.first_look(family.pair, family.data, hook_names=[TINY_HOOK])


def test_two_of_three_models_are_those_of_a_crosscoder_of_the_two(family):
    """A third model that no latent reads or writes changes no comparison of the other two."""
    crosscoder = family.crosscoder_of(96, 96, 96)
    keep = torch.cat([torch.ones(96), torch.zeros(96), torch.ones(96)]).bool()
    with torch.no_grad():
        crosscoder.W_dec[:, ~keep], crosscoder.W_enc[~keep], crosscoder.b_dec[~keep] = 0, 0, 0
    pair = family.pair.of("tiny-base", "tiny-chat")
    of_two = family.crosscoder_of(96, 96)
    state = {"W_dec": crosscoder.W_dec[:, keep], "W_enc": crosscoder.W_enc[keep], "b_dec": crosscoder.b_dec[keep]}
    of_two.load_state_dict({**crosscoder.state_dict(), **state})
    data = slc.EvalData(pair=pair, tokens=family.tokens, groups=family.data.groups, max_norm_ratio=None)
    for name in ("nu_by_group", "nu_controls"):
        function = FUNCTIONS[name]
        options = {"significant": False}
        expected = function(of_two, data, **options)
        found = function(crosscoder, family.data, models=TWO, **options)
        columns = [column for column in expected if "random" not in column]  # drawn for the models at hand
        np.testing.assert_allclose(found[columns], expected[columns], rtol=1e-3, atol=1e-4)
    stacked = family.pair.activations(family.tokens, TINY_HOOK)[0, 3]
    shares = slc.analysis.difference_shares(crosscoder, stacked, models=TWO).latents
    expected = slc.analysis.difference_shares(of_two, stacked[keep]).latents
    pd.testing.assert_frame_equal(shares, expected, rtol=1e-3)
    found = slc.analysis.paper_tables({"a": crosscoder}, family.data, models=TWO)["a"].latents
    expected = slc.analysis.paper_tables({"a": of_two}, data)["a"].latents
    for column in ("delta_norm", "nu_error", "mse_improvement_error", "frequency"):
        if column in expected:
            np.testing.assert_allclose(found[column], expected[column], rtol=1e-3, atol=1e-4)
    shown = slc.compare(crosscoder, family.pair, family.tokens[:1], models=TWO)
    expected = slc.compare(of_two, pair, family.tokens[:1])
    columns = ["score", "share", "delta_norm", "kl_change_added"]
    pd.testing.assert_frame_equal(shown.latents[columns], expected.latents[columns], rtol=1e-3, atol=1e-5)
    pd.testing.assert_frame_equal(shown.token_kl, expected.token_kl)
