"""Tokens that dominate count nowhere: every analysis gives what it gives when a token mask leaves them out."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations.dominant_tokens import NormLimits
from sae_lens_crosscoder.analysis import (
    activation_divergence,
    activation_profiles,
    collect_examples,
    latent_statistics,
    nu_by_group,
    nu_controls,
)
from sae_lens_crosscoder.interpretation.windows import draw_windows
from tests.analysis.conftest import random_activations, random_crosscoder
from tests.analysis.test_kept_tokens import HOOK, LEFT_OUT, crosscoder, pair  # noqa: F401  (fixtures)
from tests.reference import dominant_tokens as reference
from tests.reference.variance import variance_explained, variance_explained_of_difference

RATIO = 1.4


@pytest.fixture(scope="module")
def by_rule(pair):  # noqa: F811
    """Data of which the rule leaves out some tokens, and a whole prompt."""
    return slc.EvalData(pair=pair, batch_size=10, max_norm_ratio=RATIO, **LEFT_OUT)


@pytest.fixture(scope="module")
def by_mask(pair, by_rule):  # noqa: F811
    """The same data with a mask that leaves out the same tokens, found by the loop."""
    acts = pair.activations(by_rule.tokens, HOOK)
    first = acts[by_rule.token_mask]
    limits = reference.limits_of(first.tolist(), (8, 8), RATIO)
    ordinary = torch.tensor([[reference.is_ordinary(h, (8, 8), limits) for h in row] for row in acts.tolist()])
    n_left_out = int((by_rule.token_mask & ~ordinary).sum())
    assert 10 < n_left_out < 200
    return replace(by_rule, token_mask=by_rule.token_mask & ordinary, max_norm_ratio=None)


def tables(kind, crosscoder, data, folder):  # noqa: F811
    """What an analysis measures, as tables and tensors."""
    latent_pairs = pd.DataFrame({"chat_latent": [0, 2], "base_latent": [1, 3]})
    match kind:
        case "diagnosis":
            return [slc.diagnose(crosscoder, data).latents]
        case "statistics":
            found = latent_statistics(crosscoder, data)
            return [found.table, pd.Series(found.fve), pd.Series(found.n_tokens)]
        case "paper":
            found = slc.paper.paper_tables({"it": crosscoder}, data)["it"]
            return [found.latents, found.pairs]
        case "divergence":
            return [activation_divergence(crosscoder, data, latent_pairs)]
        case "nu_controls":
            return [nu_controls(crosscoder, data, significant=False)]
        case "nu_by_group":
            return [nu_by_group(crosscoder, data, significant=False)]
        case "profiles":
            highest = slc.diagnose(crosscoder, replace(data, max_norm_ratio=None)).latents.max_activation * 0 + 30
            found = activation_profiles(crosscoder, data, highest, n_bands=3)
            return [pd.DataFrame(found.histogram.numpy()), pd.DataFrame(found.by_position.numpy())]
        case "examples":
            folder.mkdir()
            found = collect_examples(crosscoder, data, folder / "examples.safetensors", window=(2, 2))
            peaks = [(e.prompt, e.position, e.score) for latent in range(7) for e in found[latent].top]
            return [pd.DataFrame(peaks)]
        case _:
            ids = torch.arange(7)
            found = draw_windows(crosscoder, data, ids, n_windows=1000, window=(0, 0), seed=0)
            active = pd.DataFrame(found.active.numpy(), index=[ids[0] for ids in found.token_ids])
            return [active.groupby(level=0).any()]


KINDS = ("diagnosis", "statistics", "paper", "divergence", "nu_controls", "nu_by_group", "profiles", "examples")


@pytest.mark.parametrize("kind", KINDS)
def test_the_rule_leaves_out_what_a_mask_would(tmp_path, crosscoder, by_rule, by_mask, kind):  # noqa: F811
    found, expected = (
        tables(kind, crosscoder, data, tmp_path / name) for name, data in (("r", by_rule), ("m", by_mask))
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert len(theirs) > 0
        check = pd.testing.assert_frame_equal if isinstance(ours, pd.DataFrame) else pd.testing.assert_series_equal
        check(ours, theirs, rtol=1e-6, atol=1e-9)
    everything = tables(kind, crosscoder, replace(by_rule, max_norm_ratio=None), tmp_path / "all")
    assert not everything[0].equals(found[0])  # or the tokens that dominate would show nowhere


def loud_activations(n=300):
    """Some rows are 100 times as large in one model or in both."""
    activations = random_activations(n)
    activations[20::50, :3] *= 100
    activations[33::60] *= 100
    return activations


class TestDiagnosis:
    def test_it_says_how_many_and_gives_both_fve(self):
        crosscoder, activations = random_crosscoder(), loud_activations()  # noqa: F811
        manifest = slc.diagnose(crosscoder, slc.EvalData(activations=activations)).manifest
        rows, rebuilt = activations.tolist(), crosscoder.decode(crosscoder.encode(activations)).tolist()
        limits = reference.limits_of(rows, (3, 3), 10.0)
        kept = [reference.is_ordinary(row, (3, 3), limits) for row in rows]
        assert manifest["max_norms"] == pytest.approx(limits)
        assert manifest["max_norm_ratio"] == 10
        _, n_left_out, shares = reference.ordinary_batches([activations], (3, 3), limits, 1)
        assert manifest["dominant_tokens"]["n_left_out"] == n_left_out == 11
        assert list(manifest["dominant_tokens"]["frac_energy"].values()) == pytest.approx(shares)
        assert manifest["n_tokens"] == 289
        for name, used in (("fve", kept), ("fve_all_tokens", [True] * len(rows))):
            h, h_hat = ([row for row, use in zip(part, used, strict=True) if use] for part in (rows, rebuilt))
            for model, cut in (("base", slice(0, 3)), ("chat", slice(3, 6)), ("pooled", slice(0, 6))):
                expected = variance_explained([x[cut] for x in h], [x[cut] for x in h_hat])
                assert manifest[name][model] == pytest.approx(expected, rel=1e-9)
            difference = variance_explained_of_difference(h, h_hat, 3)
            assert manifest[name]["difference"] == pytest.approx(difference, rel=1e-9)

    def test_without_any_both_fve_are_the_same(self):
        manifest = slc.diagnose(random_crosscoder(), slc.EvalData(activations=random_activations())).manifest
        assert manifest["fve_all_tokens"] == pytest.approx(manifest["fve"])
        assert manifest["dominant_tokens"]["n_left_out"] == 0

    def test_a_stopped_one_resumes_to_the_same_result(self, tmp_path, monkeypatch):
        monkeypatch.setattr("sae_lens_crosscoder.storage.accumulators._SECONDS_BETWEEN_SAVES", -1.0)
        crosscoder, activations = random_crosscoder(), loud_activations()  # noqa: F811
        unbroken = slc.diagnose(crosscoder, slc.EvalData(activations=list(activations.split(40))))

        class Stopping(list):
            def __iter__(self):
                for i, batch in enumerate(super().__iter__()):
                    if i == 5:
                        raise OSError("gone")
                    yield batch

        options = {"checkpoint_path": tmp_path / "diagnosis.safetensors"}
        ratio = {"max_norm_ratio": 10.0}
        crosscoder.cfg.metadata.max_norms, crosscoder.cfg.metadata.max_norm_ratio = unbroken.manifest["max_norms"], 10.0
        with pytest.raises(OSError, match="gone"):
            slc.diagnose(crosscoder, slc.EvalData(activations=Stopping(activations.split(40)), **ratio), **options)
        again = slc.EvalData(activations=list(activations.split(40)))
        with pytest.raises(ValueError, match="another data source"):
            slc.diagnose(crosscoder, replace(again, max_norm_ratio=20.0), **options)
        resumed = slc.diagnose(crosscoder, again, **options)
        pd.testing.assert_frame_equal(resumed.latents, unbroken.latents)
        assert resumed.manifest["dominant_tokens"] == unbroken.manifest["dominant_tokens"]
        assert resumed.manifest["fve_all_tokens"] == unbroken.manifest["fve_all_tokens"]


class TestLimits:
    def test_they_are_those_of_training_for_the_ratio_of_the_data(self):
        crosscoder = random_crosscoder()  # noqa: F811
        crosscoder.cfg.metadata.max_norms, crosscoder.cfg.metadata.max_norm_ratio = [2.0, 4.0], 10.0
        for ratio, expected in ((10.0, [2.0, 4.0]), (20.0, [4.0, 8.0]), (None, None)):
            data = slc.EvalData(activations=random_activations(), max_norm_ratio=ratio)
            assert slc.diagnose(crosscoder, data).manifest["max_norms"] == expected

    def test_they_are_measured_on_the_first_2048_tokens_if_training_did_not(self):
        activations = random_activations(3000)
        activations[2048:] *= 3
        expected = reference.limits_of(activations[:2048].tolist(), (3, 3), 10.0)
        for given in (activations, [activations[:0], *activations.split(70)], iter(activations.split(2999))):
            limits = slc.diagnose(random_crosscoder(), slc.EvalData(activations=given)).manifest["max_norms"]
            assert limits == pytest.approx(expected)

    def test_to_measure_them_the_models_run_no_second_time(self, crosscoder, by_rule, monkeypatch):  # noqa: F811
        passes = []
        run = by_rule.pair.activations
        monkeypatch.setattr(by_rule.pair, "activations", lambda *args: passes.append(None) or run(*args))
        slc.diagnose(crosscoder, by_rule)
        assert len(passes) == -(-len(by_rule.tokens) // by_rule.batch_size)

    def test_a_one_time_iterator_loses_no_token_to_the_measurement(self):
        activations = loud_activations()
        data = [slc.EvalData(activations=given) for given in (activations, iter(activations.split(300)))]
        first, second = (slc.diagnose(random_crosscoder(), each) for each in data)
        pd.testing.assert_frame_equal(first.latents, second.latents)

    @pytest.mark.parametrize("max_norms", [[1.0], [1.0, -1.0]])
    def test_metadata_that_fit_no_pair_are_refused(self, max_norms):
        crosscoder = random_crosscoder()  # noqa: F811
        crosscoder.cfg.metadata.max_norms = max_norms
        with pytest.raises(ValueError, match="must have one finite number, at least 0, for each of 2 sources"):
            slc.diagnose(crosscoder, slc.EvalData(activations=random_activations()))

    def test_a_ratio_that_is_none_is_refused(self):
        with pytest.raises(ValueError, match=r"max_norm_ratio=1\.0 must be above 1"):
            slc.EvalData(activations=random_activations(), max_norm_ratio=1.0)

    def test_all_tokens_may_be_left_out_and_that_is_said(self):
        crosscoder = random_crosscoder()  # noqa: F811
        crosscoder.cfg.metadata.max_norms = [1e-9, 1e-9]
        with pytest.raises(ValueError, match=r"No tokens to diagnose on: .* or all of them dominate"):
            slc.diagnose(crosscoder, slc.EvalData(activations=random_activations()))
        assert not NormLimits(crosscoder.layout, (1e-9, 1e-9)).ordinary(random_activations()).any()


def test_windows_show_no_activity_at_them(tmp_path, crosscoder, by_rule, by_mask):  # noqa: F811
    found, expected = (tables("windows", crosscoder, data, tmp_path) for data in (by_rule, by_mask))
    joined = found[0].reindex(expected[0].index)
    pd.testing.assert_frame_equal(joined, expected[0])
