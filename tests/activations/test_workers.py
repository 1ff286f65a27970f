"""One cache by several workers, for several readers at once: what one worker writes and one reader reads alone."""

import multiprocessing
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations.cache import writer as caching
from sae_lens_crosscoder.activations.cache.manifest import CacheManifest
from tests.activations.test_cache import TOKENS, write
from tests.killing import killed_at
from tests.models.small_models import random_hooked_transformer

FORK = multiprocessing.get_context("fork")
SHUFFLED = {"seed": 5, "buffer_size": 16, "block_size": 4, "n_passes": 2}


@pytest.fixture(scope="module")
def pair():
    return slc.HookedModelPair(random_hooked_transformer(16, seed=0), random_hooked_transformer(24, seed=1))


@contextmanager
def at_once(*functions):
    """Calls in processes of their own, which must end well."""
    processes = [FORK.Process(target=function, daemon=True) for function in functions]
    for process in processes:
        process.start()
    yield
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * len(functions)


def held_back(pair, folder, worker, gate, n_free):
    """Write as a worker that stops before the shard `n_free` until there is a file."""
    original = caching._rows

    def rows(readers, prompts, paths):
        while int(paths[0].name[:5]) >= n_free and not gate.exists():
            time.sleep(0.01)
        return original(readers, prompts, paths)

    caching._rows = rows  # in this process alone
    write(pair, folder, worker=worker)


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).glob("*.bin")}


def first_pass(cache):
    """The number of the shard that each block of the first pass comes from."""
    stored = torch.cat(list(cache)).double()
    blocks = torch.cat(list(cache.shuffled(4, **SHUFFLED | {"n_passes": 1, "buffer_size": 4}))).double()
    return (torch.cdist(blocks, stored).argmin(dim=1) // len(stored[: 4 * TOKENS.shape[1]])).tolist()


def test_two_workers_give_the_cache_and_the_batches_of_one_to_a_reader_that_does_not_wait_for_the_end(pair, tmp_path):
    alone = write(pair, tmp_path / "alone")
    expected = list(slc.ActivationCache(alone.path, wait=1).shuffled(8, **SHUFFLED))
    folder, gate = tmp_path / "shared", tmp_path / "gate"
    workers = [partial(held_back, pair, folder, (i, 2), gate, n_free=2) for i in range(2)]
    with at_once(*workers):
        stream = slc.ActivationCache(folder, wait=60).shuffled(8, **SHUFFLED)
        batches = [next(stream)]
        assert not (folder / "00002.base.bin").exists()
        gate.touch()
        batches += stream
    assert all(torch.equal(batch, other) for batch, other in zip(batches, expected, strict=True))
    assert contents(folder) == contents(alone.path)
    assert CacheManifest.load(folder) == alone.manifest
    slc.ActivationCache(folder).verify()


def test_a_cache_that_is_waited_for_begins_with_its_first_shard_and_any_other_anywhere(pair, tmp_path):
    write(pair, tmp_path)
    in_order = first_pass(slc.ActivationCache(tmp_path, wait=1))
    assert in_order == sorted(in_order)
    assert set(in_order) == {0, 1, 2, 3}
    anywhere = first_pass(slc.ActivationCache(tmp_path))
    assert sorted(anywhere) == in_order != anywhere


def test_a_file_that_never_comes_is_named(pair, tmp_path):
    with pytest.raises(ValueError, match=r"manifest.json is not written yet, and no file of the cache was written"):
        slc.ActivationCache(tmp_path / "cache", wait=0.1)
    write(pair, tmp_path / "cache", worker=(0, 2))
    cache = slc.ActivationCache(tmp_path / "cache", wait=0.1)
    batches = iter(cache)
    next(batches)
    for read in (lambda: next(batches), lambda: list(cache.shuffled(8)), cache.verify, lambda: cache.tokens):
        with pytest.raises(ValueError, match=r"00001.\w+.bin is not written yet, .* for 0.1 s. Check that its worker"):
            read()
    with pytest.raises(ValueError, match=r"00001.tokens.bin is not written yet. Call cache_activations again"):
        slc.ActivationCache(tmp_path / "cache")


def test_the_wait_begins_anew_with_every_file(pair, tmp_path):
    def slow():
        original = caching._rows
        caching._rows = lambda *args: time.sleep(0.25) or original(*args)
        write(pair, tmp_path)

    with at_once(slow):  # twelve passes are made before any of the last shard
        assert len(slc.ActivationCache(tmp_path, wait=1.5).parts(3)[0]) == 2 * TOKENS.shape[1]


@pytest.mark.parametrize("n_operations", range(0, 24, 5))
def test_a_worker_that_is_killed_takes_nothing_from_the_other_and_goes_on(pair, tmp_path, n_operations):
    alone = write(pair, tmp_path / "alone")
    folder = tmp_path / "shared"
    write(pair, folder, worker=(0, 2))
    assert killed_at(n_operations, folder, partial(write, pair, folder, worker=(1, 2)))
    write(pair, folder, worker=(1, 2))
    assert contents(folder) == contents(alone.path)
    assert CacheManifest.load(folder) == alone.manifest


def test_a_file_that_was_lost_is_waited_for_until_its_worker_writes_it_again(pair, tmp_path):
    alone = write(pair, tmp_path / "alone")
    folder = tmp_path / "shared"
    for worker in ((0, 2), (1, 2)):
        write(pair, folder, worker=worker)
    (folder / "00001.base.bin").unlink()
    (folder / "00003.tokens.bin").write_bytes(b"")
    cache = write(pair, folder, worker=(0, 2))
    with at_once(partial(write, pair, folder, worker=(1, 2))):
        assert torch.equal(torch.cat(list(cache)), torch.cat(list(alone)))
    assert contents(folder) == contents(alone.path)
    assert CacheManifest.load(folder) == alone.manifest


def test_contexts_of_a_cache_that_has_just_begun_are_those_of_the_whole(pair, tmp_path):
    token_mask = torch.rand(TOKENS.shape, generator=torch.Generator().manual_seed(0)) < 0.5

    def late():
        original = caching._write_contexts
        caching._write_contexts = lambda *args: time.sleep(1) or original(*args)
        write(pair, tmp_path, token_mask=token_mask)

    with at_once(late):
        tokens, kept = slc.ActivationCache(tmp_path, wait=60).contexts
    assert torch.equal(tokens, TOKENS)
    assert torch.equal(kept, token_mask)


def test_what_two_workers_note_at_once_is_all_in_the_manifest(pair, tmp_path):
    manifest = write(pair, tmp_path).manifest

    def note(first):
        for i in range(first, 40, 2):
            manifest.add_checksums(tmp_path, f"note {i}", {0: "x"})

    with at_once(partial(note, 0), partial(note, 1)):
        pass
    noted = CacheManifest.load(tmp_path).shards[0].sha256
    assert {f"note {i}" for i in range(40)} < noted.keys()


def trained(folder, k, path):
    """Save the weights of a crosscoder that is trained on what comes."""
    torch.manual_seed(0)
    sae = slc.BatchTopKCrosscoderTrainingConfig(d_models=(16, 24), d_sae=32, k=k)
    cfg = slc.CrosscoderTrainerConfig(
        total_training_samples=12 * 16, train_batch_size_samples=16, lr_warm_up_steps=0, lr=1e-2
    )
    stream = slc.ActivationCache(folder, wait=60).shuffled(16, seed=0, buffer_size=32, block_size=4)
    crosscoder = slc.CrosscoderTrainer(cfg, slc.BatchTopKTrainingCrosscoder(sae), stream).fit()
    torch.save(crosscoder.state_dict(), path)


def test_two_trainers_learn_from_one_cache_that_is_being_written_what_each_learns_alone(pair, tmp_path):
    folder = tmp_path / "cache"
    with at_once(*(partial(trained, folder, k, tmp_path / f"together {k}.pt") for k in (2, 4))):
        write(pair, folder)
    for k in (2, 4):
        trained(folder, k, tmp_path / f"alone {k}.pt")
        together, alone = (torch.load(tmp_path / f"{how} {k}.pt") for how in ("together", "alone"))
        assert all(torch.equal(value, alone[name]) for name, value in together.items())


@pytest.mark.parametrize("worker", [(2, 2), (-1, 2), (0, 0)])
def test_a_worker_that_is_none_of_them_is_refused(pair, tmp_path, worker):
    with pytest.raises(ValueError, match=r"must be \(i, n\) with i from 0 to n - 1"):
        write(pair, tmp_path / "cache", worker=worker)
    assert not (tmp_path / "cache").exists()


def test_a_wait_that_is_none_is_refused_and_so_is_a_checkpoint_of_another_order(pair, tmp_path):
    write(pair, tmp_path)
    for wait in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=f"wait={wait} must be a number of seconds"):
            slc.ActivationCache(tmp_path, wait=wait)
    state = slc.ActivationCache(tmp_path).shuffled(8).state_dict()
    slc.ActivationCache(tmp_path).shuffled(8).load_state_dict(state)
    with pytest.raises(ValueError, match=r"with first_pass_in_order=False.* wait_for_cache above 0"):
        slc.ActivationCache(tmp_path, wait=1).shuffled(8).load_state_dict(state)
