"""Laws of the paper's report: every panel holds the numbers of the tables, and the paper's own are told apart."""

import html
import json
import re
import shutil
import struct
import warnings
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.analysis.diagnosis.diagnosis import Diagnosis
from sae_lens_crosscoder.analysis.paper.paper_tables import MSE_PREFIX, PaperTables
from sae_lens_crosscoder.report import write_images
from sae_lens_crosscoder.report.figures import images
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
from sae_lens_crosscoder.report.paper.numbers import OURS, THEIRS, most_chat_leaning, paper_numbers
from sae_lens_crosscoder.report.paper.page import paper_figures, write_paper_page
from sae_lens_crosscoder.report.paper.tables import write_paper_tables
from tests.analysis.conftest import random_activations, random_crosscoder
from tests.report.test_report import BIDI, HOSTILE, Page, dead, diagnoses, make_manifest, make_table, texts, without_nu

NUS = ["nu_error", "nu_reconstruction"]


def make_latents(n=1000, seed=0):
    """A table of `paper_tables`, some values of every kind missing."""
    table, rng = make_table(n, seed), np.random.default_rng(seed + 100)
    table["cos_sim"] = np.where(rng.random(n) < 0.1, np.nan, rng.uniform(-1, 1, n))
    table["frequency"] = table.n_active / 20_000
    table["frac_template"] = np.where(table.dead | (rng.random(n) < 0.2), np.nan, rng.random(n))
    for target in TARGETS:
        value = rng.lognormal(-7, 2, n) * np.where(rng.random(n) < 0.1, -1, 1)
        table[MSE_PREFIX + target] = np.where(table.dead, np.nan, value)
    return table


def paper(table, pairs, **fields):
    manifest = {**make_manifest(), "fve": {"base": 0.9, "chat": 0.8, "pooled": 0.85}, "l0": 7.5, **fields}
    return PaperTables(Diagnosis(table, manifest), pairs)


def make_pairs(n=3):
    pairs = pd.DataFrame(
        {"chat_latent": range(n), "base_latent": range(10, 10 + n), "cosine": np.linspace(0.91, 0.99, n)}
    )
    return pairs.assign(isolated=[i % 2 == 0 for i in range(n)], divergence=np.linspace(0, 1, n))


@pytest.fixture(scope="module")
def latents():
    return {"l1": make_latents(seed=0), "batchtopk": make_latents(seed=1)}


@pytest.fixture(scope="module")
def tables(latents):
    return {
        "l1": paper(latents["l1"], make_pairs()),
        "batchtopk": paper(latents["batchtopk"], make_pairs(0)),
    }


def live(table, label):
    return table[~table.dead & (table.label == label)]


# --- figures --------------------------------------------------------------------------------------


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


# --- numbers --------------------------------------------------------------------------------------


def test_our_numbers_are_those_of_the_tables(tables):
    numbers = paper_numbers(tables)
    for name, each in tables.items():
        ours, table = numbers[OURS, name], each.latents
        for label in ("base_only", "chat_only", "shared", "other"):
            assert ours["classes", label] == (table.label == label).sum()
        assert ours["classes", "shared, share of all latents"] == pytest.approx((table.label == "shared").mean())
        assert ours["classes", "dead, share of all latents"] == table.dead.sum() / len(table)
        assert ours["reconstruction"].tolist() == [0.9, 0.8, 0.85, 7.5]
        chat_only, shared = live(table, "chat_only"), live(table, "shared")
        known = chat_only.dropna(subset=NUS)
        for limit in (0.2, 0.5):
            assert ours["thresholds", f"chat_only with both nu below {limit}"] == (known[NUS] < limit).all(axis=1).sum()
        genuine = ((known.nu_error < 0.2) & (known.nu_reconstruction < 0.5)).sum()
        assert ours["thresholds", "chat_only with nu_error < 0.2 and nu_reconstruction < 0.5"] == genuine
        close = [cosine > 0.9 for cosine in shared.cos_sim if not np.isnan(cosine)]
        assert ours["cosines"].iloc[0] == pytest.approx(sum(close) / len(close))
        assert ours["frequencies"].tolist() == [chat_only.frequency.median(), shared.frequency.median()]
        shares = chat_only.frac_template.dropna()
        assert ours["template"].tolist() == pytest.approx([(shares >= 0.5).mean(), (shares >= 1 / 3).mean()])
        nu, frequency = chat_only.dropna(subset=["nu_error"])[["nu_error", "frequency"]].rank().T.to_numpy()
        spearman = np.corrcoef(nu, frequency)[0, 1]
        assert ours["correlations", "Spearman of nu_error with frequency, chat_only"] == pytest.approx(spearman)
    assert numbers[OURS, "l1"]["pairs"].tolist() == [3, 2, 0.5]
    assert numbers[OURS, "batchtopk"]["pairs"].tolist()[:2] == [0, 0]
    assert np.isnan(numbers[OURS, "batchtopk"]["pairs"].iloc[2])


def test_the_papers_numbers_stand_only_where_it_has_them(tables):
    theirs = paper_numbers(tables)[THEIRS]
    by_section = {name: rows.notna().any().tolist() for name, rows in theirs.groupby(level="section")}
    assert by_section == {
        "classes": [True, True, True],
        "reconstruction": [True, True, False],
        "thresholds": [False, False, False],
        "overlap": [True, True, True],
        "cosines": [True, True, False],
        "frequencies": [False, False, False],
        "template": [False, True, False],
        "correlations": [True, True, False],
        "pairs": [True, True, False],
    }
    assert theirs.loc[("classes", "chat_only")].tolist() == [3176, 134, 265]
    assert theirs.loc[("classes", "other")].tolist() == [None, None, 1369]
    assert theirs.loc[("classes", "chat_only, share of all latents"), "L1"] == 3176 / 73_728
    assert theirs.loc[("overlap", "chat_only in the central 95 % of shared")].tolist() == [0.18, 0, 0.177]
    assert theirs.loc[("reconstruction", "FVE of both")].tolist() == [0.844, 0.876, None]


def test_the_files_hold_every_number_and_latent(tables, tmp_path):
    numbers = paper_numbers(tables)
    write_paper_tables(tables, tmp_path, numbers)
    content = json.loads((tmp_path / "paper.json").read_text(), parse_constant=pytest.fail)
    assert len(content["numbers"]) == len(numbers)
    for row, (index, expected) in zip(content["numbers"], numbers.iterrows(), strict=True):
        assert (row["section"], row["quantity"]) == index
        for key, of in (("this_crosscoder", OURS), ("paper_gemma_2_2b", THEIRS)):
            for name, value in row[key].items():
                unknown = expected[of, name] is None or expected[of, name] != expected[of, name]
                assert value is None if unknown else value == pytest.approx(expected[of, name])
    l1 = content["crosscoders"]["l1"]
    assert l1["manifest"]["fve"] == {"base": 0.9, "chat": 0.8, "pooled": 0.85}
    assert [row["limit"] for row in l1["counts_below"]] == pytest.approx([i / 100 for i in range(101)])
    assert [row["coverage"] for row in l1["overlap_with_shared"]] == [0.95, 0.5]
    assert [pair["divergence"] for pair in l1["pairs"]] == [0, 0.5, 1]
    assert {row["latents"] for row in l1["correlations"]} == {"chat_only", "most chat-leaning"}
    assert len(l1["mse_improvement"]) == 2 * len(TARGETS)
    written = pd.read_parquet(tmp_path / "latents.parquet")
    for name, each in tables.items():
        pd.testing.assert_frame_equal(written.loc[name], each.latents)


# --- page -----------------------------------------------------------------------------------------


def written_page(tables, folder):
    numbers, figures = paper_numbers(tables), paper_figures(tables)
    write_paper_page(tables, folder / "paper.html", numbers, figures)
    return Page((folder / "paper.html").read_text(encoding="utf-8")), figures


def test_the_page_shows_every_figure_and_tells_ours_from_the_papers(tables, tmp_path):
    page, figures = written_page(tables, tmp_path)
    assert [json.dumps(shown) for shown in page.figures] == [
        json.dumps(json.loads(f.to_json())) for f in figures.values()
    ]
    ours = [f"this crosscoder: {name}" for name in tables]
    l1, topk, kissane = (f"paper, Gemma 2 2B: {name}" for name in ("L1", "BatchTopK", "Kissane et al."))
    heads = [row for row in page.rows if row[1:3] == ours]
    assert heads[0] == ["", *ours, l1, topk, kissane]
    assert heads.count(["", *ours]) == 2  # where the paper has no numbers
    assert heads.count(["", *ours, topk]) == 1
    counts = [str((each.latents.label == "chat_only").sum()) for each in tables.values()]
    assert ["chat_only", *counts, "3,176", "134", "265"] in page.rows
    assert ["those that are isolated", "2", "0", "109", "0"] in page.rows


def test_hostile_names_are_text_and_name_no_file(tables, tmp_path):
    spoilt = paper(tables["l1"].latents, make_pairs(), models=[HOSTILE], **{HOSTILE: HOSTILE})
    hostile = {HOSTILE: spoilt, "../../x": tables["batchtopk"]}
    page, _ = written_page(hostile, tmp_path)
    write_paper_tables(hostile, tmp_path, paper_numbers(hostile))
    assert {path.name for path in tmp_path.iterdir()} == {"paper.html", "paper.json", "latents.parquet"}
    assert not (tmp_path.parent / "x").exists()
    source = (tmp_path / "paper.html").read_text(encoding="utf-8")
    assert "<script>alert" not in source
    assert BIDI not in source
    for tag, attrs in page.elements:
        assert tag not in ("img", "iframe", "a", "form")
        assert not any(name in ("src", "srcset", "action") or name.startswith("on") for name in attrs)
    shown = json.dumps(page.figures, ensure_ascii=False)
    assert "&lt;script&gt;alert(1)" in shown
    assert not re.search(r"<(script|img|a)\b", shown)
    assert page.text.count(HOSTILE.replace(BIDI, r"\u202e").replace("\0", r"\u0000")) > 10


# --- images and the whole -------------------------------------------------------------------------

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
needs_a_browser = pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason="no Chrome or Chromium")


@needs_a_browser
def test_images_show_the_figure(latents, tmp_path):
    figures = {"cosines": cosine_histogram({"<b>name": latents["l1"]})}
    png, svg = write_images(figures, tmp_path, ("png", "svg"))
    assert (png.name, svg.name) == ("cosines.png", "cosines.svg")
    header = png.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    height = figures["cosines"].layout.height
    assert struct.unpack(">II", header[16:]) == (2200, 2 * height)
    drawn = svg.read_text()
    assert "<b>" not in drawn
    for text in ("<b>name", "cosine of the base and the chat decoder", "chat_only", "share of the class"):
        assert text in html.unescape(drawn)
    assert 'width="1100"' in drawn
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", drawn)


def test_without_kaleido_all_else_is_written_and_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "find_spec", lambda name: None)
    crosscoder, x = random_crosscoder(), list(random_activations(300).split(50))
    with pytest.warns(UserWarning, match=r"No static images in .*sae-lens-crosscoder\[images\]"):
        tables = slc.paper.paper_report(crosscoder, slc.EvalData(activations=x), output_path=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"paper.html", "paper.json", "latents.parquet"}
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "latents.parquet").loc["crosscoder"], tables["crosscoder"].latents
    )


def test_nothing_is_missed_when_no_images_are_wanted(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "find_spec", lambda name: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        slc.paper.paper_report(
            random_crosscoder(), slc.EvalData(activations=random_activations()), output_path=tmp_path, images=()
        )
    assert not (tmp_path / "figures").exists()


@pytest.mark.parametrize(
    ("crosscoders", "options", "message"),
    [
        (
            random_crosscoder(),
            {"images": ("jpg",)},
            r"images=\('jpg',\) must be a list of formats",
        ),
        (random_crosscoder(), {"images": "png"}, "images='png' must be a list of formats"),
        ({}, {}, "`crosscoders` is empty"),
        (random_crosscoder(), {"activations": iter(())}, "can be read only once"),
    ],
)
def test_wrong_input_is_refused_before_anything_runs(crosscoders, options, message, tmp_path):
    data = slc.EvalData(activations=options.pop("activations", random_activations()))
    unchecked = getattr(slc.paper.paper_report, "__wrapped__", slc.paper.paper_report)
    with pytest.raises(ValueError, match=message):
        unchecked(crosscoders, data, output_path=tmp_path, **options)
    assert not list(tmp_path.iterdir())
