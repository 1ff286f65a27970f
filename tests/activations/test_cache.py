"""Activations on disk: to the bit what the models gave, whole or not at all, and of the pair they are said to be of."""

import dataclasses
import json
import os
import resource
import weakref
from functools import partial
from pathlib import Path

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations.cache import models as cache_models
from sae_lens_crosscoder.activations.cache import shuffled_blocks
from sae_lens_crosscoder.activations.cache import writer as caching
from sae_lens_crosscoder.activations.cache.manifest import CONTEXTS_FILENAME, CacheManifest
from sae_lens_crosscoder.activations.harvest import NonFiniteError
from sae_lens_crosscoder.models.tiny import TINY_HOOK
from sae_lens_crosscoder.storage.checksums import FolderChecksums
from tests.killing import in_child, killed_at
from tests.models.small_models import random_hooked_transformer, some_tokens

HOOK, N_POS, PER_SHARD = "blocks.0.hook_resid_post", 8, 4
TOKENS = some_tokens(n_prompts=14, n_pos=N_POS, seed=3)  # three whole shards and half of one
TOKENS[:, 0] = torch.arange(len(TOKENS))  # so that no two tokens have the same activations


@pytest.fixture(scope="module")
def pair():
    models = random_hooked_transformer(16, seed=0), random_hooked_transformer(24, seed=1)
    return slc.HookedModelPair(*models, model_names=("some/base", "some/chat"))


@pytest.fixture
def written(pair, tmp_path):
    return write(pair, tmp_path / "cache")


def write(pair, folder, tokens=TOKENS, hook_name=HOOK, **options):
    options = {"prompts_per_shard": PER_SHARD, "batch_size": 3} | options
    return slc.cache_activations(folder, pair, tokens, hook_name, **options)


def by_hand(pair):
    """Each model's activations from a full forward pass."""
    with torch.no_grad():
        parts = [model.run_with_cache(TOKENS)[1][HOOK].flatten(0, 1) for model in pair.members]
    return torch.cat(parts, dim=-1)


def files(folder):
    return {path.name: path.stat().st_mtime_ns for path in Path(folder).iterdir()}


class TestContexts:
    TOKEN_MASK = torch.rand(TOKENS.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    TOKEN_MASK[3:9] = False  # a whole shard

    @pytest.mark.parametrize("token_mask", [None, TOKEN_MASK])
    def test_tokens_come_with_the_contexts_that_they_are_from(self, pair, tmp_path, token_mask):
        tokens, kept = write(pair, tmp_path, token_mask=token_mask).contexts
        assert torch.equal(tokens, TOKENS)
        assert torch.equal(kept, torch.ones_like(kept) if token_mask is None else token_mask)
        assert torch.equal(slc.ActivationCache(tmp_path).tokens, tokens[kept])

    def test_a_cache_that_does_not_say_is_told_to_by_the_next_call(self, pair, tmp_path):
        cache = write(pair, tmp_path, token_mask=self.TOKEN_MASK)
        before = files(tmp_path)
        whole = (tmp_path / CONTEXTS_FILENAME).read_bytes()
        for damaged in (whole[:-8] + b"\2" * 8, whole[: len(whole) // 2], None):
            (tmp_path / CONTEXTS_FILENAME).unlink()
            if damaged is not None:
                (tmp_path / CONTEXTS_FILENAME).write_bytes(damaged)
            with pytest.raises(ValueError, match=CONTEXTS_FILENAME):
                _ = cache.contexts
        assert torch.equal(write(pair, tmp_path, token_mask=self.TOKEN_MASK).contexts[1], self.TOKEN_MASK)
        after = files(tmp_path)
        assert {name for name in after if after[name] != before[name]} == {CONTEXTS_FILENAME}


def edit_manifest(folder, change, record=True):
    path = folder / "manifest.json"
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))
    if record:
        checksums = FolderChecksums(folder)
        checksums.record(path.name)
        checksums.write()


class TestReading:
    @pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
    def test_what_is_read_in_order_is_what_the_models_gave_to_the_bit(self, pair, tmp_path, dtype):
        cache = write(pair, tmp_path, dtype=dtype, batch_size=len(TOKENS))
        read = torch.cat(list(cache))
        stored = [
            torch.cat([pair.activations(part, HOOK) for part in shard.split(len(TOKENS))]).flatten(0, 1)
            for shard in TOKENS.split(PER_SHARD)
        ]
        assert read.dtype == getattr(torch, dtype)
        assert torch.equal(read, torch.cat(stored).to(read.dtype))
        torch.testing.assert_close(read.float(), by_hand(pair), rtol=1e-2, atol=1e-2)
        assert torch.equal(torch.cat(list(slc.ActivationCache(tmp_path))), read)
        assert len(cache) == len(read) == TOKENS.numel()

    def test_a_shuffled_pass_gives_every_token_once_and_whole(self, written):
        rows, stored = torch.cat(list(written.shuffled(8, n_passes=1))), torch.cat(list(written))
        distance, token = torch.cdist(rows.double(), stored.double()).min(dim=1)
        assert distance.max() == 0
        assert sorted(token.tolist()) == list(range(len(stored)))
        travelled = (token - torch.arange(len(token))).abs().double().mean()
        assert travelled > len(token) / 5  # a third, for a uniformly random order

    def test_batches_are_the_seeds_and_every_pass_has_its_own_order(self, written):
        def first(n, **options):
            stream = written.shuffled(8, block_size=4, buffer_size=16, **options)
            return torch.stack([next(stream) for _ in range(n)])

        n = len(written) // 8
        twice = first(2 * n, seed=1)
        assert torch.equal(first(2 * n, seed=1), twice)
        assert not torch.equal(first(n, seed=2), twice[:n])
        assert not torch.equal(twice[n:], twice[:n])

    @pytest.mark.parametrize("n_rows", [1, 6])  # each block alone, and two
    @pytest.mark.parametrize("n_served", [0, 1, 5])
    def test_batches_do_not_depend_on_how_many_blocks_are_read_at_a_time(self, written, monkeypatch, n_served, n_rows):
        def stream():
            return written.shuffled(4, block_size=3, buffer_size=8, n_passes=2, part=(0, 2))

        found, resumed = list(stream()), stream()
        first = [next(resumed) for _ in range(n_served)]
        state = resumed.state_dict()
        monkeypatch.setattr(shuffled_blocks, "_ROWS_AT_A_TIME", n_rows)
        read_so, expected = stream(), list(stream())
        read_so.load_state_dict(state)
        assert torch.equal(torch.cat(found), torch.cat(expected))
        assert torch.equal(torch.cat([*first, *read_so]), torch.cat(expected))

    def test_several_streams_have_every_token_in_one_of_them(self, written):
        parts = [written.shuffled(4, block_size=4, buffer_size=4, n_passes=1, part=(i, 3)) for i in range(3)]
        served = [sorted(row.tolist() for batch in part for row in batch) for part in parts]
        whole = sorted(row.tolist() for batch in written.shuffled(4, buffer_size=4, n_passes=1) for row in batch)
        assert sorted(row for part in served for row in part) == whole
        assert min(map(len, served)) > len(whole) / 4

    def test_a_crosscoder_trains_on_it_and_is_diagnosed_on_it(self, pair, written):
        sae = slc.BatchTopKCrosscoderTrainingConfig(d_models=(16, 24), d_sae=32, k=4)
        crosscoder = slc.BatchTopKTrainingCrosscoder(sae)
        cfg = slc.CrosscoderTrainerConfig(
            total_training_samples=40 * 16, train_batch_size_samples=16, lr_warm_up_steps=0, lr=1e-2
        )
        trainer = slc.CrosscoderTrainer(cfg, crosscoder, written.shuffled(16, seed=0))
        trainer.fit()
        assert trainer.history.fve_pooled.iloc[-1] > 0.5
        folder = written.path / "crosscoder"
        crosscoder.save_inference_model(folder)
        inference = slc.load(folder)
        exactly = slc.diagnose(inference, slc.EvalData(activations=torch.cat(list(written)).float()))
        from_disk = slc.diagnose(inference, slc.EvalData(activations=written))
        assert from_disk.manifest["n_tokens"] == len(written)
        assert from_disk.manifest["fve"] == pytest.approx(exactly.manifest["fve"], nan_ok=True)
        inference.cfg.metadata.model_name, inference.cfg.metadata.chat_model_name = "other/base", "some/chat"
        with pytest.raises(ValueError, match="activations of some/base and some/chat, not of other/base and some/chat"):
            slc.diagnose(inference, slc.EvalData(activations=written))

    def test_training_on_it_is_gone_on_with_to_the_bit_and_on_no_other_cache(self, pair, written, tmp_path):
        def trainer(cache, steps, **fields):
            torch.manual_seed(0)
            sae = slc.BatchTopKCrosscoderTrainingConfig(d_models=(16, 24), d_sae=32, k=4)
            cfg = slc.CrosscoderTrainerConfig(
                total_training_samples=steps * 16,
                train_batch_size_samples=16,
                lr_warm_up_steps=0,
                checkpoint_path=str(tmp_path / "checkpoints"),
                save_final_checkpoint=True,
                **fields,
            )
            stream = cache.shuffled(16, seed=0, buffer_size=48, block_size=5)
            return slc.CrosscoderTrainer(cfg, slc.BatchTopKTrainingCrosscoder(sae), stream)

        unbroken = trainer(written, steps=20).fit().state_dict()  # nearly three passes
        for n in (3, 9, 14):
            trainer(written, steps=n).fit()
            latest = str(tmp_path / "checkpoints" / f"final_{n * 16}")
            resumed = trainer(written, steps=20, resume_from_checkpoint=latest).fit().state_dict()
            assert all(torch.equal(value, resumed[name]) for name, value in unbroken.items())
        other = write(pair, tmp_path / "other", tokens=TOKENS.flip(0))
        with pytest.raises(ValueError, match=r"checkpoint was written with cache='.*Resume with the cache"):
            trainer(other, steps=20, resume_from_checkpoint=latest).fit()

    def test_another_pair_or_hook_is_refused_and_the_unknown_is_taken_on_trust(self, written):
        written.validate_source(("some/base", "some/chat"), HOOK)
        written.validate_source((None, None), None)
        with pytest.raises(ValueError, match="not of some/chat and some/base"):
            written.validate_source(("some/chat", "some/base"), HOOK)
        with pytest.raises(ValueError, match=r"at blocks.0.hook_resid_post, not at blocks.1.hook_resid_post"):
            written.validate_source(("some/base", "some/chat"), "blocks.1.hook_resid_post")

    def test_a_batch_larger_than_the_cache_is_refused(self, written):
        with pytest.raises(ValueError, match="has 112 tokens, fewer than one batch of 113"):
            written.shuffled(113)


class TestDamage:
    def test_a_flipped_bit_is_found_when_the_shard_is_read_and_the_file_is_named(self, written):
        path = written.path / "00002.chat.bin"
        content = bytearray(path.read_bytes())
        content[100] ^= 1
        path.write_bytes(content)
        cache = slc.ActivationCache(written.path)
        batches = iter(cache)
        next(batches), next(batches)
        for read in (lambda: next(batches), cache.verify, lambda: list(cache.shuffled(8, n_passes=1))):
            with pytest.raises(ValueError, match=r"00002.chat.bin: checksum mismatch"):
                read()
        trusting = slc.ActivationCache(written.path, checksums="never")
        assert sum(len(batch) for batch in trusting) == len(trusting)
        with pytest.raises(ValueError, match=r"00002.chat.bin: checksum mismatch"):
            trusting.verify()

    def test_verify_looks_again_at_what_was_read_before(self, written):
        list(written)
        written.verify()
        path = written.path / "00000.base.bin"
        path.write_bytes(bytes(path.stat().st_size))
        with pytest.raises(ValueError, match=r"00000.base.bin: checksum mismatch"):
            written.verify()

    def test_a_short_or_missing_file_is_found_at_once(self, written):
        path = written.path / "00001.base.bin"
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(ValueError, match=r"00001.base.bin has 1023 bytes, expected 1024"):
            slc.ActivationCache(written.path)
        path.unlink()
        with pytest.raises(ValueError, match=r"00001.base.bin is missing. Call cache_activations again"):
            slc.ActivationCache(written.path)

    def test_what_is_no_cache_or_of_another_format_is_refused(self, written, tmp_path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(ValueError, match="is not an activation cache"):
            slc.ActivationCache(tmp_path / "empty")
        edit_manifest(written.path, lambda fields: fields.update(format_version=99))
        with pytest.raises(ValueError, match="format_version=99, expected 2"):
            slc.ActivationCache(written.path)

    def test_an_edited_manifest_is_refused(self, written):
        edit_manifest(written.path, lambda fields: fields.update(hook_name="blocks.9.hook_resid_post"), record=False)
        with pytest.raises(ValueError, match=r"manifest.json: checksum mismatch: the file was corrupted"):
            slc.ActivationCache(written.path)


class TestWriting:
    def test_the_manifest_says_what_is_there(self, written):
        manifest = json.loads((written.path / "manifest.json").read_text())
        assert manifest["model_names"] == ["some/base", "some/chat"]
        assert (manifest["hook_name"], manifest["dtype"], manifest["d_models"]) == (HOOK, "bfloat16", [16, 24])
        assert manifest["shards"] == [32, 32, 32, 16]
        checksums = json.loads((written.path / "checksums.json").read_text())
        parts = {f"0000{i}.{name}.bin" for i in range(4) for name in ("tokens", "base", "chat")}
        assert checksums["files"].keys() == {"manifest.json", *parts}
        assert dataclasses.asdict(CacheManifest.load(written.path)) == dataclasses.asdict(written.manifest)

    @pytest.mark.parametrize("n_before", [0, 2, 5, 9, 13])
    def test_a_killed_call_leaves_whole_files_and_the_next_one_writes_the_rest_alone(
        self, pair, tmp_path, monkeypatch, n_before
    ):
        """Killed in the n-th forward pass of 14, somewhere within a shard."""
        whole = torch.cat(list(write(pair, tmp_path / "whole")))
        original, n_passes = caching._rows, []

        def killed(*args):
            if len(n_passes) == n_before:
                raise KeyboardInterrupt
            n_passes.append(None)
            return original(*args)

        monkeypatch.setattr(caching, "_rows", killed)
        with pytest.raises(KeyboardInterrupt):
            write(pair, tmp_path / "killed")
        monkeypatch.undo()
        with pytest.raises(ValueError, match="is not written yet"):
            slc.ActivationCache(tmp_path / "killed")
        before = {name: time for name, time in files(tmp_path / "killed").items() if name.endswith(".bin")}
        cache = write(pair, tmp_path / "killed")
        assert torch.equal(torch.cat(list(cache)), whole)
        cache.verify()
        after = files(tmp_path / "killed")
        assert all(after[name] == time for name, time in before.items())
        assert not [name for name in after if name.endswith(".partial")]

    def test_killed_at_any_file_operation_the_next_call_makes_the_unbroken_cache(self, pair, tmp_path, monkeypatch):
        made = partial(write, pair, tokens=TOKENS[: PER_SHARD + 1], batch_size=PER_SHARD)  # a whole shard and a part
        whole = {path.name: path.read_bytes() for path in made(tmp_path / "whole").path.iterdir()}
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a killed process loses nothing it has written
        n = 0
        while killed_at(n, tmp_path / str(n), partial(made, tmp_path / str(n))):
            cache = made(tmp_path / str(n))
            assert {path.name: path.read_bytes() for path in cache.path.iterdir()} == whole
            n += 1
        assert n > 2 * len(whole)

    def test_on_a_full_disk_what_is_written_stays_and_nothing_half_written_is_left(self, pair, tmp_path):
        """The real thing: the system refuses to write files beyond a size that only whole shards of 24 columns have."""
        options = {"prompts_per_shard": 7, "dtype": "float32"}

        def limited():
            resource.setrlimit(resource.RLIMIT_FSIZE, (4_500, 4_500))
            with pytest.raises(OSError, match=r"File too large\nFiles written to .* stay. Free disk space"):
                write(pair, tmp_path / "cache", **options)

        assert in_child(limited) == 0
        assert {path.name for path in (tmp_path / "cache").iterdir()} == {
            *(
                "manifest.json",
                "manifest.lock",
                "checksums.json",
                "00000.tokens.bin",
                "00001.tokens.bin",
                "00000.base.bin",
            )
        }
        write(pair, tmp_path / "cache", **options).verify()

    def test_a_model_that_changed_under_its_name_is_refused(self, pair, written):
        changed = random_hooked_transformer(24, seed=1)
        with torch.no_grad():
            changed.blocks[0].mlp.W_in[0, 0] += 1e-3
        other = slc.HookedModelPair(pair.base, changed, model_names=pair.model_names)
        before = files(written.path)
        with pytest.raises(ValueError, match=r"another cache: the chat model had other weights under the same"):
            write(other, written.path)
        assert files(written.path) == before

    def test_a_cache_that_does_not_say_of_which_weights_it_is_is_taken_on_trust(self, pair, written):
        edit_manifest(written.path, lambda fields: fields.pop("weights_sha256"))
        assert len(write(pair, written.path)) == len(written)

    def test_a_whole_cache_is_not_written_again_and_a_damaged_file_that_was_deleted_is(self, pair, written):
        before = files(written.path)
        write(pair, written.path)
        assert files(written.path) == before
        os.remove(written.path / "00001.chat.bin")
        write(pair, written.path).verify()
        changed = {name for name, time in files(written.path).items() if before[name] != time}
        assert changed == {"00001.chat.bin", "checksums.json"}

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"hook_name": "blocks.1.hook_resid_post"}, "hook_name is 'blocks.0.hook_resid_post', not 'blocks.1"),
            ({"dtype": "float32"}, "dtype is 'bfloat16', not 'float32'"),
            ({"tokens": TOKENS.flip(0)}, "tokens_sha256 is"),
            ({"prompts_per_shard": 5}, r"shards is \[32, 32, 32, 16\], not \[40, 40, 32\]"),
        ],
    )
    def test_a_folder_with_another_cache_is_refused_and_left_alone(self, pair, written, changed, message):
        before = files(written.path)
        with pytest.raises(ValueError, match=message):
            write(pair, written.path, **changed)
        other = slc.HookedModelPair(*pair.members, model_names=("some/base", "other/chat"))
        with pytest.raises(ValueError, match="already contains another cache: its model_names is"):
            write(other, written.path)
        assert files(written.path) == before

    def test_what_cannot_be_cached_is_refused_before_anything_is_written(self, pair, tmp_path, monkeypatch):
        for tokens, options, message in [
            (TOKENS, {"hook_name": "blocks.9.hook_resid_post"}, "no common hook"),
            (TOKENS - 1, {}, "tokens contains the id -1"),
            (TOKENS[:0], {}, "non-empty"),
            (TOKENS, {"loading": {"device": "cpu"}}, "this pair is already loaded"),
        ]:
            with pytest.raises(ValueError, match=message):
                write(pair, tmp_path / "cache", tokens, **options)
        with pytest.raises(ValueError, match="There is one model and one hook, "):
            write(("tiny-base",), tmp_path / "cache")
        assert not (tmp_path / "cache").exists()
        monkeypatch.setattr(caching.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 100}))
        with pytest.raises(ValueError, match=r"needs 9.41e-06 GB, but .* has 1e-07 GB free"):
            write(pair, tmp_path / "cache")

    def test_activations_that_are_not_finite_are_not_cached(self, pair, tmp_path):
        broken = random_hooked_transformer(24, seed=1)
        with torch.no_grad():
            broken.W_E[TOKENS[9, 0]] = torch.nan
        with pytest.raises(NonFiniteError, match=r"00002.chat.bin are NaN or infinite"):
            write(slc.HookedModelPair(pair.base, broken), tmp_path)

    def test_named_models_are_in_memory_one_at_a_time(self, tmp_path, monkeypatch):
        alive, most = weakref.WeakSet(), []
        original = cache_models.load_model

        def watched(*args):
            model = original(*args)
            alive.add(model)
            most.append(len(alive))
            return model

        monkeypatch.setattr(cache_models, "load_model", watched)
        tokens = torch.arange(24).view(3, 8)
        names = ("tiny-base", "tiny-chat")
        cache = slc.cache_activations(tmp_path, names, tokens, TINY_HOOK, dtype="float32", loading={"device": "cpu"})
        assert most == [1, 1, 1, 1]  # each once to check it, once to run it
        monkeypatch.undo()
        pair = slc.HookedModelPair.from_pretrained(*names)
        assert torch.equal(torch.cat(list(cache)), pair.activations(tokens, TINY_HOOK).flatten(0, 1))
        assert cache.manifest.model_names == names
