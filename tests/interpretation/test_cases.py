"""Which texts are shown and scored: read from the texts themselves, by the rules that were planted."""

import copy
import re

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.interpretation.cases import CaseMaker
from sae_lens_crosscoder.interpretation.embedding import unit_embeddings
from sae_lens_crosscoder.interpretation.windows import DrawnWindows, draw_windows
from sae_lens_crosscoder.models.loading import add_jitter
from tests.analysis.conftest import relu_crosscoder
from tests.interpretation.conftest import DEAD, EVERYWHERE, HOOK, PLANTED, RULES, WINDOW, make_cases, marked_words
from tests.models.small_models import random_hooked_transformer, some_tokens

WORDS = list(RULES.values())


def texts(case, kind):
    return [item.text for item in case.detection if item.kind == kind]


def unmarked(text):
    return re.sub("[«»]", "", text)


def test_negatives_never_activate_the_latent_and_positives_do(cases):
    for case in cases.cases:
        rule = WORDS[case.latent]
        for kind in ("active", "random", "hard"):
            assert len(texts(case, kind)) == 60
            assert all(bool(rule & set(text.split())) == (kind == "active") for text in texts(case, kind))
        assert len({*texts(case, "random"), *texts(case, "hard")}) == 120


def test_hard_negatives_resemble_the_positives_more_than_random_ones_do(cases):
    def n_shared(case, kind):
        negatives = [set(text.split()) for text in texts(case, kind)]
        return [max(len(set(text.split()) & other) for other in negatives) for text in texts(case, "active")]

    for case in cases.cases:
        assert sum(n_shared(case, "hard")) > 1.1 * sum(n_shared(case, "random"))


def test_hard_negatives_are_by_the_embedders_cosine(planted):
    """With texts' lengths as vectors the nearest text is known."""

    def by_length(batch):
        angles = torch.tensor([len(text) / 200 for text in batch])
        return torch.stack([angles.cos(), angles.sin()], dim=1) * angles[:, None]  # longer, the longer the text

    (case,) = make_cases(planted, latents=[0], embed=by_length, n_scored=3).cases
    lengths = sorted(len(text) for text in texts(case, "active"))
    assert all(abs(a - b) <= 1 for a, b in zip(sorted(map(len, texts(case, "hard"))), lengths, strict=True))


def test_what_is_shown_comes_from_thirds_and_is_not_scored(planted, cases):
    for case in cases.cases:
        examples = planted.examples[case.latent]
        scores = {e.text(planted.pair.tokenizer): e.score for band in examples.quantiles for e in band}
        top = {e.text(planted.pair.tokenizer): e.score for e in examples.top}
        ordered = sorted(scores.values())
        strongest, middle, weakest = case.shown
        assert [len(third) for third in case.shown] == [5, 5, 5]
        assert min(top[text] for text in strongest) == max(top.values())
        assert all(ordered[40] <= scores[text] <= ordered[79] for text in middle)
        assert all(scores[text] <= ordered[39] for text in weakest)
        shown = {unmarked(text) for third in case.shown for text in third}
        assert not shown & set(texts(case, "active"))
        n_scored = [sum(score in ordered[40 * t : 40 * t + 40] for score in scores.values()) for t in range(3)]
        assert all(n >= 20 for n in n_scored)


def test_fuzzing_marks_the_right_tokens_or_as_many_wrong_ones_never_both_in_a_round(cases):
    for case in cases.cases:
        rule = WORDS[case.latent]
        first, second = case.fuzzing
        seen = {"right": {}, "wrong": {}}
        for item in (*first, *second):
            words = [word.strip() for word in re.findall("«([^»]*)»", item.text)]
            assert all((word in rule) == (item.kind == "right") for word in words)
            seen[item.kind][unmarked(item.text)] = len(words)
        assert seen["right"] == seen["wrong"]
        assert set(seen["right"]) == set(texts(case, "active"))
        for this in (first, second):
            assert {unmarked(item.text) for item in this} == set(texts(case, "active"))
            assert [item.kind for item in this].count("right") == 30


def test_marks_are_on_all_words_of_the_rule(cases):
    for case in cases.cases:
        for third in case.shown:
            assert all(marked_words(text) == set(unmarked(text).split()) & WORDS[case.latent] for text in third)


def test_cases_depend_on_the_seed_and_on_no_other_latent(planted, cases, cases_of_another_seed):
    assert make_cases(planted, latents=[3, 1], batch_size=57).cases == (cases.cases[3], cases.cases[1])
    other = cases_of_another_seed.cases
    assert all(a.detection != b.detection and a.fuzzing != b.fuzzing for a, b in zip(other, cases.cases, strict=True))


def test_dead_latents_have_empty_cases_and_ones_that_are_always_on_no_negatives(planted):
    dead, everywhere = make_cases(planted, latents=[DEAD, EVERYWHERE]).cases
    assert (dead.shown, dead.detection, dead.fuzzing) == (((), (), ()), (), ((), ()))
    assert {item.kind for item in everywhere.detection} == {"active"}
    assert everywhere.fuzzing == ((), ())
    assert all(everywhere.shown)


KEEP = torch.rand(8, 12, generator=torch.Generator().manual_seed(1)) < 0.7
KEEP[5], KEEP[2, 8:] = False, False


@pytest.mark.parametrize("keep", [None, KEEP])
@pytest.mark.parametrize("source", ["pair", "cache"])
@pytest.mark.parametrize("documents", [None, torch.tensor([[0] * 5 + [1] * 7, [2] * 9 + [-1] * 3] * 4)])
def test_windows_are_off_where_an_encoding_of_everything_says_so(tmp_path, documents, source, keep):
    """Read token by token from a dense encoding, on a model whose activations depend on what comes before."""
    pair = slc.HookedModelPair(*[random_hooked_transformer(8, seed=seed) for seed in (1, 2)])
    generator = torch.Generator().manual_seed(0)
    W_enc = torch.randn(16, 5, generator=generator)
    crosscoder = relu_crosscoder(W_enc.T, W_enc=W_enc, b_enc=torch.full((5,), -0.02), d_models=(8, 8))
    crosscoder.cfg.metadata.hook_name = "blocks.1.hook_resid_post"
    tokens = some_tokens(n_prompts=8, n_pos=12, d_vocab=4)  # so few words that texts repeat
    kwargs = dict(n_windows=60, window=(2, 1), seed=0)
    data = slc.EvalData(pair=pair, tokens=tokens, token_mask=keep, documents=documents, batch_size=3)
    if source == "cache":
        cached = dict(token_mask=keep, dtype="float32", prompts_per_shard=3)
        hook_name = crosscoder.cfg.metadata.hook_name
        cache = slc.cache_activations(tmp_path, pair, tokens, hook_name, **cached)
        data = slc.EvalData(activations=cache, documents=documents, batch_size=3)
    windows = draw_windows(crosscoder, data, torch.tensor([4, 1]), **kwargs)
    acts = crosscoder.encode(pair.activations(tokens, "blocks.1.hook_resid_post").double())
    ids = torch.zeros_like(tokens) if documents is None else documents
    counts = torch.ones_like(KEEP) if keep is None else keep
    on = {}
    for row in range(8):
        for center in range(12):
            document = [p for p in range(12) if ids[row, p] == ids[row, center] and counts[row, p]]
            if ids[row, center] >= 0 and center in document:
                span = [p for p in range(center - 2, center + 2) if document[0] <= p <= document[-1]]
                read = [p for p in span if p in document]
                fires = acts[row, read][:, [4, 1]].gt(0).any(dim=0).tolist()
                on.setdefault(tuple(tokens[row, span].tolist()), []).append(fires)
    assert len(windows.token_ids) == len(set(windows.token_ids)) <= 60
    for text, found in zip(windows.token_ids, windows.active.tolist(), strict=True):
        assert found in on[text] or found == [any(column) for column in zip(*on[text], strict=True)]
    every = draw_windows(crosscoder, data, torch.tensor([4, 1]), **{**kwargs, "n_windows": 500})
    assert {text: found for text, found in zip(every.token_ids, every.active.tolist(), strict=True)} == {
        text: [any(column) for column in zip(*fires, strict=True)] for text, fires in on.items()
    }
    assert 0 < every.active.float().mean() < 1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(n_shown=0), "n_shown=0 is too small"),
        (dict(n_windows=0), "n_windows=0"),
        (dict(latents=[]), "at least one latent"),
        (dict(latents=[1, 1]), "none twice"),
        (dict(latents=[0, 6]), "no latent 6: this crosscoder has latents 0 to 5"),
    ],
)
def test_arguments_that_mean_nothing_are_refused_before_the_models_run(planted, monkeypatch, kwargs, message):
    monkeypatch.setattr(planted.pair, "activations", None)
    with pytest.raises(ValueError, match=message):
        make_cases(planted, **kwargs)


def test_examples_of_another_crosscoder_are_refused(planted):
    other = relu_crosscoder(2 * planted.crosscoder.W_dec.detach(), d_models=planted.crosscoder.layout.d_models)
    other.cfg.metadata.hook_name = HOOK
    with pytest.raises(ValueError, match="belong to another crosscoder"):
        slc.interpretation.interpretation_cases(
            other, slc.EvalData(pair=planted.pair, tokens=planted.tokens), planted.examples, [0], lambda texts: None
        )


def test_a_pair_without_a_tokenizer_is_refused(planted, monkeypatch):
    monkeypatch.setattr(planted.pair, "tokenizer", None)
    with pytest.raises(ValueError, match="needs a tokenizer"):
        make_cases(planted)


@pytest.mark.parametrize("made", [torch.zeros(3, 2), torch.zeros(1), torch.full((1, 2), torch.nan)])
def test_an_embedder_that_gives_no_row_per_text_is_refused(made):
    with pytest.raises(ValueError, match="must return one row of finite numbers per text"):
        unit_embeddings(lambda texts: made, ["one text"])


def test_a_text_that_is_known_to_activate_the_latent_elsewhere_is_no_negative(planted):
    """As when what decides is in front of the window."""
    examples = planted.examples[0]
    known = [tuple(example.token_ids.tolist()) for example in examples.top]
    fillers = [tuple(planted.tokens[row, 5:9].tolist()) for row in range(15)]
    windows = DrawnWindows((*known, *fillers), torch.zeros(len(known) + 15, 1, dtype=torch.bool))
    embed = slc.interpretation.sentence_embedder("words")
    maker = CaseMaker(windows, planted.pair.tokenizer, embed, n_shown=5, n_scored=20, seed=0)
    case = maker.case(examples, 0)
    negatives = {*texts(case, "random"), *texts(case, "hard")}
    assert negatives == {planted.pair.tokenizer.decode(ids) for ids in fillers}
    assert len(texts(case, "random")) == 8  # half of what there is, so that hard ones are left


def test_cases_of_padded_texts_are_those_of_the_texts(planted, tmp_path):
    """And so are those from a cache of them."""
    chat = copy.deepcopy(planted.pair.base)
    add_jitter(chat, 1e-6)  # models that are the same have no cache
    pair = slc.HookedModelPair(planted.pair.base, chat)
    texts = planted.tokens[:60]
    padded = torch.cat([texts[:, :20], texts.roll(1, dims=0)[:, :12]], dim=1)
    keep = (torch.arange(32) < 20).expand_as(padded)
    data = [
        slc.EvalData(pair=pair, tokens=texts[:, :20]),
        slc.EvalData(pair=pair, tokens=padded, token_mask=keep),
    ]
    cache = slc.cache_activations(tmp_path / "cache", pair, padded, HOOK, token_mask=keep, dtype="float32")
    data.append(slc.EvalData(activations=cache, tokenizer=planted.pair.tokenizer))
    made = []
    for i, each in enumerate(data):
        path = tmp_path / f"{i}.safetensors"
        examples = slc.analysis.collect_examples(planted.crosscoder, each, path, window=WINDOW)
        options = dict(embed=slc.interpretation.sentence_embedder("words"), n_scored=5, n_windows=200)
        made.append(slc.interpretation.interpretation_cases(planted.crosscoder, each, examples, [0, 2], **options))
    assert made[0].cases == made[1].cases == made[2].cases
    assert all(case.detection for case in made[0].cases)
    assert made[1].manifest == made[2].manifest != made[0].manifest


def test_the_window_is_the_examples(cases):
    assert cases.manifest["examples"]["window"] == list(WINDOW)
    longest = max(len(item.text.split()) for case in cases.cases for item in case.detection)
    assert longest == sum(WINDOW) + 1


def test_every_planted_latent_has_a_case(cases):
    assert [case.latent for case in cases.cases] == list(PLANTED)
