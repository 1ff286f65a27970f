"""What our store relies on in SAELens's `ActivationsStore` and its mixing buffer, one fact a test."""

import inspect

import pytest
import torch
from sae_lens import ActivationsStore
from sae_lens.llm_sae_training_runner import LLMSaeEvaluator
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.mixing_buffer import mixing_buffer

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations.shuffle_buffer import mixed_batches
from sae_lens_crosscoder.activations.store import PairActivationsStore
from tests.hosts.conftest import BATCH, CONTEXT, D_MODEL, HOOK, host_config, training_config


@pytest.mark.parametrize("mix_fraction", [0.0, 0.25, 0.5, 0.8])
@pytest.mark.parametrize(("chunk", "batch", "buffer"), [(4, 8, 32), (8, 8, 40), (2, 6, 36)])
def test_our_batches_are_those_of_saelens_buffer_for_the_same_random_numbers(mix_fraction, chunk, batch, buffer):
    """As long as chunks fill the buffer exactly; otherwise SAELens's grows by up to a chunk beyond its size."""
    chunks = torch.randn(480, 3, generator=torch.Generator().manual_seed(0)).split(chunk)
    n_batches = (480 - buffer) // batch  # behind those, ours are shuffled once more and SAELens's are not
    torch.manual_seed(5)
    theirs = torch.stack(list(mixing_buffer(buffer, batch, iter(chunks), mix_fraction))[:n_batches])
    ours = list(mixed_batches(chunks, batch_size=batch, buffer_size=buffer, mix_fraction=mix_fraction, seed=5))
    assert torch.equal(torch.stack(ours[:n_batches]), theirs)


def test_saelens_leaves_what_never_filled_the_buffer_unshuffled_and_ours_does_not():
    chunks = torch.arange(24.0)[:, None].split(4)
    theirs = torch.cat(list(mixing_buffer(32, 8, iter(chunks), 0.5)))
    assert torch.equal(theirs, torch.arange(24.0)[:, None])
    ours = torch.cat(list(mixed_batches(chunks, batch_size=8, buffer_size=32)))
    assert not torch.equal(ours, theirs)


def test_saelens_keeps_activations_in_float32_whatever_dtype_says(pair, rows):
    cfg = host_config(dtype="bfloat16")
    assert next(ActivationsStore.from_config(pair, cfg, override_dataset=rows)).dtype == torch.float32
    assert next(PairActivationsStore.from_config(pair, cfg, override_dataset=rows)).dtype == torch.bfloat16


def test_get_data_loader_is_where_batches_come_from(pair, rows, monkeypatch):
    store = PairActivationsStore.from_config(pair, host_config(), override_dataset=rows)
    mine = [torch.full((BATCH, 2 * D_MODEL), float(i)) for i in range(3)]
    monkeypatch.setattr(store, "get_data_loader", lambda: iter(mine))
    assert next(store) is mine[0]
    assert store.next_batch() is mine[1]
    assert next(iter(store)) is mine[2]


def test_activations_are_asked_of_get_activations_and_begin_anew_when_the_rows_end(pair, rows, monkeypatch):
    store = PairActivationsStore.from_config(pair, host_config(), override_dataset=rows.select(range(6)))
    asked = []
    monkeypatch.setattr(store, "get_activations", lambda tokens: asked.append(tokens) or torch.ones(*tokens.shape, 192))
    stream = store._iterate_filtered_activations()
    with pytest.warns(UserWarning, match="beginning new epoch"):
        chunks = [next(stream) for _ in range(3)]
    assert all(chunk.shape == (4 * CONTEXT, 2 * D_MODEL) for chunk in chunks)
    assert len(asked) == 3


def test_saelens_runner_configs_have_every_field_that_the_store_reads():
    source = inspect.getsource(ActivationsStore.from_config)
    assert "activations_mixing_fraction=cfg.activations_mixing_fraction" in source
    assert "seed" not in source
    assert {"seed", "dtype"} <= set(vars(host_config()))


def test_saelens_evaluator_reads_our_store(pair, rows):
    store = PairActivationsStore.from_config(pair, host_config(), override_dataset=rows)
    evaluator = LLMSaeEvaluator(pair, store, eval_batch_size_prompts=4, n_eval_batches=1, model_kwargs={})
    crosscoder = slc.L1TrainingCrosscoder(training_config("crosscoder"))
    crosscoder.cfg.metadata.hook_name = HOOK
    found = evaluator(crosscoder, store, ActivationScaler())
    assert "model_performance_preservation" in found
