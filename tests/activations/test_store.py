"""Behind SAELens's store: each model once per batch of prompts, activations converted once, mixed in place."""

import pytest
import torch
from datasets import Dataset

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations.store import PairActivationsStore
from tests.models.small_models import random_hooked_transformer, some_tokens

CONTEXT, BATCH, D_VOCAB, HOOK = 8, 16, 50, "blocks.0.hook_resid_post"
TOKENS = some_tokens(n_prompts=24, n_pos=CONTEXT, d_vocab=D_VOCAB, seed=3)
TOKENS[:, 0] = torch.arange(len(TOKENS))  # so that no two tokens have the same activations


@pytest.fixture(scope="module")
def pair():
    return slc.HookedModelPair(random_hooked_transformer(16, seed=0), random_hooked_transformer(24, seed=1))


def store(pair, **fields):
    sae = slc.BatchTopKCrosscoderTrainingConfig(d_models=(16, 24), d_sae=32, k=4)
    defaults = dict(
        sae=sae,
        hook_name=HOOK,
        context_size=CONTEXT,
        training_tokens=10 * BATCH,
        train_batch_size_tokens=BATCH,
        n_batches_in_buffer=8,
        store_batch_size_prompts=4,
        lr_warm_up_steps=0,
        exclude_special_tokens=False,
        checkpoint_path=None,
    )
    cfg = slc.CrosscoderRunnerConfig(**(defaults | fields))
    rows = Dataset.from_dict({"input_ids": TOKENS.tolist()}).to_iterable_dataset()
    return PairActivationsStore.from_config(pair, cfg, override_dataset=rows)


def take(stream, n_batches):
    return torch.cat([next(stream) for _ in range(n_batches)])


def by_hand(pair, tokens=TOKENS):
    """Each model's activations from a full forward pass."""
    parts = []
    for model in pair.members:
        with torch.no_grad():
            _, cache = model.run_with_cache(tokens)
        parts.append(cache[HOOK].flatten(0, 1))
    return torch.cat(parts, dim=-1)


def test_without_mixing_the_stream_is_the_models_activations_in_order(pair):
    n_batches = TOKENS.numel() // BATCH
    torch.testing.assert_close(take(store(pair, activations_mixing_fraction=0.0), n_batches), by_hand(pair))


def test_mixed_batches_hold_tokens_of_the_data_and_each_at_most_once_while_the_first_pass_lasts(pair):
    mixed = take(store(pair), 6)
    expected = by_hand(pair)
    distance, nearest = torch.cdist(mixed.double(), expected.double()).min(dim=1)
    assert distance.max() < 1e-5
    assert len(set(nearest.tolist())) == len(mixed)
    assert nearest.tolist() != sorted(nearest.tolist())


def test_the_stream_depends_on_the_seed_and_not_on_how_many_prompts_the_models_read_at_once(pair):
    first = take(store(pair), 8)
    torch.testing.assert_close(take(store(pair, store_batch_size_prompts=3), 8), first)
    assert torch.equal(take(store(pair, seed=42), 8), first)
    assert not torch.equal(take(store(pair, seed=7), 8), first)


def test_each_model_runs_once_per_batch_of_prompts_and_stops_at_the_hooks_layer(pair):
    reached = []
    handles = [
        module.register_forward_hook(lambda *args, name=(m, name): reached.append(name))
        for m, model in enumerate(pair.members)
        for name, module in (("block 0", model.blocks[0]), ("block 1", model.blocks[1]), ("logits", model.unembed))
    ]
    try:
        store(pair).get_activations(TOKENS[:4])
    finally:
        for handle in handles:
            handle.remove()
    assert reached == [(0, "block 0"), (1, "block 0")]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtype_is_the_precision_of_the_buffer(pair, dtype):
    full = take(store(pair, activations_mixing_fraction=0.0), 4)
    kept = take(store(pair, activations_mixing_fraction=0.0, dtype=dtype), 4)
    assert kept.dtype == getattr(torch, dtype)
    assert torch.equal(kept, full.to(kept.dtype))


def test_tokens_and_positions_are_left_out_as_saelens_does(pair):
    excluded = [int(TOKENS[0, 2]), int(TOKENS[1, 5])]
    sliced = store(
        pair, activations_mixing_fraction=0.0, exclude_special_tokens=excluded, seqpos_slice=(1, CONTEXT - 1)
    )
    positions = torch.zeros_like(TOKENS, dtype=torch.bool)
    positions[:, 1:-1] = True
    token_mask = positions & ~torch.isin(TOKENS, torch.tensor(excluded))
    expected = by_hand(pair)[token_mask.flatten()]
    torch.testing.assert_close(take(sliced, 4), expected[: 4 * BATCH])


def test_a_checkpoint_goes_on_behind_the_rows_that_were_read(pair, tmp_path):
    first = store(pair)
    take(first, 5)
    n_read = first.n_dataset_processed
    first.save_to_checkpoint(tmp_path)
    second = store(pair)
    second.load_from_checkpoint(tmp_path)
    assert second.n_dataset_processed == n_read > 0
    assert torch.equal(second.get_batch_tokens(2), first.get_batch_tokens(2))
    assert torch.isfinite(next(second)).all()
