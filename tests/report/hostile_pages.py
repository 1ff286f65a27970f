"""Every page with names, tokens and labels that try to be something else: markup, control characters, other languages.

Right is a page with the elements, attributes and scripts of its twin with plain words, in which the texts stand to be
read and no character is raw that is not seen or that turns the text around it.
"""

import copy
import html
import json
import random
import re
from dataclasses import replace
from functools import cache, lru_cache
from itertools import zip_longest

import pandas as pd
import yaml
from markdown_it import MarkdownIt
from plotly.offline import get_plotlyjs

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.analysis.diagnosis.diagnosis import Diagnosis
from sae_lens_crosscoder.models.tiny import dialogues
from sae_lens_crosscoder.report import write_effects, write_explorer, write_first_look, write_report
from sae_lens_crosscoder.report.export.model_card import model_card
from sae_lens_crosscoder.report.html.inert import visible
from sae_lens_crosscoder.workflows import first_look
from tests.causal.conftest import random_crosscoder
from tests.report.explorations import WordTokenizer, make_exploration
from tests.report.made_up import Page, make_manifest, make_table
from tests.report.test_effects import make_effects

OUTCOMES = ("refused", "shown_right", "wrong", "crashed")
N_LATENTS = 40
PARTS = (
    *("<script>alert(1)</script>", "</script>", "<img src=x onerror=alert(1)>", "<!--", "-->", "]]>", "<b>", "&lt;"),
    *("&#60;", '"', "'", "`", "```\n", "|", "\n# head\n", "\n---\n", "[x](http://y)", "![x](javascript:y)", "*", "_"),
    *("\\", "{{ 1 }}", "{% raw %}", "%{x}", "$x$", "\u202e", "\u2066", "\u200f", "\0", "\x1b[2J", "\r", "\t", "\x85"),
    *("\u2028", "\ud800", "\ufffd", "\u00ad", "\ufeff", "\U0001f469\u200d\U0001f680", "\u0627\u0644", "a" * 300, " "),
    *("", "__proto__", "constructor", "../x", "C:\\x", "#latent=1", "javascript:alert(1)", "style=x", "a", "word"),
)
_RAW = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def drawn(rng):
    """A text of a few parts."""
    return "".join(rng.choice(PARTS) for _ in range(rng.randint(1, 4)))


class Words:
    """Texts one after another, every one another, and a note of them."""

    def __init__(self, rng=None):
        self.rng, self.given = rng, []

    def __call__(self, must_be_seen=True):
        n = len(self.given)
        text = f"word{n}" if self.rng is None else f"{drawn(self.rng)}{n}" if must_be_seen else drawn(self.rng)
        self.given.append(text)
        return text


def page_outcomes(name, n_pages, seed, folder):
    """(outcome, error or difference) of `n_pages` pages."""
    rng, folder = random.Random(f"{name} {seed}"), folder / name
    folder.mkdir(parents=True)
    _FOLDER[:] = [folder]
    expected = read(PAGES[name](Words(), folder))
    for _ in range(n_pages):
        words = Words(random.Random(rng.random()))
        try:
            text = PAGES[name](words, folder)
        except ValueError as error:
            yield ("refused" if any(visible(each)[:50] in str(error) for each in words.given) else "crashed"), error
            continue
        except Exception as error:  # any other error is what this looks for
            yield "crashed", error
            continue
        found = [repr(match) for match in _RAW.findall(text.replace(get_plotlyjs(), ""))] or _difference(
            expected, read(text)
        )
        yield ("wrong" if found else "shown_right"), (found, words.given)


def read(text):
    return _card(text) if text.startswith("---\n") else _elements(text)


def _elements(text):
    """Tags and the names of their attributes in order, ids and classes included, and scripts but for their data."""
    page = Page(text)
    kinds = [(tag, sorted(attrs), attrs.get("id"), attrs.get("class")) for tag, attrs in page.elements]
    policies = [attrs["content"] for _, attrs in page.elements if "http-equiv" in attrs]
    return [*kinds, *policies, *page.scripts[-1:], len(page.figures)]


def _card(text):
    """The kinds of a Markdown document's parts in order, and the keys of its front matter."""
    _, front, body = text.split("---\n", 2)
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    kinds = [each.type for token in tokens for each in (token, *(token.children or ()))]
    texts = ("text", "text_special", "softbreak", "entity")
    fields = yaml.safe_load(front)
    assert all(re.fullmatch("[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+", name) for name in fields.pop("base_model", []))
    return [*(kind for kind in kinds if kind not in texts), *sorted(fields)]


def _difference(expected, found):
    return next(((a, b) for a, b in zip_longest(expected, found) if a != b), None)


def _says(text, *words):
    shown = html.unescape(text)
    for word in words:
        assert visible(word) in shown, f"{word!r} is not shown"
    return text


def _texts(*texts):
    """As objects, because pandas's own texts have no surrogates."""
    return pd.Index(texts, dtype=object)


@cache
def _tables():
    table = make_table(60)
    return table, make_table(60, seed=1)


def _report(words, folder):
    names, title = (words(), words()), words()
    made = {}
    for name, table in zip(names, _tables(), strict=True):
        manifest = make_manifest() | {"conclusion": words(), "models": [words(), words(False)], words(): {words(): 1}}
        made[name] = Diagnosis(table, manifest)
    comparison = pd.DataFrame([[words(False) for _ in names]], _texts(words()), _texts(*names), dtype=object)
    cell, row, column = (words().replace("\ud800", "") for _ in range(3))  # pandas's own texts have no surrogates
    concepts = pd.DataFrame([[cell, 0.5]], [row], [column, "auroc"])
    path = folder / "r.html"
    write_report(made, path, comparison, concepts, title, notes=[words()])
    return _says(path.read_text("utf-8"), *names, title, cell, row, column, words.given[-1])


def _explorer(words, folder):
    names, title = (words(), words()), words()
    made = {}
    for seed, name in enumerate(names):
        tokens = {i: words(False) for i in range(2, 30)}
        exploration = replace(_exploration(seed), tokenizer=WordTokenizer(tokens))
        exploration.table["user_label"] = _texts(*(words(False) for _ in range(N_LATENTS)))
        exploration.manifest["conclusion"] = words()
        exploration.concepts.index = _texts(words())
        made[name] = exploration
    path = write_explorer(made, folder / "e.html", title=title)
    text = path.read_text("utf-8")
    about = json.loads(re.search('<script type="application/json" id="about">(.*?)</script>', text)[1])
    assert [each["name"] for each in about["crosscoders"]] == [visible(name) for name in names]
    return _says(text, title)


@lru_cache(maxsize=2)
def _explored(folder, seed):
    return make_exploration(folder, N_LATENTS, seed)


def _exploration(seed):
    exploration = _explored(_FOLDER[0], seed)
    parts = {name: copy.deepcopy(getattr(exploration, name)) for name in ("table", "manifest", "concepts")}
    return replace(exploration, **parts)


_FOLDER = []
"""Of made-up results."""


@cache
def _look():
    pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
    return first_look(pair, [messages[:1] for messages in dialogues(12, 0, "held_out")], n_resamples=5)


def _first_look(words, folder):
    look, title = _look(), words()
    changed = {
        "positions": look.positions.assign(context=_texts(*(words() for _ in range(len(look.positions))))),
        "recommendation": replace(look.recommendation, reason=words()),
        "manifest": look.manifest | {words(): words()},
    }
    text = write_first_look(replace(look, **changed), folder / "l.html", title).read_text("utf-8")
    return _says(text, title, look.hooks.index[0], *words.given[-3:])


def _effects(words, folder):
    names, title = (words(), words()), words()
    effects = {name: make_effects(seed) for seed, name in enumerate(names)}
    for name in names:
        renamed = {setup: words() for setup in effects[name].setup.unique()}
        effects[name]["setup"] = _texts(*map(renamed.get, effects[name].setup))
    text = write_effects(effects, folder / "f.html", title=title).read_text("utf-8")
    return _says(text, *names, title)


def _latent_view(words, folder):
    exploration = replace(_exploration(0), tokenizer=WordTokenizer({i: words(False) for i in range(2, 30)}))
    crosscoder = random_crosscoder((4, 4), dtype="float32", d_sae=N_LATENTS)
    live = int(exploration.table.index[~exploration.table.dead][0])
    label = words()
    view = slc.latent(crosscoder, live, exploration, labels={live: label})
    assert not _RAW.search(repr(view))
    return _says(view._repr_html_(), label)


def _model_card(words, folder):
    crosscoder = random_crosscoder((4, 4), dtype="float32")
    metadata = crosscoder.cfg.metadata
    metadata.hook_name, metadata.model_name, metadata.chat_model_name = words(), f"a{words()}", f"b{words()}"
    metadata.dataset_path, metadata.training_architecture = words(), words(False)
    metadata.training_architecture_details = {words(): words(False)}
    manifest = make_manifest() | {"conclusion": words(), "fve": {words(): 0.5}, "l0": 3.0}
    table = make_table(20)
    diagnosis = Diagnosis(table.assign(verdict=_texts(*[words()] * 20)), manifest)
    metrics = {f"fve_{words()}": 0.5}
    return model_card(crosscoder, "me/it", diagnosis=diagnosis, metrics=metrics)


PAGES = {
    "report": _report,
    "explorer": _explorer,
    "first look": _first_look,
    "effects": _effects,
    "latent view": _latent_view,
    "model card": _model_card,
}
