"""A contrast is read at its decision positions, and no tokenizer gives a rendered chat a second beginning."""

import pytest
import torch

from sae_lens_crosscoder.activations import ContrastRows, contrast_rows
from sae_lens_crosscoder.data import Contrast
from sae_lens_crosscoder.data.contrasts import second_halves
from sae_lens_crosscoder.models import HookedModelPair
from tests.data.test_chat_tokens import tokenizer
from tests.models.small_models import random_hooked_transformer

HOOK = "blocks.1.hook_resid_post"
POSITIVE = [[1, 5, 6], [1, 7], [1, 8, 9, 10], [1, 2]]
NEGATIVE = [[1, 3, 3], [1, 4, 4, 4, 4], [1, 6], [1, 9], [1, 5, 2]]


def a_contrast(**options):
    return Contrast.from_tokens("a", POSITIVE, NEGATIVE, **options)


@pytest.fixture(scope="module")
def pair():
    return HookedModelPair(*(random_hooked_transformer(16, seed) for seed in (0, 1)))


def test_rows_are_those_of_each_prompt_alone(pair):
    rows = contrast_rows(pair, a_contrast(), HOOK, batch_size=4)
    alone = [pair.activations(torch.tensor([prompt]), HOOK)[0, -1] for prompt in (*POSITIVE, *NEGATIVE)]
    torch.testing.assert_close(rows.activations, torch.stack(alone))
    first = a_contrast(positions=[0] * 9)
    torch.testing.assert_close(
        contrast_rows(pair, first, HOOK).activations, pair.activations(torch.tensor([[1]]), HOOK)[0].expand(9, -1)
    )


def test_each_part_holds_its_rows(pair):
    rows = contrast_rows(pair, a_contrast(), HOOK)
    (chosen_on, against), (held, held_against) = rows.part(held_out=False), rows.part(held_out=True)
    assert torch.equal(torch.cat([chosen_on, held, against, held_against]), rows.activations)
    assert [len(part) for part in (chosen_on, held, against, held_against)] == [2, 2, 2, 3]


def test_the_second_half_of_each_group_is_held_out_whatever_the_order():
    positive = torch.tensor([True, False] * 4)
    assert second_halves(positive).tolist() == [False] * 4 + [True] * 4
    shuffled = positive[order := torch.randperm(8)]
    assert second_halves(shuffled)[shuffled].tolist() == [False, False, True, True]
    assert order.shape == shuffled.shape


@pytest.mark.parametrize("family", ["gemma", "llama"])
def test_a_chat_has_one_beginning_and_ends_where_the_answer_begins(family):
    words = tokenizer(family)
    contrast = Contrast.from_chats("a", ["yes"] * 4, [[{"role": "user", "content": "go"}]] * 4, words)
    rendered = words.apply_chat_template([{"role": "user", "content": "yes"}], add_generation_prompt=True)
    assert contrast.tokens[0].tolist() == rendered["input_ids"]
    assert (contrast.tokens == words.bos_token_id).sum(dim=1).tolist() == [1] * 8
    assert contrast.positions.tolist() == [len(rendered["input_ids"]) - 1] * 8


def test_texts_are_tokenized_as_the_tokenizer_does():
    words = tokenizer("gemma")
    contrast = Contrast.from_texts("a", ["yes it"] * 4, ["go"] * 4, words, model="base")
    assert contrast.tokens[0].tolist() == words("yes it")["input_ids"]
    assert contrast.model == "base"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": [9] * 9}, "positions from 9 to 9, but its prompts have 5 tokens"),
        ({"positions": [-1] * 9}, "positions from -1"),
        ({"positions": [0]}, "9 prompts, but"),
        ({"held_out": torch.zeros(9, dtype=torch.bool)}, "'positive held out': 0"),
        ({"model": "tuned"}, "model='tuned' must be"),
    ],
)
def test_fields_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        a_contrast(**options)


def test_too_few_or_empty_prompts_are_refused():
    with pytest.raises(ValueError, match="pass at least 4 of each group"):
        Contrast.from_tokens("a", POSITIVE, NEGATIVE[:1])
    with pytest.raises(ValueError, match="pass at least 4 of each group"):
        Contrast.from_tokens("a", [], [])
    with pytest.raises(ValueError, match=r"empty prompts: numbers \[3\]"):
        Contrast.from_tokens("a", [*POSITIVE[:3], []], NEGATIVE)
    with pytest.raises(ValueError, match="no chat template"):
        Contrast.from_chats("a", ["hi"] * 4, ["ho"] * 4, object())


def test_rows_that_do_not_fit_are_refused():
    positive = torch.tensor([True] * 4 + [False] * 4)
    with pytest.raises(ValueError, match="7 rows of activations, but 8 entries"):
        ContrastRows(name="a", activations=torch.zeros(7, 2), positive=positive, held_out=second_halves(positive))
