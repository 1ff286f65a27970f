"""The ladder's answers and KL are those of plain hooks and full forward passes; controls have the energy they claim."""

import pandas as pd
import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.causal import Ladder, causal_ladder
from sae_lens_crosscoder.causal.ladder.edits import constant, noise, of_same_energy, total, true_difference, written_by
from sae_lens_crosscoder.crosscoders.two_models import TwoModels
from sae_lens_crosscoder.data import Contrast
from tests.causal.conftest import random_crosscoder
from tests.models.small_models import gemma2, random_hooked_transformer, save_pair

IDS, N_NEW = [7, 2, 5], 4
PROMPTS = [[1, 5, 6], [1, 7, 8, 9], [1, 4, 4], [1, 9, 3, 3], [1, 8, 2]]
OTHERS = [[1, 12, 13], [1, 14, 15, 9], [1, 16, 17], [1, 18, 19]]
HOOKS = {
    "HookedTransformer": "blocks.0.hook_resid_post",
    "TransformerBridge": "blocks.1.hook_resid_post",
    "AutoModelForCausalLM": "model.layers.1",
}


@pytest.fixture(scope="module", params=list(HOOKS))
def ladder(request, tmp_path_factory):
    """The pair, its crosscoder, the contrast, the ladder's table, and all answers in the order in which they came."""
    if request.param == "HookedTransformer":
        pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
    else:
        folders = save_pair(tmp_path_factory.mktemp("models"), gemma2)
        pair = slc.HookedModelPair.from_pretrained(*folders, model_class_name=request.param)
    hook_name = HOOKS[request.param]
    width = pair.layout_at(hook_name).d_models[0]
    crosscoder = random_crosscoder((width, width), dtype="float32", threshold=0.1)
    crosscoder.cfg.metadata.hook_name = hook_name
    contrast = Contrast.from_tokens("a", PROMPTS, OTHERS)
    texts = []
    found = causal_ladder(
        crosscoder, pair, contrast, IDS, lambda text: bool(texts.append(text)) or True, rungs=(1,), max_new_tokens=N_NEW
    )
    return pair, crosscoder, contrast, found, texts


def by_hand(pair, crosscoder, prompt, delta_of, n_new=N_NEW, model=0):
    """Answer to one prompt, and KL at its end, by one hook and a full forward pass per token."""
    hook_name = crosscoder.cfg.metadata.hook_name
    read = torch.tensor([prompt])
    chat_logits = pair.chat(read, return_type="logits")[0, -1].log_softmax(dim=-1)
    kl = None
    for _ in range(n_new):
        base, chat = (member.run_with_cache(read, names_filter=[hook_name])[1][hook_name] for member in pair.members)
        f = crosscoder.encode(torch.cat([base, chat], dim=-1))
        edited = base.clone()
        for position in range(len(prompt) - 1, read.shape[1]):
            place = position - len(prompt) + 1
            edited[0, position] += delta_of(f[0, position], base[0, position], chat[0, position], place)
        if model == 0:
            with pair.base.hooks(fwd_hooks=[(hook_name, lambda value, hook, edited=edited: edited)]):
                logits = pair.base(read, return_type="logits")[0, -1]
        else:
            logits = pair.chat(read, return_type="logits")[0, -1]
        log_p = logits.log_softmax(dim=-1)
        kl = kl if kl is not None else (chat_logits.exp() * (chat_logits - log_p)).sum().item()
        read = torch.cat([read, logits.argmax()[None, None]], dim=1)
        if int(read[0, -1]) == pair.tokenizer.eos_token_id:
            break
    return read[0, len(prompt) :].tolist(), kl


def deltas(pair, crosscoder, contrast):
    base_decoder, chat_decoder = (decoder.detach() for decoder in crosscoder.decoders)
    base_bias, chat_bias = (bias.detach() for bias in crosscoder.decoder_biases)
    direction, bias = chat_decoder - base_decoder, chat_bias - base_bias

    def named(f, ids=IDS):
        return sum(f[j] * direction[j] for j in ids)

    hook_name = crosscoder.cfg.metadata.hook_name
    difference = []
    for prompt in (*PROMPTS[:2], *OTHERS[:2]):
        base, chat = crosscoder.layout.split(pair.activations(torch.tensor([prompt]), hook_name)[0, -1])
        difference.append(chat - base)
    mean = (difference[0] + difference[1] - difference[2] - difference[3]) / 2
    at_place = {0: [mean]}
    for prompt in PROMPTS[:2]:
        answer, _ = by_hand(pair, crosscoder, prompt, lambda f, b, c, place: torch.zeros_like(b), model=1)
        base, chat = crosscoder.layout.split(pair.activations(torch.tensor([prompt + answer]), hook_name)[0])
        for place in range(1, len(answer) + 1):
            at_place.setdefault(place, []).append((chat - base)[len(prompt) - 1 + place])
    means = [sum(vectors) / len(vectors) for vectors in at_place.values()]
    return {
        "base": lambda f, b, c, place: torch.zeros_like(b),
        "biases": lambda f, b, c, place: bias,
        "first 1": lambda f, b, c, place: bias + named(f, IDS[:1]),
        "named": lambda f, b, c, place: bias + named(f),
        "named without biases": lambda f, b, c, place: named(f),
        "all but named": lambda f, b, c, place: c - b - bias - named(f),
        "mean difference": lambda f, b, c, place: mean,
        "mean difference per place": lambda f, b, c, place: means[min(place, len(means) - 1)],
        "true difference": lambda f, b, c, place: c - b,
    }


def test_every_condition_equals_plain_hooks(ladder):
    pair, crosscoder, contrast, found, texts = ladder
    table = found.table
    held_out = sorted(PROMPTS[2:], key=len)  # prompts of one length together
    others = sorted(OTHERS[2:], key=len)
    expected = deltas(pair, crosscoder, contrast)
    end = pair.tokenizer.eos_token_id
    start = 0
    for condition in table.index:
        answered = texts[start : start + len(held_out)]
        start += len(held_out) + (0 if table["rate_others"].isna()[condition] else len(others))
        if condition not in expected and condition != "chat":
            continue
        model = 1 if condition == "chat" else 0
        delta = expected.get(condition, expected["base"])
        by_prompt = [by_hand(pair, crosscoder, prompt, delta, model=model) for prompt in held_out]
        said = [pair.tokenizer.decode(ids, skip_special_tokens=True) for ids, _ in by_prompt]
        assert answered == said, condition
        assert table.loc[condition, "answer"] == said[0]
        if condition != "chat":
            mean_kl = sum(kl for _, kl in by_prompt) / len(by_prompt)
            assert table.loc[condition, "kl_nats"] == pytest.approx(mean_kl, rel=1e-3, abs=1e-5)
    assert start == len(texts)
    assert end is None or isinstance(end, int)


def test_the_table_holds_every_condition_once_and_its_ends(ladder):
    table = ladder[3].table
    assert list(table.index) == [
        *("base", "biases", "first 1", "named", "named without biases", "all but named"),
        *("random latents 0", "noise 0", "random latents 1", "noise 1"),
        *("mean difference", "mean difference per place", "true difference", "chat"),
    ]
    assert table.loc["base", "brought_back"] == 0
    assert table.loc["chat", "brought_back"] == 1
    assert table.loc["named", "n_latents"] == 3
    assert (table["rate"] == 1).all()  # as the predicate says
    assert table["rate_others"].notna().sum() == 4


def test_it_is_saved_and_loaded(ladder, tmp_path):
    found = ladder[3]
    found.save(tmp_path)
    pd.testing.assert_frame_equal(Ladder.load(tmp_path).table, found.table)


def test_controls_have_the_energy_of_the_named_latents_at_every_token():
    crosscoder = random_crosscoder((8, 8), dtype="float32")
    stacked = torch.randn(15, 16, generator=torch.Generator().manual_seed(0))
    places = torch.arange(15) % 5
    named = written_by(TwoModels.of(crosscoder), IDS)
    length = named(stacked, places).norm(dim=-1)
    for direction in (written_by(TwoModels.of(crosscoder), [0, 1]), noise(TwoModels.of(crosscoder), seed=1)):
        control = of_same_energy(named, direction)(stacked, places)
        is_on = direction(stacked, places).norm(dim=-1) > 0
        torch.testing.assert_close(control.norm(dim=-1)[is_on], length[is_on])
        assert not control[~is_on].any()


def test_parts_add_up_to_the_true_difference():
    crosscoder = random_crosscoder((8, 8), dtype="float32")
    stacked, places = torch.randn(6, 16), torch.arange(6) % 3
    named, whole = written_by(TwoModels.of(crosscoder), IDS), true_difference(TwoModels.of(crosscoder))
    rest = total(whole, named, signs=(1, -1))
    torch.testing.assert_close(total(named, rest)(stacked, places), whole(stacked, places))
    assert not written_by(TwoModels.of(crosscoder), [])(stacked, places).any()


def test_each_place_of_the_answer_gets_its_vector_and_later_ones_the_last():
    edit = constant(torch.eye(3))
    assert edit(torch.zeros(4, 6), torch.tensor([0, 1, 2, 7])).argmax(dim=-1).tolist() == [0, 1, 2, 2]


def test_bad_input_is_refused():
    pair = slc.HookedModelPair(*[random_hooked_transformer(8, seed=seed) for seed in (1, 2)])
    crosscoder = random_crosscoder((8, 8), dtype="float32")
    contrast = Contrast.from_tokens("a", PROMPTS, OTHERS)
    with pytest.raises(ValueError, match="has no tokenizer"):
        causal_ladder(crosscoder, pair, contrast, IDS, bool)
    tiny = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
    width = tiny.layout_at(HOOKS["HookedTransformer"]).d_models[0]
    crosscoder = random_crosscoder((width, width), dtype="float32")
    with pytest.raises(ValueError, match="latent_ids is empty"):
        causal_ladder(crosscoder, tiny, contrast, [], bool)


def test_how_many_requests_are_read_together_changes_nothing(ladder):
    pair, crosscoder, contrast, found, _ = ladder
    # Noise is drawn in the order in which tokens are read.
    only = ["named", "random latents", "mean difference per place", "true difference"]
    options = {"only": only, "max_new_tokens": N_NEW, "batch_size": 5}
    again = causal_ladder(crosscoder, pair, contrast, IDS, lambda text: True, **options).table
    expected = found.table.loc[again.index]
    pd.testing.assert_frame_equal(again, expected, atol=1e-5, rtol=1e-3)
