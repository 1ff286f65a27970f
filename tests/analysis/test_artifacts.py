"""Measures over the latent table: the definition counted by hand, what is left out, and what is undefined."""

from inspect import unwrap

import numpy as np
import pandas as pd
import pytest

from sae_lens_crosscoder.analysis.statistics.artifacts import counts_below, overlap_with_shared, rank_overlap
from tests.reference import artifacts as ref


def random_table(seed=0, n=60):
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "label": rng.choice(["chat_only", "shared", "other"], n),
            "dead": rng.random(n) < 0.1,
            "delta_norm": rng.random(n),
            "nu_error": rng.normal(0.4, 0.4, n),
            "nu_reconstruction": rng.normal(0.4, 0.4, n),
        }
    )
    table.loc[rng.random(n) < 0.1, "nu_error"] = np.nan
    table.loc[rng.random(n) < 0.1, "nu_reconstruction"] = np.nan
    return table


def rows_of(table):
    return table.assign(latent=table.index).to_dict("records")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("column", ["nu_reconstruction", "nu_error"])
def test_overlap_is_counted_inside_the_shared_latents_quantiles(seed, column):
    table = random_table(seed)
    alive = [row for row in rows_of(table) if not row["dead"] and not ref.is_nan(row[column])]
    shared, chat_only = ([row[column] for row in alive if row["label"] == name] for name in ("shared", "chat_only"))
    found = overlap_with_shared(table, (0.95, 0.5, 0.2), column)
    for coverage, share in found.items():
        assert share == pytest.approx(ref.frac_inside(chat_only, *ref.central_interval(shared, coverage)))
    assert 0 < found[0.5] < 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bounds", ["signed", "absolute"])
def test_counts_are_of_latents_with_both_nu_below_the_limit(seed, bounds):
    table = random_table(seed)
    found = counts_below(table, bounds=bounds)
    assert found.n.tolist() == [ref.n_below(rows_of(table), limit, bounds == "absolute") for limit in found.index]
    assert found.index[[0, 30, 100]].tolist() == [0, 0.3, 1]
    judged = ref.n_below(rows_of(table), float("inf"), False)
    assert found.frac.tolist() == pytest.approx((found.n / judged).tolist())
    assert 0 < found.n.iloc[50] < found.n.iloc[-1]


def test_a_nu_at_the_limit_is_not_below_it():
    table = pd.DataFrame({"label": "chat_only", "dead": False, "nu_error": [0.2], "nu_reconstruction": [0.5]})
    assert counts_below(table, [0.5, 0.51]).n.tolist() == [0, 1]


@pytest.mark.parametrize("seed", range(5))
def test_common_latents_are_those_in_both_lists_of_the_best(seed):
    table = random_table(seed, n=30)
    # Ranks that are one another's shuffle have tied sums: these are of latents that differ in both.
    table["nu_reconstruction"] = table.nu_error + 1e-3 * table.nu_reconstruction
    found = rank_overlap(table)
    assert found.n_common.tolist() == [ref.n_common(rows_of(table), n) for n in found.index]
    n_ranked = len(found)
    assert n_ranked == int((~table.dead & table.nu_error.notna() & table.nu_reconstruction.notna()).sum())
    assert found.n_common.iloc[-1] == n_ranked
    assert found.frac_by_chance.tolist() == pytest.approx([n / n_ranked for n in found.index])
    assert found.frac_common.tolist() == pytest.approx((found.n_common / found.index).tolist())


@pytest.mark.parametrize(("sign", "expected"), [(1, [1, 2, 3, 4]), (-1, [0, 0, 2, 4])])
def test_rankings_that_agree_share_everything_and_opposite_ones_nothing_until_they_must(sign, expected):
    table = pd.DataFrame({"dead": False, "delta_norm": [0.95, 0.9, 0.85, 0.8]})
    nu = sign * np.array([0.1, 0.2, 0.3, 0.4])
    assert rank_overlap(table.assign(nu_error=nu, nu_reconstruction=nu)).n_common.tolist() == expected


def test_shares_of_nothing_are_nan():
    table = random_table()
    for missing in ("chat_only", "shared"):
        assert overlap_with_shared(table[table.label != missing]).isna().all()
    empty = counts_below(table[table.label != "chat_only"])
    assert (empty.n == 0).all()
    assert empty.frac.isna().all()
    assert len(rank_overlap(table.assign(dead=True))) == 0


def test_what_is_no_share_and_no_bound_is_refused():
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\]"):
        overlap_with_shared(random_table(), (95.0, 50.0))
    unchecked = unwrap(counts_below)
    with pytest.raises(ValueError, match="bounds='both'"):
        unchecked(random_table(), bounds="both")
