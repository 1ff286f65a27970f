"""q-values: what null runs say about chance."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.analysis.diagnosis.conclusion import Evidence, conclusion
from sae_lens_crosscoder.analysis.diagnosis.null_runs import largest_over_kinds, null_kinds, q_values
from tests.analysis.conftest import random_activations, random_crosscoder
from tests.reference.error_control import largest_rates, least_rates

NAN = float("nan")


def table_of(delta_norms, n_active=1000):
    return pd.DataFrame({"delta_norm": delta_norms, "n_active": n_active})


def one_sidedness(delta_norms):
    return [abs(d - 0.5) for d in delta_norms]


def test_q_is_the_least_rate_of_all_thresholds_that_keep_the_latent():
    generator = np.random.default_rng(0)
    null = generator.normal(0.5, 0.08, 300).clip(0, 1).round(2)  # rounded, so that there are ties
    real = np.concatenate([generator.normal(0.5, 0.08, 200), generator.uniform(0.8, 1.0, 30)]).clip(0, 1).round(2)
    assert q_values(table_of(real), [table_of(null)]) == pytest.approx(
        least_rates(one_sidedness(real), one_sidedness(null))
    )


def test_more_null_runs_are_one_larger_null_run():
    real, first, second = (table_of(np.random.default_rng(seed).uniform(0, 1, 50)) for seed in range(3))
    assert q_values(real, [first, second]) == pytest.approx(q_values(real, [pd.concat([first, second])]))


def test_both_sides_count_alike():
    real, null = (table_of(np.random.default_rng(seed).uniform(0.2, 1, 80)) for seed in range(2))
    mirrored = [table.assign(delta_norm=1 - table.delta_norm) for table in (real, null)]
    assert q_values(mirrored[0], [null]) == pytest.approx(q_values(real, [mirrored[1]]))


def test_among_latents_of_chance_q_below_a_tenth_is_rare():
    """100 pairs of runs without a difference: in how many is anything said to be one?"""
    false_alarms = 0
    for seed in range(100):
        generator = np.random.default_rng(seed)
        real, null = (table_of(generator.beta(20, 20, 200)) for _ in range(2))
        false_alarms += bool((q_values(real, [null]) < 0.1).any())
    assert false_alarms <= 10


def null_run(kind, delta_norms):
    return slc.Diagnosis(table_of(delta_norms), {} if kind is None else {"null_kind": kind})


def q_over_kinds(real, runs):
    nulls = [null_run(kind, delta_norms) for kind, delta_norms in runs]
    return largest_over_kinds(nulls, lambda of_kind: q_values(table_of(real), [run.latents for run in of_kind]))


def drawn(seed, spread, n=60):
    return np.random.default_rng(seed).normal(0.5, spread, n).clip(0, 1).round(2)


def test_of_several_kinds_the_largest_q_counts():
    real = np.concatenate([drawn(0, 0.08), [0.95] * 12])
    runs = [("mild", drawn(1, 0.05)), ("wild", drawn(2, 0.1)), ("mild", drawn(3, 0.05)), (None, drawn(4, 0.08))]
    scored = [(kind, one_sidedness(delta_norms)) for kind, delta_norms in runs]
    assert q_over_kinds(real, runs) == pytest.approx(largest_rates(one_sidedness(real), scored))


def test_one_more_kind_never_makes_q_smaller():
    real, wild = np.concatenate([drawn(0, 0.1), [0.95] * 12]), [("wild", drawn(1, 0.1))]
    for spread in (0.02, 0.1, 0.2):
        mild = [("mild", drawn(seed, spread)) for seed in range(2, 6)]
        assert (q_over_kinds(real, wild + mild) >= q_over_kinds(real, wild)).all()


def test_many_runs_of_a_mild_kind_do_not_thin_out_the_chance_of_a_wild_one():
    """A run of the wild kind beside another one and 20 of the mild kind: pooled, most would be called different."""
    n_called = {"by kind": 0, "pooled": 0}
    for seed in range(0, 60 * 22, 22):
        real, wild = drawn(seed, 0.1), drawn(seed + 1, 0.1)
        runs = [("wild", wild)] + [("mild", drawn(seed + 2 + i, 0.02)) for i in range(20)]
        pooled = [(None, delta_norms) for _, delta_norms in runs]
        for name, given in (("by kind", runs), ("pooled", pooled)):
            n_called[name] += bool((q_over_kinds(real, given) < 0.1).any())
    assert n_called["by kind"] <= 6
    assert n_called["pooled"] > 30


def test_a_single_latent_beyond_a_null_of_the_same_size_is_never_enough():
    real, null = table_of([0.5] * 99 + [1.0]), table_of([0.5] * 99 + [0.51])
    assert q_values(real, [null])[-1] == 1.0
    assert q_values(real, [null] * 20)[-1] == pytest.approx(1 / 20)


def test_rare_latents_have_no_q_and_do_not_count():
    real, null = table_of([0.6, 1.0, NAN], [1000, 5, 1000]), table_of([0.51, 1.0], [1000, 5])
    q = q_values(real, [null])
    assert np.isnan(q[1:]).all()
    assert q[0] == 1
    with pytest.raises(ValueError, match="No latent of the null runs fires on 100 tokens"):
        q_values(real, [table_of([0.5], 5)])


def diagnosed(seed, **options):
    return slc.diagnose(random_crosscoder(seed), slc.EvalData(activations=[random_activations(2000)]), **options)


def test_diagnose_takes_one_null_run_or_several_and_says_how_many():
    null = diagnosed(1)
    assert diagnosed(0).latents.q_value.isna().all()
    assert diagnosed(0).manifest["n_null_runs"] == 0
    for given, n in ((null, 1), ([null, diagnosed(2)], 2)):
        diagnosis = diagnosed(0, null=given)
        assert diagnosis.manifest["n_null_runs"] == n
        tables = [run.latents for run in ([given] if n == 1 else given)]
        assert diagnosis.latents.q_value.to_numpy() == pytest.approx(q_values(diagnosis.latents, tables), nan_ok=True)


def test_diagnose_reads_the_kind_of_a_null_run_from_its_crosscoder():
    nulls = []
    for seed, kind in enumerate(("jittered", "jittered", "split_halves", None), start=1):
        crosscoder = random_crosscoder(seed)
        crosscoder.cfg.metadata.null_kind = kind
        nulls.append(slc.diagnose(crosscoder, slc.EvalData(activations=[random_activations(2000)])))
    diagnosis = diagnosed(0, null=nulls)
    assert diagnosis.manifest["null_kinds"] == ["jittered", "split_halves", ""]
    tables = [run.latents for run in nulls]
    of_kinds = [q_values(diagnosis.latents, part) for part in (tables[:2], tables[2:3], tables[3:])]
    assert diagnosis.latents.q_value.to_numpy() == pytest.approx(np.max(of_kinds, axis=0), nan_ok=True)


def test_conclusions_say_if_all_null_runs_are_of_jittered_weights():
    """Which may be far less than training does: see the docs page on changed use."""
    said = "null runs of jittered weights alone, which can understate chance"
    by_name, by_metadata, trained = (random_crosscoder(seed) for seed in (1, 2, 3))
    by_name.cfg.metadata.model_name, by_name.cfg.metadata.chat_model_name = "a", "a+jitter=0.02"
    by_metadata.cfg.metadata.null_kind, trained.cfg.metadata.null_kind = "jittered", "split_halves"
    data = slc.EvalData(activations=random_activations(2000))
    nulls = [slc.diagnose(each, data) for each in (by_name, by_metadata, trained)]
    uses = [slc.latent_use(each, data, min_active=1) for each in (by_name, by_metadata, trained)]
    assert [null.manifest["null_kind"] for null in nulls] == ["jittered", "jittered", "split_halves"]
    for n, expected in ((2, True), (3, False)):
        use = slc.latent_use(random_crosscoder(0), data, min_active=1)
        manifest = use.manifest | {"n_null_runs": n, "null_kinds": null_kinds(uses[:n])}
        judged = replace(use, latents=use.latents.assign(use="equal"), manifest=manifest)
        assert (said in judged.conclusion) == expected
        evidence = Evidence(table_of([0.5, 0.52]).assign(label="shared", verdict="shared", q_value=0.5), {}, 1000, n)
        evidence = replace(evidence, fve={"base": 0.9, "chat": 0.9}, null_kinds=null_kinds(nulls[:n]))
        assert (f"(q < 0.1 against {said})" in conclusion(evidence)) == expected


def test_a_null_run_that_was_trained_differently_is_refused():
    null = diagnosed(1)
    with pytest.raises(
        ValueError, match="null run is a crosscoder with 5 latents, but the crosscoder is a crosscoder with 6"
    ):
        diagnosed(0, null=replace(null, latents=null.latents.iloc[:5]))
    with pytest.raises(ValueError, match="null run is a jumprelu_crosscoder"):
        diagnosed(0, null=replace(null, manifest={**null.manifest, "architecture": "jumprelu_crosscoder"}))
    with pytest.raises(ValueError, match=r"trained with other settings than the crosscoder: \['k'\]"):
        diagnosed(0, null=replace(null, manifest={**null.manifest, "training": {"k": 3}}))
    own = random_crosscoder()
    own.cfg.metadata.model_name, own.cfg.metadata.chat_model_name = "a", "b"
    data = slc.EvalData(activations=random_activations(2000))
    with pytest.raises(ValueError, match="null run was trained on a and b, like the crosscoder"):
        slc.diagnose(own, data, null=slc.diagnose(own, data))
    with pytest.raises(ValueError, match="must be the Diagnosis that diagnose returns, with its manifest"):
        diagnosed(0, null=replace(null, manifest={}))


def test_null_runs_without_spread_are_refused():
    """Two copies of a model, started in pairs, stay equal: any latent would seem beyond chance."""
    with pytest.raises(ValueError, match="have a Delta_norm of 1/2"):
        q_values(table_of([0.49] * 30), [table_of([0.5] * 30)])
