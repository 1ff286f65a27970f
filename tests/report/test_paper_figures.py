"""Laws of the paper's figures: every panel holds the numbers of the tables."""

import json
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from sae_lens_crosscoder.analysis.paper.paper_tables import MSE_PREFIX
from sae_lens_crosscoder.report.figures.class_histograms import (
    cosine_histogram,
    frequency_histogram,
    template_histogram,
)
from sae_lens_crosscoder.report.figures.curves import rank_curves, threshold_curves
from sae_lens_crosscoder.report.figures.nu_histograms import (
    TARGETS,
    mse_improvement_boxes,
    overlap_histogram,
    template_nu_histogram,
)
from sae_lens_crosscoder.report.figures.nu_marginals import nu_marginals
from sae_lens_crosscoder.report.paper.numbers import most_chat_leaning, paper_numbers
from sae_lens_crosscoder.report.paper.page import paper_figures, write_paper_page
from sae_lens_crosscoder.report.paper.tables import write_paper_tables
from tests.report.made_up import dead, diagnoses, texts, without_nu
from tests.report.paper_tables import NUS, live, make_latents, make_pairs, paper


@pytest.fixture(scope="module")
def latents():
    return {"l1": make_latents(seed=0), "batchtopk": make_latents(seed=1)}


@pytest.fixture(scope="module")
def tables(latents):
    return {
        "l1": paper(latents["l1"], make_pairs()),
        "batchtopk": paper(latents["batchtopk"], make_pairs(0)),
    }


@pytest.mark.parametrize(
    ("draw", "column"),
    [(cosine_histogram, "cos_sim"), (frequency_histogram, "frequency"), (template_histogram, "frac_template")],
)
def test_a_class_line_is_the_share_of_its_live_latents_in_each_bin(latents, draw, column):
    figure = draw(latents)
    lines = {(trace.xaxis, trace.name): trace for trace in figure.data}
    assert len(lines) == len(figure.data) == 2 * 4
    for axis, (name, table) in zip(("x", "x2"), latents.items(), strict=True):
        for label in ("shared", "chat_only", "base_only", "other"):
            trace = lines[axis, label]
            values = live(table, label)[column].dropna()
            x = np.asarray(trace.x) if column != "frequency" else 10 ** np.asarray(trace.x)
            edges, heights, counts = x[::2], np.asarray(trace.y)[1:-1:2], np.asarray(trace.customdata)[1:-1:2]
            for i, (low, high) in enumerate(pairwise(edges)):
                inside = sum(low <= v < high or (i == len(edges) - 2 and v == high) for v in values)
                assert counts[i] == inside
                assert heights[i] == pytest.approx(inside / len(values))
            assert counts.sum() == len(values) > 10
        (title,) = (text for text in texts(figure) if text.strip().startswith(name))
        n_dead = int(table.dead.sum())
        n_missing = int((~table.dead & table[column].isna()).sum()) or "none"
        assert f"left out: {n_dead} dead, {n_missing} without a value" in title


@pytest.mark.parametrize("label", ["chat_only", "shared"])
def test_points_and_their_margins_are_the_same_latents(latents, label):
    table = latents["l1"]
    figure = nu_marginals(diagnoses({"l1": table}), label)
    known = live(table, label).dropna(subset=NUS)
    points = [trace for trace in figure.data if trace.type == "scatter"]
    drawn = np.concatenate([np.column_stack([trace.customdata[:, 0], trace.x, trace.y]) for trace in points])
    np.testing.assert_array_equal(drawn[drawn[:, 0].argsort()], known[NUS].reset_index().to_numpy())
    inside = known[known[NUS].ge(-0.5).all(axis=1) & known[NUS].le(1.5).all(axis=1)]
    assert 0 < len(inside) < len(known)
    above, side = (next(t for t in figure.data if t.type == "bar" and t.orientation == way) for way in "vh")
    for column, middles, counts in (("nu_error", above.x, above.y), ("nu_reconstruction", side.y, side.x)):
        assert sum(counts) == len(inside)
        for middle, n in zip(middles, counts, strict=True):
            assert n == ((inside[column] >= middle - 0.025) & (inside[column] < middle + 0.025)).sum()
    missing = len(live(table, label)) - len(known)
    assert f"{len(known)} drawn, {missing} without nu, {len(known) - len(inside)} beyond the axes" in texts(figure)[0]


def test_blocks_of_several_crosscoders_do_not_overlap(latents):
    figure = nu_marginals(diagnoses({name: latents["l1"] for name in "abc"}), "chat_only")
    places = []
    for row in range(1, 5):
        for col in range(1, 5):
            subplot = figure.get_subplot(row, col)
            if subplot is not None:
                places.append((*subplot.xaxis.domain, *subplot.yaxis.domain))
    used = {(trace.xaxis, trace.yaxis) for trace in figure.data}
    assert len(used) == 3 * 3
    for i, (left, right, low, high) in enumerate(places):
        assert 0 <= left < right <= 1 + 1e-9
        assert 0 <= low < high <= 1
        for other in places[:i]:
            apart = right <= other[0] or other[1] <= left or high <= other[2] + 1e-9 or other[3] <= low + 1e-9
            assert apart


def test_threshold_curves_count_every_latent_below(latents):
    n_curves, frac_curves = (
        [trace for trace in threshold_curves(diagnoses(latents)).data if trace.xaxis == axis] for axis in ("x", "x2")
    )
    for table, n, frac in zip(latents.values(), n_curves, frac_curves, strict=True):
        known = live(table, "chat_only").dropna(subset=NUS)
        for pi, count, share in zip(n.x, n.y, frac.y, strict=True):
            assert count == sum(error < pi and rec < pi for error, rec in known[NUS].to_numpy())
            assert share == pytest.approx(count / len(known))


def test_overlap_shows_both_classes_and_where_the_shared_ones_lie(latents):
    table = latents["l1"]
    figure = overlap_histogram({"l1": table})
    for bars, label in zip(figure.data, ("shared", "chat_only"), strict=True):
        values = live(table, label).nu_reconstruction.dropna()
        for middle, share, n in zip(bars.x, bars.y, bars.customdata, strict=True):
            assert n == ((values >= middle - 0.025) & (values < middle + 0.025)).sum()
            assert share == pytest.approx(n / len(values))
    shared, chat_only = (live(table, label).nu_reconstruction.dropna() for label in ("shared", "chat_only"))
    for shape, tail, coverage in zip(figure.layout.shapes, (2.5, 25), (95, 50), strict=True):
        low, high = np.percentile(shared, [tail, 100 - tail])
        assert (shape.x0, shape.x1) == pytest.approx((max(low, -0.5), min(high, 1.5)))
        inside = ((chat_only >= low) & (chat_only <= high)).mean()
        assert f"central {coverage} %: {100 * inside:.1f} %" in texts(figure)[0]


def test_colours_are_template_shares(latents):
    table = latents["l1"]
    figure = template_nu_histogram({"l1": table})
    for axis, column in (("x", "nu_error"), ("x2", "nu_reconstruction")):
        known = live(table, "chat_only").dropna(subset=[column])
        share = known.frac_template
        bands = {
            "below a third on the template": share < 1 / 3,
            "a third to a half": (share >= 1 / 3) & (share < 0.5),
            "half or more": share >= 0.5,
            "template share unknown": share.isna(),
        }
        bars = {trace.name: trace for trace in figure.data if trace.xaxis == axis}
        assert set(bars) == set(bands)
        for name, mask in bands.items():
            values = known.loc[mask, column]
            assert sum(bars[name].y) == values.between(-0.5, 1.5).sum() > 0
            for middle, n in zip(bars[name].x, bars[name].y, strict=True):
                assert n == ((values >= middle - 0.025) & (values < middle + 0.025)).sum()


def test_a_latent_on_the_edge_of_a_band_is_counted_once():
    table = make_latents(60).assign(label="chat_only", dead=False, nu_error=0.1, nu_reconstruction=0.1)
    table["frac_template"] = np.resize([0.0, 1 / 3, 0.5, 1.0], 60)
    figure = template_nu_histogram({"x": table})
    counts = {trace.name: sum(trace.y) for trace in figure.data if trace.xaxis == "x"}
    assert counts == {"below a third on the template": 15, "a third to a half": 15, "half or more": 30}


def test_rank_curves_are_shares_of_common_latents(latents):
    figure = rank_curves({name: most_chat_leaning(table) for name, table in latents.items()})
    for table, curve in zip(latents.values(), figure.data, strict=False):
        pool = table.sort_values("delta_norm", ascending=False, kind="stable")[: round(0.043 * len(table))]
        pool = pool[~pool.dead].dropna(subset=NUS)
        by_norm = pool.index.tolist()
        by_nu = pool.index[np.argsort(pool.nu_error.rank() + pool.nu_reconstruction.rank())].tolist()
        assert len(curve.x) == len(pool) > 10
        for n, (x, y) in enumerate(zip(curve.x, curve.y, strict=True), start=1):
            assert x == pytest.approx(n / len(pool))
            if n in (5, 20, len(pool)):
                assert y == pytest.approx(len(set(by_norm[:n]) & set(by_nu[:n])) / n, abs=1.5 / n)  # ties
    assert figure.data[-1].name == "by chance"


def test_boxes_are_quantiles_of_what_improves(latents):
    table = latents["l1"]
    figure = mse_improvement_boxes({"l1": table})
    for box, label in zip(figure.data, ("shared", "chat_only"), strict=True):
        for i, target in enumerate(TARGETS):
            values = live(table, label)[MSE_PREFIX + target]
            positive = [v for v in values if v > 0]
            drawn = (box.lowerfence[i], box.q1[i], box.median[i], box.q3[i], box.upperfence[i])
            assert drawn == pytest.approx(np.percentile(positive, [5, 25, 50, 75, 95]))
        improvements = live(table, label).filter(like=MSE_PREFIX)
        n_worse = sum(any(v <= 0 for v in row) for row in improvements.to_numpy())
        assert f"{label}: {len(improvements)} judged, {n_worse} at 0 or below for some target" in texts(figure)[0]


def few(table):
    return table[:3]


@pytest.mark.parametrize(
    "spoil", [dead, without_nu, few, lambda t: t[t.label == "base_only"], lambda t: t[t.label == "chat_only"]]
)
def test_no_panel_is_empty_without_a_word(latents, spoil, tmp_path):
    tables = {"x": paper(spoil(latents["l1"]), make_pairs(0))}
    figures = paper_figures(tables)
    for name, figure in figures.items():
        drawn = {(trace.xaxis or "x", trace.yaxis or "y") for trace in figure.data}
        panels = [subplot for subplot in figure.select_xaxes()]
        assert len(drawn) == len(panels), name  # plotly draws no axes that have no trace
        heights = [trace.median if trace.type == "box" else trace.y for trace in figure.data]
        n_values = sum(int(pd.notna(np.asarray(y, dtype=float)).sum()) for y in heights)
        assert n_values > 0 or any("none" in text for text in texts(figure)), name
    numbers = paper_numbers(tables)
    write_paper_tables(tables, tmp_path, numbers)
    write_paper_page(tables, tmp_path / "paper.html", numbers, figures)
    json.loads((tmp_path / "paper.json").read_text(), parse_constant=pytest.fail)
