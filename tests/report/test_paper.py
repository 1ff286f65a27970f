"""Laws of the paper's report: it holds the numbers of the tables, and tells ours from the paper's own."""

import html
import json
import re
import shutil
import struct
import warnings
from inspect import unwrap

import numpy as np
import pandas as pd
import pytest

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.report import write_images
from sae_lens_crosscoder.report.figures import images
from sae_lens_crosscoder.report.figures.class_histograms import (
    cosine_histogram,
)
from sae_lens_crosscoder.report.figures.nu_histograms import (
    TARGETS,
)
from sae_lens_crosscoder.report.paper.numbers import OURS, THEIRS, paper_numbers
from sae_lens_crosscoder.report.paper.page import paper_figures, write_paper_page
from sae_lens_crosscoder.report.paper.tables import write_paper_tables
from tests.analysis.conftest import random_activations, random_crosscoder
from tests.report.made_up import BIDI, HOSTILE, Page
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


# --- numbers --------------------------------------------------------------------------------------


def test_our_numbers_are_those_of_the_tables(tables):
    numbers = paper_numbers(tables)
    for name, each in tables.items():
        ours, table = numbers[OURS, name], each.latents
        for label in ("base_only", "chat_only", "shared", "other"):
            assert ours["classes", label] == (table.label == label).sum()
        assert ours["classes", "shared, share of all latents"] == pytest.approx((table.label == "shared").mean())
        assert ours["classes", "dead, share of all latents"] == table.dead.sum() / len(table)
        assert ours["reconstruction"].tolist() == [0.9, 0.8, 0.85, 0.6, 7.5]
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
    assert l1["manifest"]["fve"] == {"base": 0.9, "chat": 0.8, "pooled": 0.85, "difference": 0.6}
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
    unchecked = unwrap(slc.paper.paper_report)
    with pytest.raises(ValueError, match=message):
        unchecked(crosscoders, data, output_path=tmp_path, **options)
    assert not list(tmp_path.iterdir())
