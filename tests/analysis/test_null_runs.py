"""q-values: what null runs say about chance."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.analysis.diagnosis.null_runs import q_values
from tests.analysis.conftest import random_activations, random_crosscoder

NAN = float("nan")


def table_of(delta_norms, n_active=1000):
    return pd.DataFrame({"delta_norm": delta_norms, "n_active": n_active})


def naive_q(real, null):
    """The least estimated rate over every threshold at or below a latent's score, one threshold at a time."""

    def rate(threshold):
        n_null = sum(abs(d - 0.5) >= threshold for d in null)
        n_real = sum(abs(d - 0.5) >= threshold for d in real)
        return (1 + n_null) / len(null) / (n_real / len(real))

    scores = [abs(d - 0.5) for d in real]
    return [min(1.0, min(rate(t) for t in scores if t <= score)) for score in scores]


def test_q_is_the_least_rate_of_all_thresholds_that_keep_the_latent():
    generator = np.random.default_rng(0)
    null = generator.normal(0.5, 0.08, 300).clip(0, 1).round(2)  # rounded, so that there are ties
    real = np.concatenate([generator.normal(0.5, 0.08, 200), generator.uniform(0.8, 1.0, 30)]).clip(0, 1).round(2)
    assert q_values(table_of(real), [table_of(null)]) == pytest.approx(naive_q(real, null))


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
