"""Pages and views at every width, light and dark: nothing is cut off, and what scrolls shows that it does."""

from pathlib import Path

import pytest

from tests.browser import Browser, needs_chromium
from tests.report.every_page import write_every_page

CUT_OFF = Path(__file__).with_name("cut_off.js").read_text("utf-8")
WIDTHS = (360, 480, 700, 1000, 1300, 1600)
LOADED = "document.readyState === 'complete' && location.protocol === 'file:' && document.body.dataset.shown !== ''"
# Plotly and the explorer draw again, in the next frames.
DRAWN = "new Promise((done) => setTimeout(() => requestAnimationFrame(() => requestAnimationFrame(done)), 50))"
SCROLLS = "[...document.querySelectorAll('*')].some((e) => e.scrollWidth > e.clientWidth + 1)"
PAGES = ("report", "paper", "effects", "first_look", "explorer", "explorer, a latent", "compare", "latent")
CONTRAST = """(() => {
  const light = (colour) => {
    const channel = (value) => (value / 255 <= 0.03928 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(Number).map(channel);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const [ink, paper] = ["color", "backgroundColor"].map((name) => light(getComputedStyle(document.body)[name]));
  return [paper, (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05)];
})()"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    return write_every_page(tmp_path_factory.mktemp("pages"))


@pytest.fixture(scope="module")
def browser():
    with Browser() as browser:
        yield browser


def open_page(browser, pages, name):
    path, address = pages[name]
    browser.errors.clear()
    browser.open(f"{path.as_uri()}{address}", "document.body?.dataset.shown !== undefined" if address else LOADED)


def test_every_page_is_here(pages):
    assert set(pages) == set(PAGES)


@needs_chromium
@pytest.mark.parametrize("name", PAGES)
def test_no_column_is_cut_off_and_what_scrolls_shows_it(browser, pages, name):
    browser.show_in(WIDTHS[-1])
    open_page(browser, pages, name)
    scrolling = 0
    for width in WIDTHS:
        browser.show_in(width, dark=width % 200 == 0)
        browser.evaluate(DRAWN)
        assert (width, browser.evaluate(CUT_OFF)) == (width, [])
        scrolling += browser.evaluate(
            "[...document.querySelectorAll('*')].some((e) => e.scrollWidth > e.clientWidth + 1)"
        )
    assert scrolling or name in ("latent", "explorer, a latent")
    assert browser.errors == []


@needs_chromium
def test_what_is_cut_off_is_seen_by_the_test(browser, pages):
    open_page(browser, pages, "report")
    browser.show_in(360)
    for rule in (
        ".scroll { overflow: visible !important }",
        ".scroll { overflow: hidden !important }",
        ".scroll { background: none !important }",
    ):
        style = f"Object.assign(document.createElement('style'), {{ id: 'bad', textContent: '{rule}' }})"
        browser.evaluate(f"document.head.append({style})")
        assert browser.evaluate(CUT_OFF) != []
        browser.evaluate("document.getElementById('bad').remove()")


@needs_chromium
@pytest.mark.parametrize("name", ["report", "explorer"])
def test_pages_are_readable_in_light_and_dark(browser, pages, name):
    for dark in (False, True):
        browser.show_in(1000, dark=dark)
        open_page(browser, pages, name)
        paper, contrast = browser.evaluate(CONTRAST)
        assert (paper < 0.1) == dark
        assert contrast > 7
