"""Models with different tokenizers read one text; tokens that end at the same character are paired."""

import json
import random

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations import harvest
from sae_lens_crosscoder.activations.cache.writer import cache_activations
from sae_lens_crosscoder.activations.pair_check import inspect_pair
from sae_lens_crosscoder.models.alignment import TokenAlignment, aligned_ends, spelled
from tests.causal.conftest import random_crosscoder
from tests.models.two_tokenizers import byte_level, model_of, rows_of, sentence_piece, texts
from tests.reference import alignment as reference

HOOK = "blocks.0.hook_resid_post"
WIDTHS = (16, 24)
BOTH_WAYS = [(byte_level, sentence_piece), (sentence_piece, byte_level)]


@pytest.fixture(scope="module")
def members():
    tokenizers = (byte_level(), sentence_piece())
    return [model_of(tokenizer, width) for tokenizer, width in zip(tokenizers, WIDTHS, strict=True)]


@pytest.fixture(scope="module")
def pair(members):
    return slc.HookedModelPair(*members, align_tokens=True)


@pytest.fixture(scope="module")
def tokens():
    return rows_of(sentence_piece(), texts(6, seed=9))


def test_ends_are_paired_as_the_reference_pairs_them():
    generator = random.Random(0)
    for _ in range(200):
        first, second = ([generator.choice([None, *range(6)]) for _ in range(generator.randrange(8))] for _ in "ab")
        found = [(i, j) for i, j in enumerate(aligned_ends(first, second)) if j >= 0]
        assert found == reference.pairs(first, second)


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
def test_a_token_ends_where_the_text_ends_that_is_decoded_up_to_it(make):
    tokenizer = make()
    for text in [*texts(8, seed=3), "an unknown 日本 word 👍🏽!", "cut in a character 日"]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][: -1 if text[-1] == "日" else None]
        found, ends = spelled(tokenizer.backend_tokenizer, ids)
        assert ends == reference.ends(tokenizer, ids)
        assert tokenizer.decode(ids).startswith(found)


@pytest.mark.parametrize(("given", "other"), BOTH_WAYS)
def test_paired_tokens_end_where_the_same_text_ends(given, other):
    given, other = given(), other()
    n_kept = n_tokens = 0
    for text in texts(8, seed=5):
        ids = given(text, add_special_tokens=False)["input_ids"]
        aligned = TokenAlignment(given, other)(torch.tensor([ids]))
        start = int(given.bos_token_id is None and other.bos_token_id is not None)
        other_ids = other(text, add_special_tokens=False)["input_ids"]
        assert aligned.ids[0].tolist() == [other.bos_token_id] * start + other_ids
        paired = [(i, place - start) for i, place in enumerate(aligned.places[0].tolist()) if place >= 0]
        assert paired == reference.pairs(reference.ends(given, ids), reference.ends(other, other_ids))
        n_kept, n_tokens = n_kept + len(paired), n_tokens + len(ids)
    assert 0.2 < n_kept / n_tokens < 1


def read(model, ids):
    return model.run_with_cache(torch.tensor([ids]))[1][HOOK][0]


def test_every_model_reads_the_text_with_its_own_tokenizer(members, pair, tokens, tmp_path):
    base, chat = members
    kept, stacked = pair.aligned(tokens), pair.activations(tokens, HOOK)
    layout = pair.layout_at(HOOK)
    rows = []
    for row, text in zip(tokens.tolist(), texts(6, seed=9), strict=True):
        own = sentence_piece()(text, add_special_tokens=False)["input_ids"][:23]
        cut = sentence_piece().decode(own)  # the row may end before the text
        ids = byte_level()(cut, add_special_tokens=False)["input_ids"][:32]  # as many as the model reads
        of_base, of_chat = (read(model, x) for model, x in ((base, ids), (chat, row)))
        places = reference.pairs(reference.ends(sentence_piece(), own), reference.ends(byte_level(), ids))
        rows += [torch.cat([of_base[j], of_chat[1 + i]]) for i, j in places]
    expected = torch.stack(rows)
    assert int(kept.sum()) == len(expected)
    torch.testing.assert_close(stacked[kept], expected, rtol=1e-4, atol=1e-4)
    found = torch.cat(list(harvest(pair, tokens, HOOK, batch_size=4, token_mask=kept)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert layout.split(stacked)[0][~kept].isnan().all()
    assert layout.split(stacked)[1].isfinite().all()
    cached = cache_activations(tmp_path, pair, tokens, HOOK, token_mask=kept, dtype="float32")
    torch.testing.assert_close(torch.cat(list(cached)), expected, rtol=1e-4, atol=1e-4)
    assert cached.manifest.pair_check["frac_aligned"] == inspect_pair(pair, tokens, kept, HOOK).frac_aligned


def with_other_ids(tokenizer, model):
    """The same tokenizer, and the same model, with the ids in another order."""
    vocabulary = tokenizer.get_vocab()
    names = sorted(vocabulary, key=vocabulary.get)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(3))
    renamed = {name: int(order[vocabulary[name]]) for name in names}
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"]["vocab"] = renamed
    for added in state["added_tokens"]:
        added["id"] = renamed[added["content"]]
    backend = Tokenizer.from_str(json.dumps(state))
    second = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    copy = model_of(second, model.cfg.d_model)
    copy.load_state_dict(model.state_dict())
    with torch.no_grad():
        copy.embed.W_E[order] = model.embed.W_E
    return copy, order


def test_one_tokenizer_gives_the_same_bits_on_either_path(members):
    base, tokens = members[0], rows_of(byte_level(), texts(5, seed=2))
    chat = model_of(byte_level(), 16, seed=5)
    plain = slc.HookedModelPair(base, chat)
    same = slc.HookedModelPair(base, chat, align_tokens=True)
    assert same.has_one_tokenizer
    assert same.aligned(tokens).all()
    renamed, order = with_other_ids(byte_level(), base)
    other_way = slc.HookedModelPair(renamed, chat, align_tokens=True)
    assert not other_way.has_one_tokenizer
    aligned = other_way.alignments[0](tokens)
    assert torch.equal(aligned.ids, order[tokens])
    kept = other_way.aligned(tokens)
    assert kept.float().mean() > 0.9
    expected = plain.activations(tokens, HOOK)
    assert torch.equal(same.activations(tokens, HOOK), expected)
    assert torch.equal(other_way.activations(tokens, HOOK)[kept], expected[kept])


def test_control_tokens_are_read_by_role_by_spelling_or_as_text():
    own, other = sentence_piece(), byte_level()
    bos, pad, eos = own.bos_token_id, own.pad_token_id, own.eos_token_id
    turn = own.convert_tokens_to_ids("<turn>")
    fox = own("dogs", add_special_tokens=False)["input_ids"]
    aligned = TokenAlignment(own, other)(torch.tensor([[bos, turn, *fox, eos, pad]]))
    written = other("<turn>", add_special_tokens=False)["input_ids"]
    dogs = other("dogs", add_special_tokens=False)["input_ids"]
    assert aligned.ids[0].tolist() == [*written, *dogs, other.eos_token_id]
    places = aligned.places[0].tolist()
    assert places[:2] == [-1, len(written) - 1]
    assert places[-3:] == [len(aligned.ids[0]) - 2, len(aligned.ids[0]) - 1, -1]
    back = TokenAlignment(other, own)(torch.tensor([[*dogs, other.eos_token_id]]))
    assert back.ids[0].tolist() == [bos, *fox, eos]  # a row without BOS gets it


def test_what_goes_beyond_a_models_context_is_left_out(tokens):
    whole, cut = (TokenAlignment(sentence_piece(), byte_level(), n_ctx)(tokens) for n_ctx in (None, 10))
    assert torch.equal(cut.ids, whole.ids[:, :10])
    assert torch.equal(cut.places, torch.where(whole.places < 10, whole.places, -1))


def test_eval_data_leaves_unpaired_tokens_out(pair, tokens):
    kept = pair.aligned(tokens)
    mask = tokens != sentence_piece().bos_token_id
    assert torch.equal(slc.EvalData(pair=pair, tokens=tokens).token_mask, kept)
    assert torch.equal(slc.EvalData(pair=pair, tokens=tokens, token_mask=mask).token_mask, kept & mask)


def test_the_share_kept_is_reported(pair, tokens):
    check = inspect_pair(pair, tokens, torch.ones_like(tokens, dtype=torch.bool), HOOK)
    real = tokens != sentence_piece().pad_token_id
    assert check.frac_aligned == pytest.approx(float(pair.aligned(tokens)[real].float().mean()))
    assert check.n_tokens == int(pair.aligned(tokens).sum())
    assert check.kl_nats is None
    assert f"{check.frac_aligned:.0%}; the others are left out" in check.lines()
    assert type(check).from_dict(check.to_dict()) == check


def test_what_compares_tokens_one_by_one_is_refused_by_name(pair, tokens):
    crosscoder = random_crosscoder(WIDTHS, dtype="float32")
    calls = {
        "A forward pass of the pair": lambda: pair(tokens),
        "A patch of the pair": lambda: slc.patched(pair, crosscoder, [0], "ablate").__enter__(),
        "splice_evals": lambda: slc.causal.splice_evals(crosscoder, pair, tokens),
        "kl_between_models": lambda: slc.causal.kl_between_models(pair, tokens),
        "first_look": lambda: slc.first_look(pair, slc.EvalData(pair=pair, tokens=tokens)),
        "null_family": lambda: slc.workflows.null_family(pair),
        "A pair of two members": lambda: pair.of("base", "chat"),
    }
    for purpose, call in calls.items():
        with pytest.raises(ValueError, match=f"{purpose} needs models that read the same token ids"):
            call()
    pair.add_hook(HOOK, lambda x, hook: x)
    with pytest.raises(ValueError, match="A hook or an SAE on the pair needs models"):
        pair.activations(tokens, HOOK)
    pair.reset_hooks()
    with pytest.raises(ValueError, match=r"tokens end where no token of another model ends.*token_mask & pair.aligned"):
        list(harvest(pair, tokens, HOOK))


def test_models_that_cannot_be_aligned_are_refused(members):
    slow, without = (model_of(byte_level()) for _ in range(2))
    slow.tokenizer, without.tokenizer = type("SlowTokenizer", (), {"get_vocab": lambda self: {}})(), None
    for models_given, message in (
        ((without, members[1]), "align_tokens=True needs every model's tokenizer"),
        ((slow, members[1]), "A SlowTokenizer does not tell at which characters"),
    ):
        with pytest.raises(ValueError, match=message):
            slc.HookedModelPair(*models_given, align_tokens=True)
    with pytest.raises(ValueError, match=r"tokenizers differ.*or pair other tokens by the text they stand for"):
        slc.HookedModelPair(*members)
    with pytest.raises(ValueError, match="Pass either token_replacements"):
        slc.HookedModelPair(*members, token_replacements={"<turn>": "the"}, align_tokens=True)
