"""Laws of the report: it shows what the table says, counts what it leaves out, runs nothing but its own scripts."""

import base64
import copy
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from plotly.offline import get_plotlyjs

from sae_lens_crosscoder.analysis.diagnosis.classes import CLASS_BORDERS, label
from sae_lens_crosscoder.analysis.diagnosis.diagnosis import Diagnosis
from sae_lens_crosscoder.analysis.diagnosis.verdict import verdict
from sae_lens_crosscoder.report import delta_norm_histogram, nu_scatter, write_report
from sae_lens_crosscoder.report.figures.delta_norm_and_nu import REGIONS

HOSTILE = "<script>alert(1)</script>\"'&quot;\u202e\0gpj</b><img src=http://x onerror=alert(2)>"
BIDI = "\u202e"


def make_table(n=1000, seed=0, bounds="signed"):
    """Latents of every class, some dead, some without nu, some with a nu beyond the axes."""
    rng = np.random.default_rng(seed)
    centre = rng.choice([0.03, 0.25, 0.5, 0.75, 0.97], n, p=[0.1, 0.1, 0.5, 0.1, 0.2])
    table = pd.DataFrame({"delta_norm": (centre + rng.normal(0, 0.03, n)).clip(0, 1)})
    table.index.name = "latent"
    table["n_active"] = rng.integers(1, 2000, n) * (rng.random(n) > 0.1)
    table["dead"] = table.n_active == 0
    table["max_activation"] = rng.exponential(3, n)
    for nu in ("nu_error", "nu_reconstruction"):
        value = rng.normal(0.3, 0.5, n)
        value[(rng.random(n) < 0.1) | table.dead] = np.nan
        table[nu], table[f"{nu}_low"], table[f"{nu}_high"] = value, value - 0.1, value + 0.1
    table["nu_free"], table["q_value"] = rng.random(n), np.where(rng.random(n) < 0.5, rng.random(n), np.nan)
    table["label"] = [label(delta) for delta in table.delta_norm]
    judged = zip(table.label, table.n_active, table.nu_error, table.nu_reconstruction, strict=True)
    table["verdict"] = [verdict(*row, bounds=bounds) for row in judged]
    return table


def make_manifest(bounds="signed"):
    return {
        "conclusion": "7 latents & more",
        "bounds": bounds,
        "models": ["base", "chat"],
        "hook_name": "h",
        "n_tokens": 12345,
        "versions": {"torch": "2"},
    }


def diagnoses(tables, bounds="signed"):
    return {name: Diagnosis(table, make_manifest(bounds)) for name, table in tables.items()}


def without_nu(table):
    return table.assign(nu_error=np.nan, nu_reconstruction=np.nan)


def dead(table):
    return without_nu(table).assign(dead=True, n_active=0, verdict="dead")


@pytest.fixture
def tables():
    return {"l1": make_table(seed=0), "batchtopk": make_table(seed=1)}


def texts(figure):
    return [re.sub("<[^>]*>", " ", annotation.text) for annotation in figure.layout.annotations]


# --- figures --------------------------------------------------------------------------------------


def test_bars_add_up_to_the_live_latents_of_each_class(tables):
    figure = delta_norm_histogram(diagnoses(tables))
    assert len(figure.data) == len(tables)
    for bars, table in zip(figure.data, tables.values(), strict=True):
        assert len(bars.y) == 50
        x, y = np.asarray(bars.x), np.asarray(bars.y)
        alive = table[~table.dead]
        for name, low, high in (("base_only", 0, 0.1), ("shared", 0.4, 0.6), ("chat_only", 0.9, 1)):
            assert y[(x > low) & (x < high)].sum() == (alive.label == name).sum() > 0
        assert y.sum() == len(alive) < len(table)


def test_a_bin_counts_its_latents(tables):
    bars = delta_norm_histogram(diagnoses(tables)).data[0]
    alive = tables["l1"][~tables["l1"].dead]
    for (low, high), y in zip(bars.customdata, bars.y, strict=True):
        assert y == sum(low <= delta < high or delta == high == 1 for delta in alive.delta_norm)


def test_histogram_says_how_many_are_left_out_and_how_many_each_class_has(tables):
    table = tables["l1"]
    table.loc[table.index[table.label == "other"][:3], ["delta_norm", "label"]] = [np.nan, "undefined"]
    said = texts(delta_norm_histogram(diagnoses({"l1": table})))
    alive = table[~table.dead]
    n_undefined = alive.delta_norm.isna().sum()
    assert f"{table.dead.sum()} dead left out, {n_undefined} without Delta_norm left out" in said[0]
    n_of_class = [text.split() for text in said[1:6]]
    assert [name for name, _ in n_of_class] == ["base_only", "other", "shared", "other", "chat_only"]
    assert sum(int(n) for _, n in n_of_class) == alive.delta_norm.notna().sum()
    assert n_of_class[4][1] == str((alive.label == "chat_only").sum())


def test_the_drawn_borders_are_where_the_label_changes(tables):
    for border, left, right in zip(CLASS_BORDERS, REGIONS[:-1], REGIONS[1:], strict=True):
        assert (label(border - 1e-9), label(border + 1e-9)) == (left, right)
    drawn = [shape.x0 for shape in delta_norm_histogram(diagnoses({"l1": tables["l1"]})).layout.shapes]
    assert drawn == list(CLASS_BORDERS)


def test_points_are_the_latents_of_their_verdict(tables):
    figure = nu_scatter(diagnoses({"l1": tables["l1"]}))
    table = tables["l1"].dropna(subset=["nu_error", "nu_reconstruction"])
    expected = {"shared": table[table.label == "shared"]}
    chat_only = table[table.label == "chat_only"]
    expected |= {f"chat_only: {name}": chat_only[chat_only.verdict == name] for name in set(chat_only.verdict)}
    assert {trace.name for trace in figure.data} == set(expected)
    assert len(expected) == 5
    for trace in figure.data:
        rows = expected[trace.name]
        latent, delta, n_active = np.asarray(trace.customdata).T
        np.testing.assert_array_equal(latent, rows.index)
        np.testing.assert_array_equal(delta, rows.delta_norm)
        np.testing.assert_array_equal(n_active, rows.n_active)
        np.testing.assert_array_equal(trace.x, rows.nu_error)
        np.testing.assert_array_equal(trace.y, rows.nu_reconstruction)


def test_scatter_counts_what_is_not_to_be_seen(tables):
    (title,) = (text for text in texts(nu_scatter(diagnoses({"l1": tables["l1"]}))) if "l1" in text)
    beyond = []
    for name in ("shared", "chat_only"):
        latents = tables["l1"][tables["l1"].label == name]
        missing = latents.nu_error.isna() | latents.nu_reconstruction.isna()
        assert f"{name}: {(~missing).sum()} drawn, {missing.sum()} without nu" in title
        inside = latents.nu_error.between(-0.5, 1.5) & latents.nu_reconstruction.between(-0.5, 1.5)
        beyond.append(f"{(~inside & ~missing).sum()} {name}")
    assert f"beyond the axes: {', '.join(beyond)}" in title
    assert not any(text.startswith("0 ") for text in beyond)


def test_a_large_cloud_is_thinned_and_says_so_and_chat_only_is_not():
    table = make_table(16_000)
    figure = nu_scatter(diagnoses({"big": table}))
    n_drawn = {trace.name.split(":")[0]: 0 for trace in figure.data}
    for trace in figure.data:
        n_drawn[trace.name.split(":")[0]] += len(trace.x)
    has_nu = table.dropna(subset=["nu_error", "nu_reconstruction"])
    assert n_drawn == {"shared": 5000, "chat_only": (has_nu.label == "chat_only").sum()}
    assert f"5,000 of {(has_nu.label == 'shared').sum():,} drawn" in texts(figure)[-2]


@pytest.mark.parametrize("bounds", ["signed", "absolute"])
def test_the_box_holds_the_genuine_latents_and_no_artifact(bounds):
    tables = {name: make_table(seed=seed, bounds=bounds) for seed, name in enumerate(("l1", "batchtopk"))}
    both = diagnoses(tables, bounds)
    for name, table in tables.items():
        figure = nu_scatter(diagnoses({name: table}, bounds))
        (box,) = figure.layout.shapes
        assert (box.x1, box.y1) == (0.2, 0.5)
        for trace in figure.data:
            inside = (box.x0 < trace.x) & (trace.x < box.x1) & (box.y0 < trace.y) & (trace.y < box.y1)
            if trace.name == "chat_only: chat_specific":
                assert inside.all()
                assert len(inside) > 10
            elif trace.name in ("chat_only: complete_shrinkage", "chat_only: latent_decoupling"):
                assert not inside.any()
    assert len(nu_scatter(both).layout.shapes) == texts(nu_scatter(both)).count("genuine") == 2


@pytest.mark.parametrize("spoil", [dead, without_nu, lambda table: table[table.label == "base_only"], lambda t: t[:0]])
def test_an_empty_class_says_none(tables, spoil, tmp_path):
    table = spoil(tables["l1"])
    spoilt = {"x": Diagnosis(table, {})}
    assert any("chat_only latents with both nu: none" in text for text in texts(nu_scatter(spoilt)))
    histogram = texts(delta_norm_histogram(spoilt))
    n_chat_only = ((table.label == "chat_only") & ~table.dead).sum()
    assert f"chat_only {n_chat_only or 'none'}" in histogram
    assert ("live latents: none" in histogram) == bool(table.dead.all())
    assert write_report(spoilt, tmp_path / "r.html", pd.DataFrame({"x": {}}), pd.DataFrame()).exists()


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


@pytest.mark.parametrize("draw", [delta_norm_histogram, nu_scatter])
def test_errors_say_what_is_missing(tables, draw):
    with pytest.raises(ValueError, match="`diagnoses` is empty"):
        draw({})
    with pytest.raises(ValueError, match="'l1' has no column delta_norm, label"):
        draw(diagnoses({"l1": tables["l1"].drop(columns=["delta_norm", "label"])}))


# --- page -----------------------------------------------------------------------------------------


class Page(HTMLParser):
    """The page as a browser reads it: elements with attributes, text, scripts, figures, and the cells of its tables."""

    def __init__(self, source):
        super().__init__()
        self.elements, self.text, self.styles, self.scripts, self.figures, self.rows = [], "", "", [], [], []
        self.raw, self.in_cell = None, False
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.raw = dict(attrs).get("type", tag)
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.in_cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self.raw = None
        elif tag in ("td", "th"):
            self.in_cell = False

    def handle_data(self, data):
        if self.raw == "style":
            self.styles += data
        elif self.raw == "script":
            self.scripts.append(data)
        elif self.raw == "application/json":
            self.figures.append(json.loads(data))
        else:
            self.text += data
            if self.in_cell:
                self.rows[-1][-1] += data


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
