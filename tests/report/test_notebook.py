"""Laws of the notebook's views: they say what the tables say, and whatever a text says, it is text and nothing else."""

import re
from copy import deepcopy
from html.parser import HTMLParser

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.models.tiny import TINY_HOOK, tiny_dataset
from tests.browser import Browser, needs_chromium
from tests.report.explorations import WordTokenizer, make_exploration
from tests.report.hostile_explorations import SHOWN, WORDS
from tests.report.made_up import BIDI, HOSTILE, make_table

N = 60
TOKENS = torch.tensor(tiny_dataset(2, seed=8)["input_ids"])[:1, :20]
TAGS = {
    *("div", "style", "span", "dl", "dt", "dd", "p", "ol", "li", "i"),
    *("table", "thead", "tbody", "tr", "th", "td"),
}


class Read(HTMLParser):
    """What a view holds: its tags and attributes, the texts of its elements by class, and all of its text."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.attributes, self.tags, self.by_class, self.text, self._open = [], set(), {}, "", []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        self._open.append((tag, dict(attrs).get("class", ""), []))

    def handle_endtag(self, tag):
        opened, name, parts = self._open.pop()
        assert opened == tag
        for each in name.split():
            self.by_class.setdefault(each, []).append("".join(parts))

    def handle_data(self, data):
        if self._open[-1][0] != "style":
            self.text += data
            for _, _, parts in self._open:
                parts.append(data)


def read_inert(view):
    """The view's HTML, of which only known elements and attributes with known values may be there."""
    html = view._repr_html_()
    read = Read(html)
    assert read.tags <= TAGS
    assert {name for name, _ in read.attributes} <= {"class", "title", "style", "scope"}
    for name, value in read.attributes:
        assert name != "style" or re.fullmatch(r"((--share-\d|--kl|--part|--models|--track|--code):[\d.]+%?;?)+", value)
    assert not re.search("[\u202a-\u202e\u2066-\u2069\0]|url\\(|@import", html + repr(view))
    return read


@pytest.fixture(scope="module")
def exploration(tmp_path_factory):
    found = make_exploration(tmp_path_factory.mktemp("examples"), N, words=WORDS)
    found.table["explanation"] = HOSTILE
    return found


@pytest.fixture(scope="module")
def crosscoder():
    return random_crosscoder(d_models=(4, 4), d_sae=N)


def random_crosscoder(**shape):
    crosscoder = slc.ReLUCrosscoder(slc.ReLUCrosscoderConfig(**shape))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in crosscoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    return crosscoder


def shown(text):
    words = {**{word: SHOWN[i] for i, word in WORDS.items()}, "<piece 7>": SHOWN[7]}
    return words.get(text, text)


def test_a_latent_shows_its_examples_and_numbers(exploration, crosscoder):
    live = exploration.table.index[~exploration.table.dead]
    for j in map(int, live[:12]):
        view = slc.latent(crosscoder, j, exploration)
        read, plain, row = read_inert(view), repr(view), exploration.table.loc[j]
        strips = read.by_class["strip"]
        bands = [exploration[j].top, *(band[::-1] for band in exploration[j].quantiles[::-1])]
        expected = [each for band in bands for each in band]
        for strip, each in zip(strips, expected, strict=True):
            first, *rest = each.texts
            assert strip == "".join([shown(first).lstrip() or shown(first), *map(shown, rest)])
        assert read.by_class["score"] == [f"{each.example.score:.2f}" for each in expected]
        codes = [code for each in expected for code in each.alone.flatten().tolist() if code > 0]
        lines = [value for name, value in read.attributes if name == "style" and "--code" in value]
        darkest = [14 + 64 * min(1, code / expected[0].example.score) for code in codes]
        assert [float(value.split("--code:")[1].rstrip("%;")) for value in lines] == pytest.approx(darkest, abs=0.51)
        for text in (read.text, plain):
            for said in (f"{row.delta_norm:.3f}", f"{row.max_activation:.2f}", f"{row.n_active:,}"):
                assert said in text
        assert f"{exploration[j].top[0].example.score:.2f}" in plain
        heading = f"atent {j}"
        assert heading in read.text
        assert heading in plain


def test_percentiles_are_shares_of_live_latents_below(exploration, crosscoder):
    live = exploration.table[~exploration.table.dead]
    j = int(live.index[3])
    (fact,) = [
        fact for fact in slc.latent(crosscoder, j, exploration).facts["When it fires"] if fact.title == "active tokens"
    ]
    n = live.n_active
    below = sum(value < n[j] for value in n) + sum(value == n[j] for value in n) / 2
    assert fact.percentile == pytest.approx(below / len(n))


def test_what_is_not_given_is_not_shown(exploration, crosscoder):
    view = slc.latent(crosscoder, 3)
    norms = crosscoder.decoder_norms[3].tolist()
    assert list(view.facts) == ["Where it writes"]
    assert [fact.value for fact in view.facts["Where it writes"]][1:] == [f"{norm:.3f}" for norm in norms]
    assert float(view.facts["Where it writes"][0].value) == pytest.approx(
        float(slc.delta_norm(crosscoder.decoder_norms.detach())[3]), abs=5e-4
    )
    assert "strip" not in read_inert(view).by_class
    by_ids = slc.latent(crosscoder, 3, examples=exploration.examples)
    ids = exploration.examples[3].top[0].token_ids.tolist()
    assert read_inert(by_ids).by_class["strip"][0] == " ".join(map(str, ids))


def test_labels_are_shown_and_inert(exploration, crosscoder):
    table = exploration.table.assign(user_label=[HOSTILE, *[None] * (N - 1)])
    visible = HOSTILE.replace(BIDI, r"\u202e").replace("\0", r"\u0000")
    for view in (
        slc.latent(crosscoder, 0, latents=table),
        slc.latent(crosscoder, 0, exploration, labels={0: HOSTILE}),
        slc.latent(crosscoder, 0, latents=table.assign(user_label="old"), labels={0: HOSTILE}),
    ):
        assert f"\u201c{visible}\u201d" in read_inert(view).by_class["said"]
        assert f"\u201c{visible}\u201d" in repr(view)
    assert slc.latent(crosscoder, 1, latents=table).user_label is None


def test_parts_of_another_crosscoder_are_refused(exploration, crosscoder):
    with pytest.raises(ValueError, match="The table has 1000 latents but the crosscoder has 60"):
        slc.latent(crosscoder, 0, latents=make_table())
    with pytest.raises(ValueError, match="either `exploration` or its parts"):
        slc.latent(crosscoder, 0, exploration, latents=exploration.table)
    with pytest.raises(IndexError, match="latents 0 to 59"):
        slc.latent(crosscoder, N)


# --- two models on a prompt -------------------------------------------------------------------------


@pytest.fixture
def pair():
    return slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")


@pytest.fixture(scope="module")
def of_pair():
    crosscoder = random_crosscoder(d_model=96, d_sae=12)
    metadata = crosscoder.cfg.metadata
    metadata.model_name, metadata.chat_model_name, metadata.hook_name = "tiny-base", "tiny-chat", TINY_HOOK
    return crosscoder


@pytest.mark.parametrize("position", [-1, 7])
def test_a_comparison_says_what_its_parts_say(pair, of_pair, position):
    found = slc.compare(of_pair, pair, TOKENS, position=position, k=3, n_latents=4)
    assert found.next_tokens.equals(slc.causal.next_tokens(pair, TOKENS, 3, position=position))
    assert found.token_kl.equals(slc.causal.token_kl(pair, TOKENS))
    shares = slc.analysis.difference_shares(of_pair, pair.activations(TOKENS, TINY_HOOK)[0, position])
    assert found.latents.share.equals(shares.latents.share[:4])
    assert found.shares.share_of_latents == pytest.approx(shares.latents.share.sum())
    read = read_inert(found)
    assert read.by_class["strip"] == [" ".join(pair.tokenizer.convert_ids_to_tokens(TOKENS[0].tolist()))]
    for row in found.next_tokens.itertuples():
        assert f"{row.token}{row.base:.3f}{row.chat:.3f}" in read.text
    assert all(f"{value:.4g}" in repr(found) for value in found.latents.share)


@torch.no_grad()
def test_effects_are_those_of_editing_the_models_by_hand(pair, of_pair):
    read = TOKENS[:, :8]
    found = slc.compare(of_pair, pair, TOKENS, position=7, n_latents=3).latents
    stacked = pair.activations(read, TINY_HOOK)
    base, chat = of_pair.layout.split(stacked)
    scores = of_pair.encode(stacked)

    def kl(activation):
        own, edited = (
            pair.chat(read),
            pair.chat.run_with_hooks(read, fwd_hooks=[(TINY_HOOK, lambda *_, **__: activation)]),
        )
        p, q = (logits[0, -1].double().log_softmax(-1) for logits in (own, edited))
        return float((p.exp() * (p - q)).sum())

    for latent, row in found.iterrows():
        added = base + scores[..., [latent]] * of_pair.decoders[1][latent]
        removed = chat - scores[..., [latent]] * of_pair.decoders[1][latent]
        assert row.kl_change_added == pytest.approx(kl(added) - kl(base), abs=1e-4)
        assert row.kl_change_removed == pytest.approx(kl(removed), abs=1e-4)


def test_a_text_is_read_after_bos_and_the_table_adds_what_it_knows(pair, of_pair):
    table = make_table(12).assign(user_label=HOSTILE, verdict="chat_specific")
    found = slc.compare(of_pair, pair, "paris is in", latents=table)
    assert found.texts == (" <bos>", " paris", " is", " in")
    assert set(found.latents.verdict) == {"chat_specific"}
    assert HOSTILE.split(BIDI)[0] in read_inert(found).text


def test_hostile_tokens_are_text(pair, of_pair):
    pair.tokenizer = WordTokenizer({**WORDS, **{i: HOSTILE for i in range(10, 300)}})
    tokens = torch.arange(2, 10)[None]
    read = read_inert(slc.compare(of_pair, pair, tokens, k=40))
    assert read.by_class["strip"] == ["".join(SHOWN.values()).lstrip()]


def test_no_latent_is_on(pair, of_pair):
    silent = deepcopy(of_pair)
    silent.b_enc.data.fill_(-1e4)
    found = slc.compare(silent, pair, TOKENS)
    assert len(found.latents) == 0
    assert "0 active latents 0.00" in read_inert(found).text


def test_errors_say_what_does_not_fit(pair, of_pair):
    with pytest.raises(ValueError, match="position=20 is outside the prompt of 20 tokens: expected -20 to 19"):
        slc.compare(of_pair, pair, TOKENS, position=20)
    with pytest.raises(ValueError, match="n_latents=0"):
        slc.compare(of_pair, pair, TOKENS, n_latents=0)
    with slc.patched(pair, of_pair, [0], "ablate"), pytest.raises(ValueError, match="The pair is patched"):
        slc.compare(of_pair, pair, TOKENS)


@needs_chromium
def test_styles_reach_nothing_else_and_strips_are_striped(exploration, crosscoder, tmp_path):
    j = int(exploration.table.index[~exploration.table.dead][0])
    view = slc.latent(crosscoder, j, exploration)._repr_html_()
    page = tmp_path / "notebook.html"
    page.write_text(f'<meta charset="utf-8"><body data-shown="1"><p class="soft tok on">mine</p>{view}', "utf-8")
    with Browser() as browser:
        browser.open(page.as_uri())
        style = "getComputedStyle(document.querySelector('{}')).{}"
        assert browser.evaluate(style.format("body > p", "backgroundImage")) == "none"
        assert browser.evaluate(style.format("body > p", "color")) == "rgb(0, 0, 0)"
        assert "linear-gradient" in browser.evaluate(style.format(".slc-view .tok.on", "backgroundImage"))
        assert browser.requests == [page.as_uri()]
        assert browser.errors == []
