"""Laws of the report's page: it shows what the table says, and runs nothing but its own scripts."""

import base64
import copy
import hashlib
import json
import re

import numpy as np
import pandas as pd
import pytest
from plotly.offline import get_plotlyjs

from sae_lens_crosscoder.analysis.diagnosis.diagnosis import Diagnosis
from sae_lens_crosscoder.report import delta_norm_histogram, nu_scatter, write_report
from tests.report.made_up import BIDI, HOSTILE, Page, diagnoses, make_use


def test_drawing_changes_nothing(tables, tmp_path):
    given = diagnoses(tables)
    before = {name: (each.latents.copy(), copy.deepcopy(each.manifest)) for name, each in given.items()}
    figures = [delta_norm_histogram(given).to_json(), nu_scatter(given).to_json()]
    path = write_report(given, tmp_path / "r.html", pd.DataFrame({"l1": {"L0": "8"}}))
    first = path.read_bytes()
    for name, (table, manifest) in before.items():
        pd.testing.assert_frame_equal(given[name].latents, table)
        assert given[name].manifest == manifest
    assert [delta_norm_histogram(given).to_json(), nu_scatter(given).to_json()] == figures
    assert [json.dumps(block) for block in Page(first.decode()).figures] == [json.dumps(json.loads(f)) for f in figures]
    assert write_report(given, path, pd.DataFrame({"l1": {"L0": "8"}})).read_bytes() == first


@pytest.fixture
def hostile_page(tables, tmp_path):
    spoilt = Diagnosis(tables["l1"], {"models": [HOSTILE, None], HOSTILE: {HOSTILE: HOSTILE}})
    hostile = {HOSTILE: spoilt, **diagnoses({"$x$ %{x} <a href='javascript:alert(1)'>": tables["batchtopk"]})}
    comparison = pd.DataFrame({name: {HOSTILE: HOSTILE} for name in hostile})
    concepts = pd.DataFrame({HOSTILE: [HOSTILE], "auroc": [0.5]})
    path = write_report(hostile, tmp_path / "new" / "r.html", comparison, concepts, title=HOSTILE, notes=[HOSTILE])
    return path.read_text(encoding="utf-8")


def test_nothing_in_the_page_makes_a_request(hostile_page):
    page = Page(hostile_page)
    for tag, attrs in page.elements:
        assert tag not in ("img", "iframe", "object", "embed", "base", "form", "a")
        for name, value in attrs.items():
            assert name not in ("src", "srcset", "action", "formaction", "data", "poster"), (tag, attrs)
            assert not name.startswith("on"), (tag, attrs)
            assert name != "href" or value == "data:,"
            assert "url(" not in (value or "")
    assert "url(" not in page.styles
    assert "@import" not in page.styles


def test_the_policy_lets_the_two_scripts_run_and_nothing_else(hostile_page):
    page = Page(hostile_page)
    (policy,) = (attrs["content"] for _, attrs in page.elements if "http-equiv" in attrs)
    directives = dict(directive.split(" ", 1) for directive in policy.split("; "))
    assert directives.pop("default-src") == "'none'"
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in page.scripts]
    assert len(hashes) == 2
    assert directives.pop("script-src") == " ".join(f"'sha256-{name}'" for name in hashes)
    allowed = {"style-src": "'unsafe-inline'", "img-src": "data: blob:", "base-uri": "'none'", "form-action": "'none'"}
    assert directives == allowed
    tags = [tag for tag, _ in page.elements]
    assert [tag for tag in tags if tag in ("meta", "script", "style")][:2] == ["meta", "meta"]  # before any script


def test_hostile_names_come_out_as_text(hostile_page):
    page = Page(hostile_page)
    assert [tag for tag, _ in page.elements].count("script") == 4  # plotly.js, two figures, page.js
    assert page.text.count(HOSTILE.replace(BIDI, r"\u202e").replace("\0", r"\u0000")) >= 10
    ours = hostile_page.replace(get_plotlyjs(), "")
    assert len(ours) < len(hostile_page)
    assert "<script>alert" not in ours
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200e\u200f]", ours)
    for block in re.findall('<script type="application/json">(.*)</script>', ours):
        assert not re.search("[<>]", block)
    for figure in page.figures:
        shown = json.dumps(figure, ensure_ascii=False)
        assert "&lt;script&gt;alert(1)" in shown
        assert not re.search(r"<(script|img|a)\b", shown)


@pytest.mark.parametrize("code", [0, 0x1B, 0x85, 0x2028, 0x200F, 0x202E, 0x2066, 0xD800, 0xDFFF])
def test_characters_that_are_not_seen_or_cannot_be_written_become_escapes(tables, tmp_path, code):
    hostile = diagnoses({"batchtopk": tables["batchtopk"]})
    comparison = pd.DataFrame({"batchtopk": {"row": 1}})
    path = write_report(hostile, tmp_path / "r.html", comparison, title=f"a{chr(code)}b", notes=[f"c{chr(code)}d"])
    ours = path.read_text(encoding="utf-8").replace(get_plotlyjs(), "")
    assert f"<title>a\\u{code:04x}b</title>" in ours
    assert f"<li>c\\u{code:04x}d</li>" in ours


def test_sections_come_in_order_and_concepts_only_if_given(tables, tmp_path):
    comparison = pd.DataFrame({name: {"L0": "8.1"} for name in tables})
    for concepts in (None, pd.DataFrame({"auroc": [0.5]})):
        path = write_report(diagnoses(tables), tmp_path / "r.html", comparison, concepts, notes=["Note one"])
        source = path.read_text("utf-8")
        heads = re.findall("<h2>([^<]*)</h2>", source)
        expected = ["Side by side", "How to read the numbers", "Where latents write"]
        expected += ["Which chat-only latents are genuine", "Known concepts", "The 30 most chat-only latents"]
        expected += ["What this was made from", "Notes"]
        assert heads == [head for head in expected if concepts is not None or head != "Known concepts"]
        assert "Note one" in source
        assert "<b>l1</b>: 7 latents &amp; more." in source
        assert "12,345" in source


def test_tables_show_the_numbers_of_the_frame(tables, tmp_path):
    table = tables["l1"].sample(frac=1, random_state=3)
    concepts = pd.DataFrame({"concept": ["a", "b"], "auroc": [0.987, np.nan], "latent": [1234, 5]}).set_index("concept")
    comparison = pd.DataFrame({"l1": {"L0": "8.1"}})
    path = write_report(diagnoses({"l1": table}), tmp_path / "r.html", comparison, concepts)
    rows = Page(path.read_text("utf-8")).rows
    assert ["L0", "8.1"] in rows
    assert ["a", "0.99", "1234"] in rows
    assert ["b", "\u2013", "5"] in rows
    top = rows[rows.index(["b", "\u2013", "5"]) + 2 :]
    assert len(top) == 30
    alive = table[~table.dead]
    cutoff = sorted(alive.delta_norm, reverse=True)[29]
    assert {int(row[0]) for row in top} <= set(alive.index[alive.delta_norm >= cutoff])
    for row in top:
        latent = table.loc[int(row[0])]
        assert float(row[1]) == pytest.approx(latent.delta_norm, abs=6e-4)
        assert row[2:4] == [latent.label, latent.verdict]
        for nu, interval, name in ((row[4], row[5], "nu_error"), (row[6], row[7], "nu_reconstruction")):
            if np.isnan(latent[name]):
                assert (nu, interval) == ("\u2013", "")
                continue
            shown = [float(x) for x in re.findall(r"-?[\d.]+", f"{nu} {interval}".replace("\u2212", "-"))]
            assert shown == pytest.approx([latent[name], latent[f"{name}_low"], latent[f"{name}_high"]], abs=6e-3)
        assert float(row[8]) == pytest.approx(latent.nu_free, abs=6e-3)
        q = "\u2013" if np.isnan(latent.q_value) else f"{latent.q_value:.2f}"
        assert row[9] == q
        assert row[10] == f"{latent.n_active:,}"
    deltas = [float(row[1]) for row in top]
    assert deltas == sorted(deltas, reverse=True)


def test_the_table_of_concepts_says_what_it_shows(tables, tmp_path):
    concepts = pd.DataFrame({"concept": ["a"], "latent": [3], "coverage": [0.5]}).set_index("concept")
    comparison = pd.DataFrame({"l1": {"L0": "8"}})
    text = write_report(diagnoses(tables), tmp_path / "r.html", comparison, concepts).read_text("utf-8")
    (caption,) = re.findall("<caption>(.*?)</caption>", text)
    assert "the latent that writes the largest share of the difference" in caption
    assert "coverage: the share that all latents together write." in caption
    assert "auroc" not in caption  # which this table has not


def test_named_latents_have_a_section_only_where_they_were_looked_for(tables, tmp_path):
    comparison = pd.DataFrame({"l1": ["1"]})
    rows = {"class": "turned", "rho": 0.31, "q_rho": 0.01, "q_written": 0.02, "written": 0.0, "named": False}
    table = tables["l1"].assign(**rows)
    table.loc[[3, 5], "named"], table.loc[[3, 5], "written"] = True, [0.01, 0.02]
    title = "Turned latents that carry what changed"
    text = write_report(diagnoses({"l1": table}), tmp_path / "r.html", comparison).read_text()
    section = text.split(title)[1].split("<h2>")[0]
    assert section.index(">5</th>") < section.index(">3</th>")
    assert section.count("turned</td>") == 2
    assert title not in write_report(diagnoses({"l1": tables["l1"]}), tmp_path / "r.html", comparison).read_text()


def test_latents_used_differently_have_a_section_only_where_their_use_was_read(tables, tmp_path):
    comparison, use = pd.DataFrame({"l1": ["1"]}), make_use(len(tables["l1"]))
    table = tables["l1"].join(use.latents[[*use.columns]])
    text = write_report(diagnoses({"l1": table}), tmp_path / "r.html", comparison).read_text()
    section = text.split("Latents used differently")[1].split("<h2>")[0]
    assert section.count("more_in_") == 30
    largest = use.latents.log_use_ratio.abs().nlargest(30).index
    places = [section.index(f">{latent}</th>") for latent in largest]
    assert places == sorted(places)
    plain = write_report(diagnoses({"l1": tables["l1"]}), tmp_path / "r.html", comparison).read_text()
    assert "Latents used differently" not in plain


def test_it_says_what_was_left_out_as_dominant_and_the_fve_with_it(tables, tmp_path):
    made = diagnoses(tables)
    name, diagnosis = next(iter(made.items()))
    shares = {"base": 0.9, "chat": 0.91}
    fve = {"base": 0.99, "chat": 0.98, "pooled": 0.985, "difference": 0.5}
    manifest = {
        "max_norms": [5.0, 7.0],
        "dominant_tokens": {"n_tokens": 2000, "n_left_out": 2, "frac_energy": shares},
        "fve_all_tokens": fve,
    }
    made[name] = Diagnosis(diagnosis.latents, {**diagnosis.manifest, **manifest})
    page = write_report(made, tmp_path / "r.html", pd.DataFrame({"l1": {"L0": "8"}})).read_text("utf-8")
    assert "left out 2 of 2,000 (0.1 %)" in page
    assert "FVE with them: 0.990 (base), 0.980 (chat)" in page
    assert page.count("Tokens that dominate") == 1  # nothing is said of the others
