"""Laws of the explorer in a browser: it shows what the exploration says, and asks for nothing."""

import html
import json
import re
from dataclasses import replace
from urllib.parse import quote

import numpy as np
import pytest

from sae_lens_crosscoder.report import Exploration, write_explorer
from tests.browser import Browser, needs_chromium
from tests.report.explorations import make_exploration
from tests.report.hostile_explorations import LATENT, N_EXAMPLES, N, shown
from tests.report.made_up import HOSTILE, make_table


@pytest.fixture(scope="module")
def browser():
    with Browser() as browser:
        yield browser


@pytest.fixture
def open_page(browser, path):
    """Opens the page; whatever happens then, it must be the only request, and nothing may have gone wrong."""

    def open_at(hash=""):
        browser.errors.clear()
        browser.open(f"{path.as_uri()}{hash}")
        return browser

    yield open_at
    assert [url.split("#")[0] for url in browser.requests] == [path.as_uri()]
    assert browser.errors == []


def table_latents(browser):
    """All latents of the table, in its order, by scrolling through it."""
    return browser.evaluate("""(async () => {
      const scroller = document.querySelector(".scroller");
      const found = new Map();
      for (let top = 0; ; top += 300) {
        scroller.scrollTop = top;
        await new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)));
        for (const row of scroller.querySelectorAll("tr[aria-rowindex]"))
          found.set(Number(row.getAttribute("aria-rowindex")), Number(row.querySelector("a").textContent));
        if (top > scroller.scrollHeight) break;
      }
      return [...found].sort(([a], [b]) => a - b).map(([, latent]) => latent);
    })()""")


def n_shown(browser):
    return int(browser.evaluate("document.body.dataset.shown").split()[0])


def in_box(table):
    return ~table.dead & table.nu_error.between(-0.5, 0.2) & (table.nu_reconstruction <= 0.5)


@needs_chromium
@pytest.mark.parametrize(
    ("hash", "chosen"),
    [
        ("", lambda t: ~t.dead),
        ("#all=1", lambda t: t.dead | ~t.dead),
        ("#verdict=chat_specific,rare", lambda t: ~t.dead & t.verdict.isin(["chat_specific", "rare"])),
        ("#label=chat_only&delta_norm=0.95..", lambda t: ~t.dead & (t.label == "chat_only") & (t.delta_norm >= 0.95)),
        ("#use=more_in_chat,more_in_base&log_use_ratio=0..", lambda t: ~t.dead & (t.use == "more_in_chat")),
        ("#frac_template=0.7..", lambda t: t.frac_template >= 0.7),
        ("#nu_error=-0.5..0.2&nu_reconstruction=..0.5", in_box),
        ("#q=refusal", lambda t: t.index == 7),
        ("#q=99&all=1&label=nonsense", lambda t: t.index < 0),
    ],
)  # fmt: skip
def test_filters_count_what_pandas_counts(open_page, explorations, hash, chosen):
    table = explorations["l1"].table
    assert n_shown(open_page(hash)) == int(np.sum(chosen(table)))


@needs_chromium
def test_search_finds_what_rows_fire_on_or_speak_for(open_page, explorations):
    exploration = explorations["l1"]
    words = [" ".join((*exploration[j].fires_on(), *exploration[j].writes())).lower() for j in range(N)]
    live = ~exploration.table.dead
    found = [j for j in range(N) if live[j] and ("w17" in words[j] or j == 17) and "w4" in words[j]]
    assert len(found) > 5
    browser = open_page("#q=W4+w17")
    assert sorted(table_latents(browser)) == [j for j in found if "w17" in words[j]]


@needs_chromium
@pytest.mark.parametrize(("sort", "ascending"), [("nu_error", True), ("-frac_template", False)])
def test_rows_come_in_the_order_of_their_numbers(open_page, explorations, sort, ascending):
    table = explorations["l1"].table
    column = sort.removeprefix("-")
    found = table.loc[table_latents(open_page(f"#all=1&sort={sort}"))]
    expected = table.sort_values(column, ascending=ascending)  # missing ones last
    np.testing.assert_array_equal(found[column], expected[column])
    assert sorted(found.index) == list(range(N))


@needs_chromium
@pytest.mark.parametrize(
    ("hash", "said"),
    [
        (f"#latent={N}", f"There is no latent \u201c{N}\u201d: \u201cl1\u201d has latents 0 to {N - 1}."),
        ("#latent=first", "There is no latent \u201cfirst\u201d"),
        ("#c=l2&all=1", "There is no crosscoder \u201cl2\u201d here, so this is \u201cl1\u201d."),
        ("#nu_eror=0..1", "There is no filter \u201cnu_eror\u201d."),
        ("#nu_error=low..1", "\u201clow..1\u201d is no range of nu error, such as 0.9..1."),
        ("#nu_error=1", "\u201c1\u201d is no range of nu error"),
        ("#sort=-loudest", "There is no column \u201cloudest\u201d to sort by."),
        ("#verdict=chat_specific,artefact", "No latent can have the verdict \u201cartefact\u201d."),
        ("#x%E2%80%AEy=%3Cb%3E", "There is no filter \u201cx\ufffdy\u201d."),
    ],
)
def test_what_the_address_says_and_the_page_does_not_know_stands_on_the_page(open_page, hash, said):
    browser, shown = open_page(hash), "document.getElementById('unknown').innerText"
    assert said in browser.evaluate(shown)
    assert browser.evaluate("document.querySelectorAll('#unknown *').length") == 0
    browser.evaluate("document.getElementById('all').click()")  # another filter, so the address is the page's own
    browser.wait("document.getElementById('unknown').hidden")


@needs_chromium
@pytest.mark.parametrize("hash", ["", f"#latent={LATENT}", "#c=l1&nu_error=-.5..1e0&sort=-n_active&verdict=dead&q=<"])
def test_nothing_is_said_of_an_address_that_is_understood(open_page, hash):
    assert open_page(hash).evaluate("document.getElementById('unknown').hidden")


@needs_chromium
def test_a_deep_link_opens_the_latent_and_its_numbers(open_page, explorations):
    browser, table = open_page(f"#latent={LATENT}"), explorations["l1"].table
    assert browser.evaluate("document.body.dataset.shown") == f"latent {LATENT}"
    page = browser.evaluate("document.querySelector('article').innerText").replace("\u2212", "-")
    row = table.loc[LATENT]
    assert page.startswith("\u2190 all latents\nprevious")
    assert f"Latent {LATENT}" in page
    assert row.verdict.replace("_", " ") in page
    assert row.user_label in page
    for text in (f"{row.delta_norm:.3f}", f"{row.nu_error:.2f}", f"[{row.nu_error_low:.2f}, {row.nu_error_high:.2f}]"):
        assert text in page
    live = table.max_activation[~table.dead]
    rank = round(100 * ((live < row.max_activation).mean() + (live == row.max_activation).mean() / 2))
    assert (
        browser.evaluate(
            "[...document.querySelectorAll('.facts dt')].find((dt) => dt.textContent === 'highest activation')"
            ".nextSibling.nextSibling.title"
        )
        == f"above {rank} % of live latents"
    )


@needs_chromium
def test_the_use_of_a_latent_is_shown_with_its_rates_by_model_and_group(open_page, explorations):
    browser, row = open_page(f"#latent={LATENT}"), explorations["l1"].table.loc[LATENT]
    page = browser.evaluate("document.querySelector('article').innerText").replace("\u2212", "-")
    assert row.use.replace("_", " ") in page
    assert f"{row.log_use_ratio:.2f} [{row.log_use_ratio_low:.2f}, {row.log_use_ratio_high:.2f}]" in page
    record = explorations["l1"][LATENT]
    assert np.allclose(record.uses, [[row[f"rate_{model}"] / (g + 2) for g in (0, 1)] for model in ("base", "chat")])
    for model in ("base", "chat"):
        assert f"share of strongly active tokens in each group, {model}" in page
    open_page()
    chips = browser.evaluate("[...document.querySelectorAll('[aria-label=use] button')].map((b) => b.textContent)")
    assert [re.sub(r"\d+$", "", text) for text in chips] == ["use: equal", "use: more in base", "use: more in chat"]


@needs_chromium
def test_examples_are_the_records_token_by_token(open_page, explorations):
    record = explorations["l1"][LATENT]
    strips = open_page(f"#latent={LATENT}").evaluate(
        "[...document.querySelectorAll('.strip')].map((strip) => [...strip.children].map((token) => token.about))"
    )
    expected = [*record.top, *(each for band in reversed(record.quantiles) for each in reversed(band))]
    assert len(strips) == len(expected) == N_EXAMPLES
    for strip, example in zip(strips, expected, strict=True):
        assert [token["text"] for token in strip] == [shown(text) for text in example.texts]
        assert [token["score"] for token in strip] == pytest.approx(example.example.scores.tolist(), rel=1e-3)
        for token, score, shares in zip(strip, example.example.scores, example.example.shares, strict=True):
            assert token["shares"] == (pytest.approx(shares.tolist(), rel=1e-3) if score > 0 else [])


@needs_chromium
def test_examples_have_a_line_per_model_as_dark_as_its_code_alone(open_page, explorations):
    record = explorations["l1"][LATENT]
    strips = open_page(f"#latent={LATENT}").evaluate(
        "[...document.querySelectorAll('.strip')].map((strip) => [...strip.children].map((token) => "
        "[token.about.alone, [...token.children].map((line) => [line.style.getPropertyValue('--track'), "
        "line.className, parseInt(line.style.getPropertyValue('--code')), line.getBoundingClientRect().height])]))"
    )
    expected = [*record.top, *(each for band in reversed(record.quantiles) for each in reversed(band))]
    full, n_lines = expected[0].example.score, 0
    for strip, example in zip(strips, expected, strict=True):
        for (alone, lines), codes in zip(strip, example.alone.tolist(), strict=True):
            assert alone == pytest.approx(codes, rel=6e-3)
            shown = [[str(m), f"share-{m}", code] for m, code in enumerate(codes) if code > 0]
            n_lines += len(shown)
            for line, (track, name, code) in zip(lines, shown, strict=True):
                assert line[:2] == [track, name]
                assert line[2] == pytest.approx(14 + 64 * min(1, code / full), abs=1)
                assert line[3] == 3
    assert n_lines > 10


@needs_chromium
def test_models_of_different_widths_have_no_line_and_the_page_says_so(browser, explorations, tmp_path):
    exploration = replace(explorations["l1"], codes=None)
    path = write_explorer({"a": exploration}, tmp_path / "e.html")
    browser.open(f"{path.as_uri()}#latent={LATENT}")
    page = "document.querySelector('article').innerText"
    assert browser.evaluate("document.querySelectorAll('.strip i').length") == 0
    assert "chat alone" not in browser.evaluate(page)
    exploration.examples.manifest["d_models"] = [4, 8]
    try:
        write_explorer({"a": exploration}, path)
    finally:
        exploration.examples.manifest["d_models"] = [4, 4]
    browser.open(f"{path.as_uri()}#latent={LATENT}")
    assert "different widths, so the code of one model alone is undefined" in browser.evaluate(page)


@needs_chromium
def test_the_keyboard_walks_through_the_filtered_latents(open_page):
    browser = open_page("#verdict=shared&sort=-max_activation")
    order = table_latents(browser)
    browser.evaluate("document.querySelector('.scroller').scrollTop = 0")

    def press(*keys):
        for key in keys:
            browser.press(key)

    def showing(what):
        browser.wait(f"document.body.dataset.shown === {json.dumps(what)}")

    press("j", "j", "k", "Enter")
    showing(f"latent {order[1]}")
    press("j")
    showing(f"latent {order[2]}")
    press("k")
    showing(f"latent {order[1]}")
    assert "2 of" in browser.evaluate("document.querySelector('.steps').textContent")
    browser.evaluate("history.back()")
    showing(f"latent {order[2]}")
    press("Escape")
    showing(f"{len(order)} latents")
    press("?")
    assert browser.evaluate("document.getElementById('help').open")
    press("Escape")
    browser.wait("!document.getElementById('help').open")
    press("/")
    assert browser.evaluate("document.activeElement.id") == "search"
    press("7", "Enter")
    assert browser.evaluate("location.hash").startswith("#q=7&verdict=shared")


@needs_chromium
def test_dragging_over_a_figure_filters_and_a_click_undoes_it(open_page, explorations):
    table = explorations["l1"].table
    browser = open_page()
    everything = n_shown(browser)
    boxes = """[...document.querySelectorAll(".cover")].map((cover) => {
      const box = cover.getBoundingClientRect();
      return [box.x, box.y, box.width, box.height];
    })"""
    (x, y, width, height), (u, v, wide, high) = browser.evaluate(boxes)
    browser.drag((x + 0.5 * width, y + 20), (x + 0.8 * width, y + height - 5))
    browser.wait(f"document.body.dataset.shown !== '{everything} latents'")
    low, high_end = map(
        float, re.search(r"delta_norm=([\d.]+?)\.\.([\d.]+)", browser.evaluate("location.hash")).groups()
    )
    assert (low, high_end) == (pytest.approx(0.5, abs=0.01), pytest.approx(0.8, abs=0.01))
    inside = ~table.dead & table.delta_norm.between(low, high_end)
    assert n_shown(browser) == inside.sum()
    browser.drag((u + 0.1 * wide, v + 0.1 * high), (u + 0.9 * wide, v + 0.9 * high))
    browser.wait(f"document.body.dataset.shown !== '{inside.sum()} latents'")
    ranges = dict(re.findall(r"(nu_\w+)=([\d.-]+\.\.[\d.-]+)", browser.evaluate("location.hash")))
    for name, text in ranges.items():
        inside &= table[name].between(*map(float, re.fullmatch(r"(.*?)\.\.(.*)", text).groups()))
    assert len(ranges) == 2
    assert n_shown(browser) == inside.sum() > 0
    for at in ((x + 3, y + 30), (u + 3, v + 30)):
        browser.drag(at, at)
    browser.wait(f"document.body.dataset.shown === '{everything} latents'")


@needs_chromium
@pytest.mark.parametrize("first", [0, 100])  # Chromium lets a page change its address 200 times in ten seconds
def test_two_hundred_latents_one_after_another(open_page, explorations, first):
    browser = open_page(f"#all=1&sort=latent&latent={first}")
    pages = browser.evaluate(f"""(async () => {{
      const pages = [];
      for (let j = {first}; j < {first + 100}; j++) {{
        while (document.body.dataset.shown !== `latent ${{j}}`) await new Promise((later) => setTimeout(later));
        pages.push([document.querySelector("h2").firstChild.textContent, document.querySelectorAll(".strip").length]);
        if (j < {first + 99}) document.body.dispatchEvent(new KeyboardEvent("keydown", {{ key: "j", bubbles: true }}));
      }}
      return pages;
    }})()""")
    dead = explorations["l1"].table.dead
    assert pages == [[f"Latent {j}", 0 if dead[j] else N_EXAMPLES] for j in range(first, first + 100)]


@needs_chromium
def test_hostile_names_and_tokens_are_text(open_page):
    shown = HOSTILE.replace("\u202e", r"\u202e").replace("\0", r"\u0000")
    browser = open_page(f"#c={quote(shown)}")
    assert n_shown(browser) < 41
    assert browser.evaluate("document.querySelector('[aria-current]').textContent") == shown
    browser = open_page(f"#latent={LATENT}")
    assert browser.evaluate("window.hacked") is None
    assert browser.evaluate("document.querySelectorAll('img, iframe, object, b script, main script').length") == 0
    assert not re.search("[\u202a-\u202e\u2066-\u2069\0]", browser.evaluate("document.body.innerText"))


@needs_chromium
def test_what_was_not_looked_at_is_not_shown(browser, tmp_path):
    table = make_table(50)[["delta_norm", "label"]]
    path = write_explorer({"bare": Exploration(table)}, tmp_path / "bare.html")
    browser.errors.clear()
    browser.open(path.as_uri())
    assert n_shown(browser) == 50
    assert browser.evaluate("document.querySelectorAll('.latent-table th').length") == 3
    assert browser.evaluate("document.getElementById('scatter').hidden")
    browser.open(f"{path.as_uri()}#latent=49")
    sections = browser.evaluate("[...document.querySelectorAll('article h3')].map((h) => h.textContent)")
    assert sections == ["Where it writes", "When it fires"]
    assert browser.errors == []


@needs_chromium
def test_a_latent_that_is_on_elsewhere_but_not_in_what_was_looked_at_has_empty_bars(browser, tmp_path):
    exploration = make_exploration(tmp_path, 20)
    latent = int(exploration.table.n_active.argmax())
    exploration.profiles.histogram[latent] = 0
    path = write_explorer({"few": exploration}, tmp_path / "few.html")
    browser.errors.clear()
    browser.open(f"{path.as_uri()}#latent={latent}")
    (drawn,) = browser.evaluate("[...document.querySelectorAll('.small-bars path')].map((p) => p.getAttribute('d'))")[
        :1
    ]
    assert drawn.count("v0h") == exploration.profiles.histogram.shape[1]
    assert browser.errors == []


@needs_chromium
def test_it_works_in_a_sandboxed_frame(browser, path, tmp_path):
    frame = (
        f'<iframe sandbox="allow-scripts" width="1200" height="800" srcdoc="{html.escape(path.read_text("utf-8"))}">'
    )
    outer = tmp_path / "outer.html"
    outer.write_text(f'<body data-shown="frame">{frame}</iframe>', "utf-8")
    browser.errors.clear()
    browser.open(outer.as_uri())
    with browser.frame() as inside:
        inside.wait("document.body?.dataset.shown?.endsWith('latents')")
        inside.evaluate("document.querySelector('.latent-table tbody a').click()")
        inside.wait("document.body.dataset.shown.startsWith('latent ')")
        inside.evaluate("document.querySelector('article nav a').click()")
        inside.wait("document.body.dataset.shown.endsWith('latents')")
    assert browser.errors == []
    assert [url for url in browser.requests if url.startswith("http")] == []
