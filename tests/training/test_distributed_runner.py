"""A whole run on several processes: who harvests what, who writes what, and how one process goes on from it."""

import json
from pathlib import Path

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.cli import main
from tests.training import test_runner
from tests.training.processes import on_processes
from tests.training.test_runner import BATCH

STEPS, D_SAE = 6, 64


def config(folder, **fields):
    shorter = {"training_tokens": STEPS * BATCH, "store_batch_size_prompts": 2, "log_frequency": 3, "n_checkpoints": 2}
    return test_runner.config(folder, **(shorter | fields))


@pytest.fixture(scope="module")
def pair():
    return slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")


def _runner(folder, pair, **fields):
    """Of one of two processes, as torchrun starts them."""
    with pytest.MonkeyPatch.context() as torchrun:
        for name, value in {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2"}.items():
            torchrun.setenv(name, value)
        return slc.CrosscoderTrainingRunner(config(folder, latent_shards=2, **fields), override_model=pair)


def _run(folder, pair):
    runner = _runner(folder, pair)
    rows = [row["input_ids"] for row in runner.activations_store.dataset]
    crosscoder = runner.run()
    return crosscoder is None, rows, runner.cfg.checkpoint_path


@pytest.fixture(scope="module")
def run(pair, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, on_processes(2, _run, tmp_path_factory.mktemp("processes"), folder, pair)


def test_the_first_process_leaves_one_ordinary_folder_and_the_others_nothing(run):
    folder, processes = run
    assert [is_none for is_none, *_ in processes] == [False, True]
    names = {path.name for path in (folder / "output").iterdir()}
    assert names == {"cfg.json", "checksums.json", "sae_weights.safetensors", "metrics.jsonl", "runner_cfg.json"}
    crosscoder = slc.load(folder / "output")
    assert crosscoder.W_dec.shape == (D_SAE, 192)
    assert crosscoder.cfg.metadata.l0 == pytest.approx(4, abs=0.05)
    rows = [json.loads(line) for line in (folder / "output" / "metrics.jsonl").read_text().splitlines()]
    assert [row["n_training_tokens"] for row in rows] == [3 * BATCH, 6 * BATCH]


def test_one_process_diagnoses_what_several_trained(run, tmp_path):
    assert main(["diagnose", str(run[0] / "output"), "--output_path", str(tmp_path)]) == 0
    assert len(slc.Diagnosis.load(tmp_path).latents) == D_SAE


def test_every_training_row_is_harvested_by_one_process(run, pair, tmp_path):
    _, processes = run
    rows = [{tuple(row) for row in rows} for _, rows, _ in processes]
    alone = slc.CrosscoderTrainingRunner(config(tmp_path), override_model=pair)
    expected = {tuple(row["input_ids"]) for row in alone.activations_store.dataset}
    assert rows[0] | rows[1] == expected
    assert abs(len(rows[0]) - len(rows[1])) <= 1
    assert len(rows[0]) + len(rows[1]) == len(expected)


def _resume(folder, pair, checkpoint):
    _runner(folder, pair, resume_from_checkpoint=str(checkpoint)).run()


def test_as_many_processes_go_on_to_the_bit(run, pair, tmp_path):
    whole, processes = run
    for checkpoint in Path(processes[0][-1]).iterdir():
        folder = tmp_path / checkpoint.name
        on_processes(2, _resume, folder / "processes", folder, pair, checkpoint)
        for name in ("sae_weights.safetensors", "metrics.jsonl"):
            assert (folder / "output" / name).read_bytes() == (whole / "output" / name).read_bytes()


def test_one_process_goes_on_from_what_several_saved(run, pair, tmp_path):
    """With the rows behind those that the several had read."""
    _, processes = run
    (path,) = {path for *_, path in processes}
    assert {checkpoint.name for checkpoint in Path(path).iterdir()} == {"384", "640"}
    state = torch.load(Path(path, "384", "run_state_0.pt"), weights_only=True)
    n_read = 2 * state["batches"]["source"]["chunks"]["n_read"]
    cfg = config(tmp_path, resume_from_checkpoint=str(Path(path, "384")))
    runner = slc.CrosscoderTrainingRunner(cfg, override_model=pair)
    read, harvest = [], runner.activations_store.get_activations
    runner.activations_store.get_activations = lambda tokens: read.extend(tokens.tolist()) or harvest(tokens)
    runner.run()
    alone = slc.CrosscoderTrainingRunner(config(tmp_path / "alone"), override_model=pair)
    rows = [row["input_ids"] for row in alone.activations_store.dataset]
    assert read == rows[n_read : n_read + len(read)]
    assert len(read) > 0
    assert runner.trainers[""].history.step.tolist() == [3, 6]
    assert (tmp_path / "output" / "sae_weights.safetensors").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"latent_shards": 3}, "latent_shards=3 must divide d_sae=64 of crosscoder ''"),
        ({"latent_shards": 0}, "latent_shards=0 must divide"),
    ],
)
def test_latents_that_cannot_be_divided_are_refused(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **fields)


def test_a_batch_that_cannot_be_divided_is_refused(tmp_path):
    with pytest.raises(ValueError, match="train_batch_size_tokens=128 cannot be divided among 3 processes"):
        config(tmp_path).share_of_stream(3)
    share = config(tmp_path).share_of_stream(2)
    assert (share.train_batch_size_tokens, share.n_batches_in_buffer) == (64, config(tmp_path).n_batches_in_buffer / 2)
