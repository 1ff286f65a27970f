"""A run on a mix, from the models and from activations on disk: the same tokens, the same activations, one config."""

import dataclasses
import json
from dataclasses import replace
from inspect import unwrap
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations.cache import writer as caching
from sae_lens_crosscoder.activations.cache.manifest import MANIFEST_FILENAME, CacheManifest, Shard
from sae_lens_crosscoder.cli import main
from sae_lens_crosscoder.models.tiny import TINY_HOOK, tiny_tokenizer
from sae_lens_crosscoder.training.data.run_cache import load_run_cache, write_run_cache
from tests.data.data_files import chat_file, run_config, text_and_chat, text_file

pytestmark = pytest.mark.usefixtures("types_unchecked_in_the_module")

PAD = tiny_tokenizer().pad_token_id
LEFT_OUT = {"packing": "one_document", "seqpos_slice": (1, None), "exclude_special_tokens": [5, 40]}


@pytest.fixture(scope="module")
def pair():
    return slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")


@pytest.fixture
def mix(tmp_path):
    return text_and_chat(tmp_path)


@pytest.fixture
def no_models(monkeypatch):
    def refuse(*args):
        raise AssertionError("a language model was loaded")

    return lambda: monkeypatch.setattr("sae_lens_crosscoder.models.pair.load_models", refuse)


def cached(tmp_path, mix, **fields):
    return run_config(mix=mix, use_cached_activations=True, cached_activations_path=str(tmp_path / "cache"), **fields)


def from_models(cfg, pair):
    models = cfg.replace(use_cached_activations=False, activations_mixing_fraction=0.0)
    return slc.CrosscoderTrainingRunner(models, override_model=pair)


class TestFromModels:
    def test_padding_and_what_else_is_left_out_is_neither_trained_nor_diagnosed_on(self, mix, pair):
        runner = from_models(run_config(mix=mix, **LEFT_OUT), pair)
        contexts = torch.stack(list(islice(runner.activations_store.iterable_sequences, 20)))
        keep = torch.tensor([[p > 0 and t not in (PAD, 5, 40) for p, t in enumerate(row)] for row in contexts.tolist()])
        expected = pair.activations(contexts, TINY_HOOK)[keep]
        stream = from_models(runner.cfg, pair).activations_store
        served = torch.cat([next(stream) for _ in range(len(expected) // 128)])
        torch.testing.assert_close(served, expected[: len(served)])
        held_out = runner.held_out_tokens
        padding = (held_out == PAD) | (held_out == 5) | (held_out == 40)
        padding[:, 0] = True
        assert torch.equal(runner.held_out_kept, ~padding)
        diagnosis = slc.diagnose(runner.run(), runner.held_out_data())
        assert diagnosis.manifest["n_tokens"] == int((~padding).sum()) < held_out.numel()

    def test_held_out_contexts_come_with_their_sources(self, mix, pair):
        runner = from_models(run_config(mix=mix), pair)
        n = len(runner.held_out_tokens)
        assert runner.held_out_sources == [("web", "chat")[i % 2] for i in range(n)]

    def test_a_saved_crosscoder_says_what_it_was_trained_on(self, mix):
        table = {"<sot>": "<pad>"}
        crosscoder = slc.CrosscoderTrainingRunner(run_config(mix=mix, token_replacements=table)).run()
        metadata = crosscoder.cfg.metadata
        assert metadata.mix == dataclasses.asdict(mix)
        assert (metadata.token_replacements, metadata.packing) == (table, "concatenated")

    def test_a_plan_needs_no_more_than_that_of_another_dataset(self, mix):
        plans = [
            slc.planning.plan(run_config(**data), measure_time=False)
            for data in ({"mix": mix}, {"dataset_path": "tiny-mix"})
        ]
        assert str(plans[0]) == str(plans[1])


class TestCache:
    @pytest.mark.parametrize("fields", [{}, LEFT_OUT])
    def test_it_holds_what_the_run_would_train_on_and_be_diagnosed_on(self, tmp_path, mix, pair, fields):
        cfg = cached(tmp_path, mix, **fields)
        training, held_out = write_run_cache(cfg, dtype="float32", prompts_per_shard=7)
        runner = from_models(cfg, pair)
        stream = torch.cat([next(runner.activations_store) for _ in range(len(training) // 128)])
        torch.testing.assert_close(torch.cat(list(training))[: len(stream)], stream)
        assert cfg.training_tokens <= len(training) < cfg.training_tokens + cfg.context_size
        kept = runner.held_out_kept
        assert torch.equal(held_out.tokens, runner.held_out_tokens[kept])
        torch.testing.assert_close(torch.cat(list(held_out)), pair.activations(runner.held_out_tokens, TINY_HOOK)[kept])

    def test_training_on_it_loads_no_models_and_is_diagnosed_on_it(self, tmp_path, mix, pair, no_models):
        cfg = cached(tmp_path, mix)
        write_run_cache(cfg, dtype="float32")
        no_models()
        runner = slc.CrosscoderTrainingRunner(cfg)
        crosscoder = runner.run()
        metadata = crosscoder.cfg.metadata
        assert (metadata.model_name, metadata.chat_model_name) == ("tiny-base", "tiny-chat")
        from_cache = slc.diagnose(crosscoder, runner.held_out_data())
        from_pair = slc.diagnose(crosscoder, from_models(cfg, pair).held_out_data())
        assert from_cache.manifest["n_tokens"] == from_pair.manifest["n_tokens"]
        pd.testing.assert_series_equal(from_cache.latents.frequency, from_pair.latents.frequency)
        counted = slc.analysis.latent_statistics(crosscoder, runner.held_out_data())
        assert counted.fve["pooled"] == pytest.approx(from_pair.manifest["fve"]["pooled"])
        with pytest.raises(ValueError, match="reads cached activations and has loaded no models"):
            _ = runner.pair

    def test_the_same_config_trains_the_same_crosscoder(self, tmp_path, mix):
        cfg = cached(tmp_path, mix)
        write_run_cache(cfg)
        written = json.loads(json.dumps(cfg.to_dict()))
        first, again = (
            slc.CrosscoderTrainingRunner(config).run()
            for config in (cfg, slc.CrosscoderRunnerConfig.from_dict(written))
        )
        assert torch.equal(first.W_dec, again.W_dec)

    def test_the_base_model_reads_the_replacements(self, tmp_path, mix):
        table = {"<sot>": "<pad>"}
        training, _ = write_run_cache(cached(tmp_path, mix, token_replacements=table), dtype="float32")
        replacing = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat", token_replacements=table)
        runner = from_models(run_config(mix=mix, token_replacements=table), replacing)
        torch.testing.assert_close(torch.cat(list(training))[:128], next(runner.activations_store))
        assert training.manifest.token_replacements == table

    def test_a_killed_call_is_gone_on_with(self, tmp_path, mix, monkeypatch):
        original, n_passes, killed_at = caching._rows, [], [None]

        def killed(*args):
            n_passes.append(None)
            if len(n_passes) == killed_at[0]:
                raise KeyboardInterrupt
            return original(*args)

        monkeypatch.setattr(caching, "_rows", killed)
        whole = [torch.cat(list(cache)) for cache in write_run_cache(cached(tmp_path / "a", mix), prompts_per_shard=7)]
        n_whole = len(n_passes)
        n_passes.clear()
        killed_at[0] = n_whole // 2
        cfg = cached(tmp_path / "b", mix)
        with pytest.raises(KeyboardInterrupt):
            write_run_cache(cfg, prompts_per_shard=7)
        with pytest.raises(ValueError, match="is not written yet"):
            load_run_cache(cfg)
        n_passes.clear()
        killed_at[0] = None
        for cache, expected in zip(write_run_cache(cfg, prompts_per_shard=7), whole, strict=True):
            assert torch.equal(torch.cat(list(cache)), expected)
            cache.verify()
        assert len(n_passes) <= n_whole - n_whole // 2 + 2  # a shard takes two, and one shard was half written

    @pytest.mark.parametrize("in_memory", ["one_model", "both_models"])
    def test_workers_write_what_one_does_and_training_that_waits_learns_the_same(self, tmp_path, mix, in_memory):
        alone, shared = (cached(tmp_path / name, mix, wait_for_cache=0.1) for name in ("alone", "shared"))
        write_run_cache(alone, prompts_per_shard=7)
        write_run_cache(shared, prompts_per_shard=7, worker=(0, 2), in_memory=in_memory)
        with pytest.raises(ValueError, match=r"training/00001.\w+.bin is not written yet, and no file .* for 0.1 s"):
            slc.CrosscoderTrainingRunner(shared).run()
        write_run_cache(shared, prompts_per_shard=7, worker=(1, 2), in_memory=in_memory)
        for cache, expected in zip(load_run_cache(shared), load_run_cache(alone), strict=True):
            assert cache.manifest == expected.manifest
            assert torch.equal(torch.cat(list(cache)), torch.cat(list(expected)))
        assert_same(*(slc.CrosscoderTrainingRunner(cfg).run() for cfg in (shared, alone)))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"worker": (1, 1)}, r"worker=\(1, 1\) must be \(i, n\)"),
            ({"in_memory": "both"}, "in_memory='both' is not one of one_model, both_models"),
        ],
    )
    def test_what_cannot_be_is_refused_before_anything_is_read(self, tmp_path, mix, monkeypatch, options, message):
        unchecked = unwrap(write_run_cache)
        monkeypatch.setattr(
            "sae_lens_crosscoder.training.data.run_cache.RunRows", lambda cfg: pytest.fail("rows were read")
        )
        with pytest.raises(ValueError, match=message):
            unchecked(cached(tmp_path, mix), **options)

    def test_held_out_files_begin_the_wait_for_the_training_manifest_anew(self, tmp_path, mix, monkeypatch):
        cfg = cached(tmp_path, mix, wait_for_cache=10)
        training, held_out = write_run_cache(cfg, prompts_per_shard=3)
        manifest, away = training.path / MANIFEST_FILENAME, tmp_path / "away"
        manifest.rename(away)
        begun = CacheManifest.load(held_out.path)
        begun.shards = [Shard(shard.n_tokens, {}) for shard in begun.shards]
        begun.save(held_out.path)
        clock = [0.0]

        def written():
            for i, shard in enumerate(held_out.manifest.shards):
                for name, sha256 in shard.sha256.items():
                    yield begun.add_checksums(held_out.path, name, {i: sha256})
            yield away.rename(manifest)

        def sleep(seconds):
            clock[0] += 9
            next(files)

        files = written()
        fake = SimpleNamespace(sleep=sleep, monotonic=lambda: clock[0])
        monkeypatch.setattr("sae_lens_crosscoder.activations.cache.reader.time", fake)
        found = [each.manifest for each in load_run_cache(cfg)]
        assert found == [training.manifest, held_out.manifest]
        assert clock[0] > 5 * cfg.wait_for_cache

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"hook_name": "blocks.1.hook_resid_post"}, f"activations at {TINY_HOOK}, not at blocks.1.hook_resid_post"),
            ({"chat_model_name": "tiny-null"}, "of tiny-base and tiny-chat, not of tiny-base and tiny-null"),
            ({"packing": "one_document", "seed": 3}, "its config differs in packing, seed"),
            ({"token_replacements": {"<sot>": "<pad>"}}, "its config differs in token_replacements"),
            ({"sae": slc.BatchTopKCrosscoderTrainingConfig(d_model=64, d_sae=64, k=4)}, r"these models are \(96, 96\)"),
            ({"cached_activations_path": "nowhere"}, "nowhere/training is not an activation cache"),
            (
                {"train_batch_size_tokens": 2048, "training_tokens": 4096, "lr_warm_up_steps": 0},
                "fewer than one batch",
            ),
        ],
    )
    def test_a_cache_of_something_else_is_refused(self, tmp_path, mix, no_models, fields, message):
        write_run_cache(cached(tmp_path, mix))
        no_models()
        with pytest.raises(ValueError, match=message):
            slc.CrosscoderTrainingRunner(replace(cached(tmp_path, mix), **fields))

    def test_without_a_folder_nothing_is_cached_and_models_given_beside_one_are_refused(self, tmp_path, mix, pair):
        with pytest.raises(ValueError, match="cached_activations_path is not set"):
            write_run_cache(run_config(mix=mix))
        with pytest.raises(ValueError, match="needs no dataset and no models"):
            slc.CrosscoderTrainingRunner(cached(tmp_path, mix), override_model=pair)


def test_cache_train_and_diagnose_by_the_command_line(tmp_path, mix, monkeypatch, no_models, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mix.json").write_text(json.dumps(dataclasses.asdict(mix)))
    flags = (
        f"--model_name tiny-base --chat_model_name tiny-chat --hook_name {TINY_HOOK} --mix mix.json --context-size 16 "
        "--packing one_document --d_model 96 --d_sae 32 --k 4 --training_tokens 1024 --train_batch_size_tokens 128 "
        "--lr_warm_up_steps 2 --n_held_out_rows 8 --checkpoint_path None --cached_activations_path cache"
    ).split()
    flags += ["--token_replacements", '{"<sot>": "<pad>"}']
    options = ["--cache_dtype", "float32", "--in_memory", "both_models", "--n_workers", "2", "--worker"]
    for worker in ("0", "1"):
        assert main(["cache", *flags, *options, worker]) == 0
    printed = capsys.readouterr().out
    assert "worker 1 of 2 has written its shards of\ncache/training: 1,0" in printed
    no_models()
    training = ["--use_cached_activations", "True", "--wait_for_cache", "9"]
    assert main(["train", *flags, *training, "--output_path", "out"]) == 0
    first = slc.Diagnosis.load("out").latents
    assert main(["diagnose", "out"]) == 0
    pd.testing.assert_frame_equal(slc.Diagnosis.load("out").latents, first)
    assert main(["diagnose", "out", "--n_held_out_rows", "2"]) == 2
    assert main(["train", *flags, "--cached_activations_path", "other", "--use_cached_activations", "True"]) == 2
    assert "other/training is not an activation cache" in capsys.readouterr().err
    saved = json.loads(Path("out/runner_cfg.json").read_text())
    assert saved["mix"]["sources"][1]["kind"] == "conversations"
    assert main(["plan", "out"]) == 0


@pytest.mark.parametrize("from_cache", [False, True])
def test_every_command_leaves_out_what_training_leaves_out(tmp_path, mix, monkeypatch, no_models, caplog, from_cache):
    monkeypatch.chdir(tmp_path)
    names = {"chat_model_name": "tiny-base+jitter=0.02", "output_path": "out"}
    cfg = cached(tmp_path, mix, **names, **LEFT_OUT)
    if from_cache:
        write_run_cache(cfg, dtype="float32")
        no_models()
    runner = slc.CrosscoderTrainingRunner(cfg if from_cache else cfg.replace(use_cached_activations=False))
    diagnosis = slc.diagnose(runner.run(), runner.held_out_data())
    table, n_kept = diagnosis.latents, diagnosis.manifest["n_tokens"]
    latents = table.index[table.n_active > 5][:2]
    command = "interpret --crosscoder out --model m --embedder words --dry-run --n_windows 50 --latents"
    assert main([*command.split(), *map(str, latents)]) == 0
    examples = slc.analysis.load_examples("out/examples.safetensors")
    assert examples.manifest["n_tokens"] == n_kept
    bands = [band for latent in latents for band in (examples[latent].top, *examples[latent].quantiles)]
    shown = [each for band in bands for each in band]
    assert shown
    assert not {int(each.token_ids[each.peak]) for each in shown} & {PAD, 5, 40}
    assert all(each.token_ids[0] != PAD != each.token_ids[-1] for each in shown)
    assert main(["paper-report", "out", "--output_path", "paper", "--images"]) == 0
    measured = pd.read_parquet("paper/latents.parquet").loc["out"]
    pd.testing.assert_series_equal(measured.n_active, table.n_active)
    assert main(["report", "--crosscoder", "out"]) == 0  # with the examples that are there
    page = Path("explorer.html").read_text()
    assert f'"n_tokens": {n_kept}' in page or f'"n_tokens":{n_kept}' in page
    assert ("omits logit lens, KL and effects" in caplog.text) == from_cache


@pytest.mark.filterwarnings("ignore:All samples in the training dataset have been exhausted")
class TestGoingOn:
    """A run whose data vanish is gone on with to the bit, over several passes of its data."""

    @pytest.mark.parametrize(("rule", "fields"), [("alternate", {}), ("alternate", LEFT_OUT), ("probability", {})])
    def test_on_a_mix(self, tmp_path, pair, rule, fields):
        def runner(**more):
            cfg = run_config(mix=mix, n_batches_in_buffer=20, **fields, **more)
            return slc.CrosscoderTrainingRunner(cfg, override_model=pair)

        mix = slc.DataMix(small_sources(tmp_path), rule)
        unbroken = runner().run()
        for n_chunks in (6, 15):  # in the first pass, and in a later one
            checkpoints = str(tmp_path / str(n_chunks))
            stopped = runner(checkpoint_path=checkpoints)
            store = stopped.activations_store
            store.get_activations = vanishing(store.get_activations, n_chunks)
            with pytest.raises(Vanishing, match="tokens of training are saved in"):
                stopped.run()
            assert_same(runner(checkpoint_path=checkpoints, resume_from_checkpoint="latest").run(), unbroken)

    @pytest.mark.parametrize("n_batches", [1, 5])
    def test_on_a_cache(self, tmp_path, no_models, n_batches):
        cfg = cached(tmp_path, slc.DataMix(small_sources(tmp_path)), training_tokens=400)
        write_run_cache(cfg, prompts_per_shard=7)
        cfg = cfg.replace(training_tokens=8 * 128)
        no_models()
        unbroken = slc.CrosscoderTrainingRunner(cfg).run()
        checkpoints = str(tmp_path / "checkpoints")
        stopped = slc.CrosscoderTrainingRunner(cfg.replace(checkpoint_path=checkpoints))
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(slc.CrosscoderTrainer, "step", vanishing(slc.CrosscoderTrainer.step, n_batches))
            with pytest.raises(Vanishing, match=rf"All {n_batches * 128} tokens of training are saved in"):
                stopped.run()
        again = cfg.replace(checkpoint_path=checkpoints, resume_from_checkpoint="latest")
        assert_same(slc.CrosscoderTrainingRunner(again).run(), unbroken)


class Vanishing(Exception):
    pass


def vanishing(function, n_calls):
    """The function, until it was called so often."""
    calls = []

    def call(*args):
        calls.append(None)
        if len(calls) > n_calls:
            raise Vanishing("the data are gone")
        return function(*args)

    return call


def small_sources(folder):
    """About 26 contexts in all, which is 416 tokens."""
    web = slc.MixSource(text_file(folder, n=24, name="small.jsonl"), name="web")
    chat = slc.MixSource(chat_file(folder, n=24, name="talk.jsonl"), kind="conversations", name="chat")
    return [web, chat]


def assert_same(first, second):
    first, second = first.state_dict(), second.state_dict()
    assert [name for name, value in first.items() if not torch.equal(value, second[name])] == []
