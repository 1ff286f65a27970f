"""Nothing trained is lost when a crosscoder cannot be saved, and what can be known is known before training."""

import errno
import importlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.models.tiny import TINY_CONTEXT_SIZE, TINY_DATASET, TINY_HOOK
from sae_lens_crosscoder.storage.locks import only_writer
from sae_lens_crosscoder.training.checkpoints import folder as checkpoint_folder
from sae_lens_crosscoder.training.runner import _WRITTEN_FILES
from tests.killing import killed_at

BATCH, STEPS = 64, 4


@pytest.fixture(scope="module")
def pair():
    return slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")


def config(tmp_path, **fields):
    defaults = dict(
        sae=slc.BatchTopKCrosscoderTrainingConfig(d_model=96, d_sae=16, k=4),
        model_name="tiny-base",
        chat_model_name="tiny-chat",
        hook_name=TINY_HOOK,
        dataset_path=TINY_DATASET,
        context_size=TINY_CONTEXT_SIZE,
        training_tokens=STEPS * BATCH,
        train_batch_size_tokens=BATCH,
        store_batch_size_prompts=2,
        n_batches_in_buffer=4,
        n_held_out_rows=4,
        lr_warm_up_steps=0,
        log_frequency=4,
        checkpoint_path=None,
        output_path=str(tmp_path / "output"),
    )
    return slc.CrosscoderRunnerConfig(**(defaults | fields))


def runner_of(tmp_path, pair, **fields):
    return slc.CrosscoderTrainingRunner(config(tmp_path, **fields), override_model=pair)


@pytest.mark.parametrize("name", _WRITTEN_FILES)
def test_a_folder_named_like_a_file_of_the_output_is_refused_before_training(tmp_path, pair, name):
    (tmp_path / "output" / name).mkdir(parents=True)
    with pytest.raises(ValueError, match=rf"Cannot write .*{re.escape(name)}'?: it is a folder"):
        runner_of(tmp_path, pair)


def test_the_list_of_files_is_what_a_run_writes(tmp_path, pair):
    runner_of(tmp_path, pair).run()
    assert {path.name for path in (tmp_path / "output").iterdir()} == set(_WRITTEN_FILES) - {"latents.parquet"}


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path, pair, monkeypatch, code):
    """Root may write into read-only folders, so the refusal of the system is played."""
    (tmp_path / "output").mkdir()

    def refuse(dir):
        assert dir == tmp_path / "output"
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("sae_lens_crosscoder.training.validation.tempfile.TemporaryFile", refuse)
    with pytest.raises(ValueError, match="output is not a writable folder"):
        runner_of(tmp_path, pair)


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def saved_elsewhere(error):
    (note,) = error.__notes__
    return Path(re.search(r"in (\S+): move them", note)[1])


@pytest.mark.parametrize(
    "writer", ["sae_lens.saes.sae.save_file", "sae_lens_crosscoder.crosscoders.folder.write_checksums"]
)
def test_a_full_disk_loses_no_trained_crosscoder(tmp_path, pair, monkeypatch, writer):
    """The disk of the output is full when the crosscoder is written, or when its checksums are; another is not."""
    module, name = writer.rsplit(".", 1)
    real = getattr(importlib.import_module(module), name)

    def fails_in_the_output(*args, **kwargs):
        if any(str(tmp_path / "output") in str(part) for part in [*args, *kwargs.values()]):
            full()
        return real(*args, **kwargs)

    monkeypatch.setattr(writer, fails_in_the_output)
    runner = runner_of(tmp_path, pair)
    with pytest.raises(OSError, match="No space left") as raised:
        runner.run()
    folder = saved_elsewhere(raised.value)
    monkeypatch.undo()
    again = slc.CrosscoderTrainingRunner(
        config(tmp_path, from_pretrained_path=str(folder)), override_model=pair
    ).training_crosscoder
    for name, weights in runner.training_crosscoder.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], weights, rtol=1e-6, atol=0)  # the threshold is folded


def test_a_folder_that_becomes_read_only_while_the_run_trains_loses_nothing(tmp_path, pair, monkeypatch):
    real = Path.mkdir
    (tmp_path / "output").mkdir()

    def refuse(path, *args, **kwargs):
        if str(tmp_path / "output") in str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, *args, **kwargs)

    runner = runner_of(tmp_path, pair)
    monkeypatch.setattr(Path, "mkdir", refuse)
    with (
        pytest.warns(UserWarning, match=r"metrics\.jsonl cannot be written.*rows stay in `history`"),
        pytest.raises(PermissionError) as raised,
    ):
        runner.run()
    assert len(runner.trainers[""].history) == 1
    assert (saved_elsewhere(raised.value) / "sae_weights.safetensors").exists()


def test_if_no_folder_can_be_written_the_error_says_both(tmp_path, pair, monkeypatch):
    monkeypatch.setattr("sae_lens.saes.sae.save_file", full)
    with pytest.raises(OSError, match="No space left") as raised:
        runner_of(tmp_path, pair).run()
    assert re.search(r"could not be saved in \S+ either: .*No space left", raised.value.__notes__[0])


def test_a_second_run_into_the_folder_of_a_first_is_refused(tmp_path, pair):
    runner = runner_of(tmp_path, pair)
    with only_writer(tmp_path / "output", ""):
        for start in (runner.run, lambda: runner_of(tmp_path, pair)):
            with pytest.raises(ValueError, match=r"Another run writes to '.*output' now\. Wait until it ends, or give"):
                start()
    runner.run()
    runner_of(tmp_path, pair)


def test_killed_in_the_last_save_the_folder_has_one_crosscoder_or_is_refused(tmp_path, pair, monkeypatch):
    """The weights of one run are never loaded with the config, or shown with the table, of another."""
    old, new = (runner_of(tmp_path / str(seed), pair, seed=seed) for seed in (0, 1))
    saved = [runner.run() for runner in (old, new)]
    slc.diagnose(saved[0], old.held_out_data()).save(tmp_path / "0" / "output")
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a killed process loses nothing it has written
    n, was_killed, outcomes = 0, True, set()
    while was_killed:
        folder = tmp_path / f"killed-{n}"
        shutil.copytree(tmp_path / "0" / "output", folder)
        new.cfg.output_path = str(folder)
        was_killed = killed_at(n, folder, lambda: new._save(""))
        seed = _seed_of(folder, saved)
        outcomes.add(seed)
        if seed != 0 and (folder / "latents.parquet").exists():
            with pytest.raises(ValueError, match="belongs to another crosscoder"):
                slc.Diagnosis.load(folder)
        new._save("")
        assert _seed_of(folder, saved) == 1
        assert not list(folder.glob(".partial"))
        n += 1
    assert outcomes == {0, 1, None}


def _seed_of(folder, saved):
    """Of the crosscoder in a folder, whose files belong together; None if it is refused."""
    try:
        loaded = slc.load(folder)
    except ValueError:
        return None
    seed = next(seed for seed in (0, 1) if torch.equal(saved[seed].W_dec, loaded.W_dec))
    assert loaded.cfg.metadata.seed == json.loads((folder / "runner_cfg.json").read_text())["seed"] == seed
    return seed


def test_latest_is_the_furthest_checkpoint_also_where_the_clock_was_set_back(tmp_path, pair, monkeypatch):
    """A day ahead when the first checkpoint was written, and right again for those after it."""
    fields = {"checkpoint_path": str(tmp_path / "checkpoints"), "n_checkpoints": STEPS - 1, "n_checkpoints_kept": 2}
    runner = runner_of(tmp_path, pair, **fields)
    replace = checkpoint_folder.replace_folder

    def replace_folder(partial, folder):
        if folder.name == str(BATCH):
            now = (partial / "checkpoint.json").stat().st_mtime
            os.utime(partial / "checkpoint.json", (now + 86400,) * 2)
        replace(partial, folder)

    monkeypatch.setattr(checkpoint_folder, "replace_folder", replace_folder)
    runner.run()
    run = Path(runner.cfg.checkpoint_path)
    assert {path.name for path in run.iterdir()} == {str(3 * BATCH), str(4 * BATCH)}
    again = runner_of(tmp_path, pair, resume_from_checkpoint="latest", **fields)
    assert Path(again.cfg.resume_from_checkpoint).name == str(4 * BATCH)
