"""Laws of the panel "Try" in a browser: it shows what the routes return, by keyboard too, and shows text as text."""

import json
import threading
import time
from pathlib import Path

import pytest

from tests.browser import Browser, needs_chromium
from tests.serving.conftest import BEARER, TOKEN
from tests.serving.test_server import n_passes, post, until

PROMPT = "so what does anna eat ?"
MESSAGES = [{"role": "user", "content": PROMPT}]
CUT_OFF = Path(__file__).parents[1].joinpath("report", "cut_off.js").read_text("utf-8")
WIDTHS = (360, 480, 700, 1000, 1300, 1600)
IDLE = "!document.getElementById('answer').disabled"
HOSTILE = "<img src=x onerror=\"document.title='bad'\"> \u202e &amp;"
pytestmark = needs_chromium


@pytest.fixture(scope="module")
def browser():
    with Browser() as browser:
        yield browser


@pytest.fixture
def panel(browser, port):
    """The page, with the prompt typed in; whatever happens then, only this server is asked, and nothing goes wrong."""
    browser.show_in(1300)
    browser.errors.clear()
    browser.open(f"http://127.0.0.1:{port}/?token={TOKEN}")
    write(browser, PROMPT)
    yield browser
    assert browser.errors == []
    assert {url.split("/")[2] for url in browser.requests} == {f"127.0.0.1:{port}"}


def write(browser, text):
    browser.evaluate("document.querySelector('#try textarea').select()")
    browser.send("Input.insertText", text=text)


def press(browser, key, modifiers=0):
    code = {"Enter": 13, "ArrowLeft": 37, "ArrowRight": 39, "Tab": 9}[key]
    for kind in ("keyDown", "keyUp"):
        text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
        event = dict(key=key, code=key, windowsVirtualKeyCode=code, modifiers=modifiers, **text)
        browser.send("Input.dispatchKeyEvent", type=kind, **event)


def click(browser, selector, text=None):
    chosen = f"(e) => {json.dumps(text)} === null || e.textContent === {json.dumps(text)}"
    browser.evaluate(f"[...document.querySelectorAll('{selector}')].find({chosen}).click()")


def texts(browser, selector):
    return browser.evaluate(f"[...document.querySelectorAll('{selector}')].map((e) => e.textContent)")


def status(browser):
    return browser.evaluate("document.querySelector('#try .status').textContent")


def test_the_strip_and_the_table_are_what_the_route_returns(panel, port):
    click(panel, "#read")
    panel.wait("document.querySelector('.reading-of table') !== null")
    result = post(port, "latents", {"messages": MESSAGES})[1][-1]
    assert [t.strip() for t in texts(panel, ".reading-of .tok")] == [each["text"].strip() for each in result["tokens"]]
    chosen = max(i for i, token in enumerate(result["tokens"]) if token["top"])
    top = result["tokens"][chosen]["top"]
    assert texts(panel, ".reading-of tbody td:first-child") == [str(each["latent"]) for each in top]
    shown = texts(panel, ".reading-of tbody td:nth-child(2)")
    assert [text.replace("\u2212", "-") for text in shown] == [f"{each['activation']:.2f}" for each in top]
    strip = next(each for each in result["latents"] if each["latent"] == top[0]["latent"])
    on = panel.evaluate("[...document.querySelectorAll('.reading-of .tok')].map((e) => e.classList.contains('on'))")
    assert [i for i, is_on in enumerate(on) if is_on] == strip["tokens"]


def test_the_keyboard_reads_answers_and_moves_over_tokens(panel, port):
    press(panel, "Enter", modifiers=2)  # with Ctrl
    panel.wait(f"document.querySelectorAll('.answer').length === 2 && {IDLE}")
    expected = post(port, "answers", {"messages": MESSAGES, "max_new_tokens": 16})[1][-1]["answers"]
    for text, each in zip(texts(panel, ".answer"), expected, strict=True):
        assert text == each["text"] + ("" if each["ended"] else " \u2026")
    panel.evaluate("document.querySelector('#try textarea').focus()")
    press(panel, "Enter", modifiers=2 + 8)  # with Ctrl and Shift
    panel.wait(f"document.querySelector('.reading-of table') !== null && {IDLE}")
    panel.evaluate("document.querySelector('.reading-of .strip').focus()")
    peak = "[...document.querySelectorAll('.reading-of .tok')].findIndex((e) => e.classList.contains('peak'))"
    at = panel.evaluate(peak)
    press(panel, "ArrowLeft")
    assert panel.evaluate(peak) == at - 1
    press(panel, "ArrowRight")
    assert panel.evaluate(peak) == at
    assert panel.evaluate("document.activeElement.classList.contains('strip')")


def test_edits_are_made_sent_and_removed(panel, port):
    click(panel, "#read")
    panel.wait("document.querySelector('.reading-of table') !== null")
    latent = int(texts(panel, ".reading-of tbody td:first-child")[0])
    click(panel, ".reading-of button", "ablate")
    click(panel, ".reading-of button", "steer")
    panel.evaluate("document.querySelectorAll('.edit select[aria-label=model]')[1].value = 'chat'")
    panel.evaluate("document.querySelectorAll('.edit select[aria-label=model]')[1].dispatchEvent(new Event('change'))")
    click(panel, "#answer")
    panel.wait(f"document.querySelectorAll('.answer').length === 4 && {IDLE}")
    edits = [{"latents": [latent]}, {"latents": [latent], "how": "steer", "model": "chat"}]
    asked = {"messages": MESSAGES, "edits": edits, "max_new_tokens": 16}
    expected = post(port, "answers", asked)[1][-1]["answers"]
    for text, each in zip(texts(panel, ".answer"), expected, strict=True):
        assert text.removesuffix(" \u2026") == (each["text"] or "nothing")
    for _ in range(2):
        click(panel, ".edit button")
    assert texts(panel, ".edit") == []
    panel.evaluate("location.hash = 'latent=3'")
    panel.wait("document.body.dataset.shown === 'latent 3'")
    click(panel, ".latent button", "edit in Try")
    assert [text.split("\u00d7")[0].startswith("latent 3") for text in texts(panel, ".edit")] == [True]
    panel.evaluate("location.hash = 'c=two'")  # another crosscoder, of whose latents no maxima are known
    panel.wait("document.querySelector('.tabs [aria-current]').textContent === 'two'")
    assert texts(panel, ".edit") == []
    click(panel, "#read")
    panel.wait("document.querySelector('.reading-of table') !== null")
    assert "steer" not in texts(panel, ".reading-of button")


def test_a_chat_of_several_turns_and_a_plain_text_are_sent_as_such(panel):
    click(panel, "#add-turn")
    panel.send("Input.insertText", text="bread")
    click(panel, "#add-turn")
    panel.send("Input.insertText", text="where does ben live ?")
    click(panel, "#read")
    panel.wait("document.querySelector('.reading-of table') !== null")
    shown = "".join(texts(panel, ".reading-of .tok"))
    assert shown.index("anna") < shown.index("bread") < shown.index("ben")
    assert shown.count("<sot>") == 4
    click(panel, "#try input[type=checkbox]")
    click(panel, "#read")
    panel.wait("![...document.querySelectorAll('.reading-of .tok')].some((e) => e.textContent.includes('<sot>'))")
    assert "bread" not in "".join(texts(panel, ".reading-of .tok"))


def test_a_refusal_is_shown_and_the_panel_goes_on(panel):
    browser = panel
    write(browser, "a word that it does not have")
    click(browser, "#read")
    browser.wait("document.querySelector('#try .status.error') !== null")
    assert "cannot be tokenized" in status(browser)
    browser.errors.clear()  # the browser notes the status 422
    write(browser, PROMPT)
    click(browser, "#read")
    browser.wait("document.querySelector('.reading-of table') !== null")
    assert status(browser) == ""


def test_waiting_shows_the_position_and_cancel_leaves_the_queue(panel, port, models, monkeypatch):
    stop = threading.Event()

    def slow(asked, tokens):
        while not stop.is_set():
            time.sleep(0.01)
            yield {"event": "text", "model": "base", "edited": False, "text": "x"}

    monkeypatch.setattr(models, "answers", slow)
    others = [post(port, "answers", {"prompt": "anna"}, read=False) for _ in range(2)]
    until(lambda: n_passes(port) == 2)
    click(panel, "#answer")
    panel.wait("document.querySelector('#try .status').textContent === 'waiting: 2 requests before this one'")
    others[1].close()
    panel.wait("document.querySelector('#try .status').textContent === 'waiting: 1 request before this one'")
    assert panel.evaluate("document.getElementById('read').disabled")
    click(panel, "#cancel")
    panel.wait("document.querySelector('#try .status').textContent === 'cancelled'")
    until(lambda: n_passes(port) == 1)
    stop.set()
    until(lambda: n_passes(port) == 0)
    others[0].close()


def test_text_of_models_and_prompts_is_shown_as_text(panel, models, monkeypatch):
    monkeypatch.setattr(models, "_texts", lambda token_id: HOSTILE)

    def hostile(asked, tokens):
        yield {"event": "text", "model": "base", "edited": False, "text": HOSTILE}
        answers = [
            {"model": m, "edited": False, "text": HOSTILE, "token_ids": [], "ended": True} for m in ("base", "chat")
        ]
        yield {"event": "answers", "crosscoder": "one", "answers": answers}

    monkeypatch.setattr(models, "answers", hostile)
    for button in ("#read", "#answer"):
        click(panel, button)
        panel.wait(f"document.querySelector('.reading-of table') !== null && {IDLE}")
    panel.wait(f"document.querySelectorAll('.answer').length === 2 && {IDLE}")
    visible = HOSTILE.replace("\u202e", "\\u202e")
    assert texts(panel, ".answer") == [visible, visible]
    assert visible in texts(panel, ".reading-of .tok")
    assert panel.evaluate("document.querySelectorAll('#try img').length") == 0
    assert panel.evaluate("document.title") != "bad"


@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_cut_off_at_any_width(panel, dark):
    click(panel, "#read")
    panel.wait("document.querySelector('.reading-of table') !== null")
    click(panel, ".reading-of button", "ablate")
    click(panel, "#answer")
    panel.wait(f"document.querySelectorAll('.answer').length === 4 && {IDLE}")
    for width in WIDTHS:
        panel.show_in(width, dark=dark)
        panel.evaluate("new Promise((done) => setTimeout(() => requestAnimationFrame(done), 50))")
        assert (width, panel.evaluate(CUT_OFF)) == (width, [])
        assert panel.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_a_page_without_the_token_is_refused(browser, port):
    browser.open(f"http://127.0.0.1:{port}/?token=wrong", "document.body.textContent.includes('token')")
    assert "The token is missing or wrong" in browser.evaluate("document.body.textContent")
    browser.errors.clear()
    assert BEARER["Authorization"].endswith(TOKEN)
