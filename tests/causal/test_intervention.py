"""Laws of what interventions add, on activations alone."""

from inspect import unwrap  # past the check of types

import pandas as pd
import pytest
import torch

from sae_lens_crosscoder.causal.patching.intervention import intervention
from tests.causal.conftest import D_SAE, LATENTS, random_crosscoder, stacked_activations, thresholds
from tests.crosscoders.conftest import as_lists, l1_crosscoder
from tests.reference.causal import edited

MODELS = {None: None, "base": (0,), "chat": (1,)}
MAX = (2.0, 0.5, 3.0)


@pytest.fixture(params=[None, 0.5], ids=["relu", "jumprelu"])
def crosscoder(request):
    return random_crosscoder(threshold=request.param)


@pytest.fixture
def x():
    return stacked_activations(3, 5)


def apply(edit, x, layout):
    parts = zip(layout.split(x), edit.deltas(x), strict=True)
    return layout.stack([part if delta is None else part + delta for part, delta in parts])


def loops(crosscoder, x, *args, **kwargs):
    weights = as_lists(crosscoder)
    tokens = weights.tokens(x.flatten(0, -2))
    rows = [edited(h, weights, thresholds(crosscoder), *args, **kwargs) for h in tokens]
    return torch.tensor([[value for part in row for value in part] for row in rows], dtype=x.dtype).view_as(x)


class TestAgainstTheReference:
    @pytest.mark.parametrize("how", ["replace", "add", "ablate", "scale", "steer", "reconstruct"])
    @pytest.mark.parametrize("model", MODELS)
    @pytest.mark.parametrize("coefficient", [1.0, -0.7])
    def test_every_intervention_is_what_its_formula_says(self, crosscoder, x, how, model, coefficient):
        maxima = {"max_activation": MAX} if how == "steer" else {}
        edit = intervention(crosscoder, LATENTS, how, model=model, coefficient=coefficient, **maxima)
        models = MODELS[model] or ((0,) if how in ("replace", "add") else (0, 1))
        expected = loops(crosscoder, x, LATENTS, how, models, coefficient, **maxima)
        torch.testing.assert_close(apply(edit, x, crosscoder.layout), expected)
        assert torch.equal(expected, x) == (how == "scale" and coefficient == 1.0)

    def test_the_chosen_latents_activations_are_those_of_the_whole_crosscoder(self, crosscoder, x):
        f = intervention(crosscoder, LATENTS, "ablate").feature_acts(x)
        torch.testing.assert_close(f, crosscoder.encode(x)[..., LATENTS])
        assert (f > 0).any()
        assert (f == 0).any()

    def test_models_of_different_width_can_be_ablated_scaled_and_steered(self):
        crosscoder = random_crosscoder((3, 4))
        x = stacked_activations(5, d_in=7)
        cases = {"ablate": {}, "scale": {"coefficient": 3.0}, "steer": {"max_activation": MAX}, "reconstruct": {}}
        for how, more in cases.items():
            edit = intervention(crosscoder, LATENTS, how, **more)
            torch.testing.assert_close(
                apply(edit, x, crosscoder.layout), loops(crosscoder, x, LATENTS, how, (0, 1), **more)
            )

    @pytest.mark.parametrize("how", ["replace", "ablate"])
    def test_with_the_biases(self, crosscoder, x, how):
        edit = intervention(crosscoder, LATENTS, how, coefficient=-0.7, with_bias=True)
        models = (0,) if how == "replace" else (0, 1)
        expected = loops(crosscoder, x, LATENTS, how, models, -0.7, with_bias=True)
        torch.testing.assert_close(apply(edit, x, crosscoder.layout), expected)

    @pytest.mark.parametrize("kind", [torch.tensor, pd.Index, tuple])
    def test_latents_may_be_a_list_a_tensor_or_the_index_of_a_table(self, crosscoder, x, kind):
        expected = intervention(crosscoder, LATENTS, "add").deltas(x)[0]
        assert torch.equal(intervention(crosscoder, kind(LATENTS), "add").deltas(x)[0], expected)
        empty = intervention(crosscoder, kind(LATENTS)[:0], "add").deltas(x)[0]
        assert torch.equal(empty, torch.zeros_like(expected))

    def test_maxima_may_be_a_column_of_a_table(self, crosscoder):
        column = pd.Series({7: 2.0, 2: 0.5, 5: 3.0, 1: 9.0}, name="max_activation")
        steered = intervention(crosscoder, LATENTS, "steer", max_activation=column[LATENTS]).deltas(None)
        expected = intervention(crosscoder, LATENTS, "steer", max_activation=MAX).deltas(None)
        assert all(torch.equal(a, b) for a, b in zip(steered, expected, strict=True))


class TestLaws:
    @pytest.fixture
    def parts(self, crosscoder, x):
        """Per model: activation, reconstruction, error; and the difference of the biases."""
        reconstruction = crosscoder.layout.split(crosscoder.decode(crosscoder.encode(x)))
        h = crosscoder.layout.split(x)
        errors = [a - b for a, b in zip(h, reconstruction, strict=True)]
        return h, reconstruction, errors, crosscoder.decoder_biases[1] - crosscoder.decoder_biases[0]

    def test_all_is_the_chat_reconstruction_with_the_base_error_less_the_bias_difference(self, crosscoder, x, parts):
        h, reconstruction, errors, bias_difference = parts
        everything = h[0] + intervention(crosscoder, None, "replace").deltas(x)[0]
        torch.testing.assert_close(everything, reconstruction[1] + errors[0] - bias_difference, rtol=0, atol=1e-6)
        with_bias = h[0] + intervention(crosscoder, None, "replace", with_bias=True).deltas(x)[0]
        torch.testing.assert_close(with_bias, reconstruction[1] + errors[0], rtol=0, atol=1e-6)

    @pytest.mark.parametrize("with_bias", [False, True])
    def test_all_and_error_add_up_to_both_activations(self, crosscoder, x, parts, with_bias):
        h, reconstruction, errors, bias_difference = parts
        everything = h[0] + intervention(crosscoder, None, "replace", with_bias=with_bias).deltas(x)[0]
        error = h[1] + intervention(crosscoder, None, "replace", model="chat", with_bias=with_bias).deltas(x)[1]
        torch.testing.assert_close(everything + error, h[0] + h[1], rtol=0, atol=1e-6)
        expected = reconstruction[0] + errors[1] + (0 if with_bias else bias_difference)
        torch.testing.assert_close(error, expected, rtol=0, atol=1e-6)

    def test_none_and_all_indices_are_the_same(self, crosscoder, x):
        named = intervention(crosscoder, range(D_SAE), "add").deltas(x)[0]
        torch.testing.assert_close(intervention(crosscoder, None, "add").deltas(x)[0], named)

    @pytest.mark.parametrize("how", ["replace", "add", "ablate", "scale"])
    def test_an_empty_set_adds_nothing(self, crosscoder, x, how):
        edit = intervention(crosscoder, [], how, coefficient=2.0)
        assert torch.equal(apply(edit, x, crosscoder.layout), x)

    @pytest.mark.parametrize("how", ["replace", "add", "ablate", "scale"])
    def test_disjoint_sets_add_up(self, crosscoder, x, how):
        delta = {
            size: intervention(crosscoder, latents, how, model="base", coefficient=3.0).deltas(x)[0]
            for size, latents in {"one": [7], "two": [2, 5], "three": LATENTS}.items()
        }
        torch.testing.assert_close(delta["one"] + delta["two"], delta["three"])

    def test_ablating_is_scaling_to_nothing_and_leaves_error_and_bias_of_all(self, crosscoder, x, parts):
        _, _, errors, _ = parts
        ablated = apply(intervention(crosscoder, None, "ablate"), x, crosscoder.layout)
        scaled = apply(intervention(crosscoder, None, "scale", coefficient=0.0), x, crosscoder.layout)
        torch.testing.assert_close(ablated, scaled)
        torch.testing.assert_close(ablated, crosscoder.layout.stack(errors) + crosscoder.b_dec)
        without_bias = apply(intervention(crosscoder, None, "ablate", with_bias=True), x, crosscoder.layout)
        torch.testing.assert_close(without_bias, crosscoder.layout.stack(errors))

    def test_reconstructing_leaves_the_reconstruction(self, crosscoder, x):
        reconstructed = apply(intervention(crosscoder, None, "reconstruct"), x, crosscoder.layout)
        torch.testing.assert_close(reconstructed, crosscoder.decode(crosscoder.encode(x)))

    def test_steering_by_one_adds_what_the_latent_writes_where_it_is_strongest(self, crosscoder, x):
        latent = 5
        strongest = x.flatten(0, 1)[crosscoder.encode(x).flatten(0, 1)[:, latent].argmax()]
        peak = crosscoder.encode(x)[..., latent].max().item()
        steered = intervention(crosscoder, [latent], "steer", max_activation=peak).deltas(None)
        removed = intervention(crosscoder, [latent], "ablate").deltas(strongest)
        assert peak > 0
        for added, taken in zip(steered, removed, strict=True):
            torch.testing.assert_close(added, -taken)

    def test_only_steering_needs_no_activations(self, crosscoder):
        assert not intervention(crosscoder, [1], "steer", max_activation=1.0).reads_activations
        for how in ("replace", "add", "ablate", "scale"):
            assert intervention(crosscoder, [1], how).reads_activations

    def test_the_activations_are_not_edited(self, crosscoder, x):
        before = x.clone()
        apply(intervention(crosscoder, None, "replace", with_bias=True), x, crosscoder.layout)
        assert torch.equal(x, before)


class TestRefusals:
    @pytest.mark.parametrize(
        ("latents", "arguments", "message"),
        [
            ([1], {"how": "patch"}, "Unknown how='patch': expected one of"),
            ([1], {"how": "ablate", "model": "both"}, r"Unknown model='both': expected one of \('base', 'chat'\)"),
            ([D_SAE], {}, f"no latent {D_SAE}: this crosscoder has latents 0 to {D_SAE - 1}"),
            ([-1], {}, "no latent -1"),
            ([3, 1, 3], {}, "contains a latent twice"),
            (torch.ones(D_SAE, dtype=torch.bool), {}, "mask.nonzero"),
            ([0.5], {}, "latent_ids must be indices"),
            (5, {}, "latent_ids must be indices.*Pass a list such as"),
            (pd.DataFrame({"verdict": ["dead"]}, index=["a"]), {}, "latent_ids must be indices"),
            (pd.Series([True] * D_SAE), {}, "mask.nonzero"),
            ([1], {"how": "steer"}, "how='steer' needs max_activation"),
            ([1], {"how": "ablate", "max_activation": 2.0}, "max_activation goes with how='steer'"),
            ([1, 2], {"how": "steer", "max_activation": [2.0]}, "1 values for 2 latents"),
            ([1], {"how": "add", "with_bias": True}, "with_bias=True goes with how='replace' or how='ablate'"),
        ],
    )
    def test_what_has_no_meaning_is_refused(self, crosscoder, latents, arguments, message):
        with pytest.raises(ValueError, match=message):
            unwrap(intervention)(crosscoder, latents, **arguments)

    def test_a_training_crosscoder_is_refused(self):
        with pytest.raises(ValueError, match="An intervention needs an inference crosscoder"):
            unwrap(intervention)(l1_crosscoder(), [1])

    @pytest.mark.parametrize("how", ["replace", "add"])
    def test_carrying_between_models_without_a_common_basis_is_refused(self, how):
        with pytest.raises(ValueError, match="Only two models of one width share a basis"):
            intervention(random_crosscoder((3, 4)), [1], how)


def test_steering_takes_the_maximum_from_rows_of_the_table_or_its_column():
    crosscoder = random_crosscoder()
    table = pd.DataFrame({"max_activation": torch.arange(1.0, D_SAE + 1).tolist()}, index=pd.RangeIndex(D_SAE))
    expected = intervention(crosscoder, [7, 2], "steer", max_activation=[8.0, 3.0]).deltas(None)
    for ids, options in (
        (table.loc[[7, 2]], {}),
        ([7, 2], {"max_activation": table.max_activation}),
        (torch.tensor([7, 2]), {"max_activation": table.max_activation}),
        ([7, 2], {"max_activation": table.max_activation.loc[[7, 2]]}),
    ):
        found = intervention(crosscoder, ids, "steer", **options).deltas(None)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    with pytest.raises(ValueError, match="pass rows of the table of diagnose as latent_ids"):
        intervention(crosscoder, table.loc[[7]].drop(columns="max_activation"), "steer")
