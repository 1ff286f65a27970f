"""Padding on the left is refused, whatever its id; padding on the right and tokens left out at the start are not."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations.harvest import harvest
from sae_lens_crosscoder.data.token_mask import validate_padding
from tests.models.small_models import random_hooked_transformer, some_tokens

PAD, BOS = 0, 1
SEPARATE = SimpleNamespace(pad_token_id=PAD, bos_token_id=BOS, eos_token_id=BOS)
SHARED = SimpleNamespace(pad_token_id=BOS, bos_token_id=BOS, eos_token_id=BOS)


@pytest.mark.parametrize(
    ("row", "used", "tokenizer", "is_refused"),
    [
        ([PAD, 5, 6, 7, 8, 9], [0, 1, 1, 1, 1, 1], SEPARATE, True),
        ([PAD, PAD, 6, 7, 8, 9], None, SEPARATE, True),
        ([PAD, 5, 6, 7, 8, 9], None, SEPARATE, False),  # an ordinary token may have that id
        ([5, 6, 7, PAD, PAD, PAD], [1, 1, 1, 0, 0, 0], SEPARATE, False),
        ([PAD] * 6, [0] * 6, SEPARATE, False),  # a row of nothing else
        ([BOS, 5, 6, 7, 8, 9], [0, 1, 1, 1, 1, 1], SEPARATE, False),  # BOS left out
        ([BOS, BOS, BOS, BOS, 5, 6], [0, 0, 0, 0, 1, 1], SHARED, True),
        ([BOS, BOS, 5, 6, 7, 8], [0, 0, 1, 1, 1, 1], SHARED, False),  # BOS and a separator
        ([BOS, BOS, BOS, BOS, 5, 6], None, SHARED, False),  # nothing says that they are padding
        ([4, 4, 4, 4, 5, 6], [0, 0, 0, 0, 1, 1], None, True),
        ([4, 5, 6, 7, 8, 9], [0, 0, 0, 0, 1, 1], None, False),  # a prompt left out
    ],
)
def test_what_is_padding_on_the_left(row, used, tokenizer, is_refused):
    tokens = torch.tensor([[BOS, 7, 8, 9, 10, 11], row])
    mask = None if used is None else torch.tensor([[True] * 6, [bool(u) for u in used]])
    message = rf"Row 1 of tokens starts with padding \(id {row[0]}\)"
    with pytest.raises(ValueError, match=message) if is_refused else nullcontext():
        validate_padding(tokens, mask, tokenizer)


def test_harvest_eval_data_and_caches_refuse_it_before_anything_runs(tmp_path):
    pair = slc.HookedModelPair(*[random_hooked_transformer(8, seed=seed) for seed in (1, 2)])
    tokens, mask = some_tokens(), torch.ones(2, 12, dtype=torch.bool)
    tokens[1, :3], mask[1, :3] = 0, False
    hook = "blocks.0.hook_resid_post"
    for call in (
        lambda: harvest(pair, tokens, hook, token_mask=mask),
        lambda: slc.EvalData(pair=pair, tokens=tokens, token_mask=mask),
        lambda: slc.cache_activations(tmp_path / "cache", pair, tokens, hook, token_mask=mask),
    ):
        with pytest.raises(ValueError, match="pad on the right"):
            call()
    assert not (tmp_path / "cache").exists()


def test_ids_that_a_model_has_no_embedding_of_are_refused():
    pair = slc.HookedModelPair(*[random_hooked_transformer(8, seed=1, d_vocab=size) for size in (50, 60)])
    tokens = some_tokens()
    tokens[0, 3] = 55
    with pytest.raises(ValueError, match="the id 55, but model 0 of the pair has only 50 embeddings"):
        harvest(pair, tokens, "blocks.0.hook_resid_post")
