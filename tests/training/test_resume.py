"""A run that was stopped, killed or damaged goes on as the unbroken one, to the bit, or says why it cannot."""

import errno
import json
import math
import os
import random
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from sae_lens.training._interruption import InterruptedException

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations.shuffle_buffer import mixed_batches
from sae_lens_crosscoder.activations.training_batches import TrainingBatches
from sae_lens_crosscoder.synthetic.null_streams import shuffled_batches
from sae_lens_crosscoder.synthetic.worlds import world_a
from sae_lens_crosscoder.training.checkpoints import folder as checkpoint_folder
from sae_lens_crosscoder.training.checkpoints.folder import CheckpointError, problem_with
from tests.killing import in_child, killed_at

pytestmark = pytest.mark.usefixtures("types_unchecked_in_the_module")

BATCH, STEPS, D_SAE = 64, 12, 32


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    """A killed process loses nothing that it handed to the system."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def activations():
    return world_a(seed=0).sample(1024, seed=1).activations


def crosscoder(kind, **fields):
    torch.manual_seed(0)
    if kind == "l1":
        fields = {"l1_warm_up_steps": 9} | fields
        return slc.L1TrainingCrosscoder(slc.L1CrosscoderTrainingConfig(d_model=64, d_sae=D_SAE, **fields))
    fields = {"k": 4, "k_max": 8, "k_anneal_steps": 10} | fields
    return slc.BatchTopKTrainingCrosscoder(slc.BatchTopKCrosscoderTrainingConfig(d_model=64, d_sae=D_SAE, **fields))


def config(folder, steps=STEPS, **fields):
    defaults = dict(
        lr=1e-2,
        lr_warm_up_steps=3,
        lr_decay_steps=4,
        dead_feature_window=2,
        feature_sampling_window=5,
        log_frequency=2,
        n_batches_for_norm_estimate=3,
        n_checkpoints=3,
        checkpoint_path=None if folder is None else str(folder / "checkpoints"),
        metrics_path=None if folder is None else str(folder / "metrics.jsonl"),
    )
    return slc.CrosscoderTrainerConfig(
        total_training_samples=steps * BATCH, train_batch_size_samples=BATCH, **(defaults | fields)
    )


def mixed(activations):
    """Batches through the mixing buffer, from chunks that fit neither it nor the batches."""
    chunks = (chunk for _ in range(3) for chunk in activations.split(100))
    return mixed_batches(chunks, batch_size=BATCH, buffer_size=5 * BATCH, seed=3)


def trainers(folder, kinds=("batchtopk",), crosscoder_fields=None, **fields):
    cfg = config(folder, **fields)
    saes = {kind: crosscoder(kind, **(crosscoder_fields or {})) for kind in kinds}
    return {kind: slc.CrosscoderTrainer(cfg, sae, iter(()), name=kind) for kind, sae in saes.items()}


def run(folder, stream, **fields):
    trained = trainers(folder, **fields)
    slc.training.train_together(trained, stream)
    return trained


def everything(trained):
    """All that a run leaves: weights, buffers, moments, schedules, counters, metrics."""
    found = {}
    for name, trainer in trained.items():
        found |= {f"{name} {key}": value for key, value in trainer.sae.state_dict().items()}
        for index, moments in trainer.optimizer.state_dict()["state"].items():
            found |= {f"{name} {index} {key}": value for key, value in moments.items()}
        found |= {
            f"{name} fired": trainer.n_forward_passes_since_fired,
            f"{name} frequency": trainer.act_freq_scores,
            f"{name} n": torch.tensor([trainer.n_training_steps, trainer.n_training_samples]),
            f"{name} lr": torch.tensor(trainer.lr_scheduler.get_last_lr(), dtype=torch.float64),
            f"{name} metrics": torch.tensor(trainer.history.fillna(-1).to_numpy()),
        }
    return found


def assert_same(first, second):
    first, second = everything(first), everything(second)
    assert first.keys() == second.keys()
    assert [name for name, value in first.items() if not torch.equal(value, second[name])] == []


class Stopping:
    """A stream that raises, or does something else, when its n-th batch is asked for."""

    def __init__(self, stream, n, act):
        self.stream, self.n, self.act = stream, n, act

    def __iter__(self):
        return self

    def __next__(self):
        self.n -= 1
        if self.n < 0:
            self.act()
        return next(self.stream)

    def state_dict(self):
        return self.stream.state_dict()

    def load_state_dict(self, state):
        self.stream.load_state_dict(state)


def raising(error):
    def act():
        raise error

    return act


STREAMS = {
    "mixing buffer": mixed,
    "any iterator": lambda activations: shuffled_batches(activations, BATCH, seed=0),
}


class TestResumedIsUnbroken:
    @pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)
    @pytest.mark.parametrize("n_batches", [1, 5, 11])
    @pytest.mark.parametrize(
        ("kinds", "fields"),
        [
            (("batchtopk",), {}),
            (("l1",), {}),
            (("l1", "batchtopk"), {"crosscoder_fields": {"activation_scaling": "per_model"}}),
            (("batchtopk",), {"crosscoder_fields": {"normalize_activations": "expected_average_only_in"}}),
        ],
    )
    def test_after_any_number_of_batches(self, activations, tmp_path, make, n_batches, kinds, fields):
        options = {"kinds": kinds} | fields
        unbroken = run(tmp_path / "unbroken", make(activations), **options)
        scaling = 3 if fields else 0  # batches that scales are estimated on
        stopped = Stopping(make(activations), n_batches + scaling, raising(OSError("the disk is gone")))
        if make is not mixed:
            stopped = iter(list_until(stopped))
        with pytest.raises((OSError, ValueError), match=rf"All {n_batches * BATCH} tokens of training are saved in"):
            run(tmp_path / "stopped", stopped, **options)
        random.seed(8), np.random.seed(8), torch.manual_seed(8)  # noqa: NPY002
        resumed = run(tmp_path / "stopped", make(activations), resume_from_checkpoint="latest", **options)
        assert_same(resumed, unbroken)
        metrics = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("unbroken", "stopped")]
        if len(kinds) == 1:
            assert metrics[0] == metrics[1]

    @pytest.mark.parametrize("kind", ["l1", "batchtopk"])
    def test_what_a_step_leaves_for_the_next_is_there_again(self, activations, tmp_path, kind):
        """Such as whether it is made sparsely, which is the same numbers but for their last bits."""
        trained = run(tmp_path, mixed(activations), kinds=(kind,), save_final_checkpoint=True)[kind].sae
        resumed = run(tmp_path, mixed(activations), kinds=(kind,), resume_from_checkpoint="latest")[kind].sae
        assert resumed.carried_state() == trained.carried_state() != crosscoder(kind).carried_state()

    def test_every_global_random_generator_goes_on_where_it_was(self, activations, tmp_path):
        drawn = []

        def drawing(n):
            for batch in list(shuffled_steps(activations, n)):
                drawn.append((random.random(), np.random.rand(), torch.rand(()).item()))  # noqa: NPY002
                yield batch

        random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
        run(tmp_path / "unbroken", drawing(STEPS))
        unbroken, drawn[:] = drawn[5:], []
        random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
        with pytest.raises(ValueError, match="ended after"):
            run(tmp_path / "stopped", drawing(5))
        drawn.clear()
        random.seed(2), np.random.seed(2), torch.manual_seed(2)  # noqa: NPY002
        run(tmp_path / "stopped", drawing(STEPS), resume_from_checkpoint="latest")
        assert drawn[5:] == unbroken

    def test_batches_made_ahead_and_not_used_are_not_lost(self, activations, tmp_path):
        unbroken = run(tmp_path / "unbroken", mixed(activations))
        trained = trainers(tmp_path / "ahead")
        cfg = trained["batchtopk"].cfg
        slc.training.train_together(trained, mixed(activations), n_ahead=3)
        assert_same(trained, unbroken)
        for checkpoint in sorted(os.listdir(cfg.checkpoint_path)):
            for n_ahead in (0, 2):
                folder = f"{cfg.checkpoint_path}/{checkpoint}"
                resumed = trainers(tmp_path / "again", resume_from_checkpoint=folder)
                slc.training.train_together(resumed, mixed(activations), n_ahead=n_ahead)
                assert_same(resumed, unbroken)

    def test_a_longer_run_goes_on_with_the_schedule_of_its_own_length(self, activations, tmp_path):
        fields = {"lr_scheduler_name": "cosineannealing", "lr_warm_up_steps": 0, "lr_decay_steps": 0}
        run(tmp_path, mixed(activations), steps=6, save_final_checkpoint=True, **fields)
        longer = run(tmp_path, mixed(activations), steps=STEPS, resume_from_checkpoint="latest", **fields)
        (trainer,) = longer.values()
        assert trainer.n_training_steps == STEPS
        lr_end = trainer.cfg.lr / 10
        expected = [lr_end + (1e-2 - lr_end) * (1 + math.cos(math.pi * step / STEPS)) / 2 for step in (9, 11)]
        assert trainer.history.set_index("step").lr[[10, 12]].tolist() == pytest.approx(expected, rel=1e-6)

    def test_a_finished_run_goes_on_with_the_factor_that_it_was_scaled_by(self, activations, tmp_path):
        fields = {"crosscoder_fields": {"normalize_activations": "expected_average_only_in"}, "lr_decay_steps": 0}
        first = run(tmp_path, mixed(activations), steps=6, save_final_checkpoint=True, **fields)["batchtopk"].sae
        longer = run(tmp_path, mixed(activations), resume_from_checkpoint="latest", **fields)["batchtopk"].sae
        assert torch.equal(longer.input_scales, first.input_scales)
        assert longer.cfg.normalize_activations == first.cfg.normalize_activations == "none"

    def test_a_longer_run_is_that_of_its_own_length_from_the_start(self, activations, tmp_path):
        unbroken = run(tmp_path / "unbroken", mixed(activations))
        run(tmp_path, mixed(activations), steps=8, n_checkpoints=7, n_checkpoints_kept=8)
        before_the_decay = tmp_path / "checkpoints" / str(4 * BATCH)
        resumed = run(tmp_path, mixed(activations), resume_from_checkpoint=str(before_the_decay))
        first, second = everything(resumed), everything(unbroken)
        assert all(torch.equal(value, second[name]) for name, value in first.items() if "metrics" not in name)


def shuffled_steps(activations, n):
    stream = shuffled_batches(activations, BATCH, seed=0)
    return [next(stream) for _ in range(n)]


def list_until(stream):
    """The batches until the stream raises; an iterator without a state of its own."""
    found = []
    try:
        found.extend(iter(stream))
    except OSError:
        return found


class TestInterruption:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_saves_everything_and_gives_its_exit_code(self, activations, tmp_path, number):
        previous = signal.getsignal(number)
        unbroken = run(tmp_path / "unbroken", mixed(activations))
        stream = Stopping(mixed(activations), 5, lambda: os.kill(os.getpid(), number) if stream.n == -1 else None)
        message = rf"interrupted by {number.name}.\nAll 384 tokens of training are saved in .*/384"
        with pytest.raises(InterruptedException, match=message) as caught:
            run(tmp_path / "stopped", stream)
        assert caught.value.exit_code == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
        assert signal.getsignal(number) is previous
        assert_same(run(tmp_path / "stopped", mixed(activations), resume_from_checkpoint="latest"), unbroken)

    def test_a_second_signal_does_not_wait_and_saves_nothing(self, activations, tmp_path):
        def twice():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, Stopping(mixed(activations), 2, twice), n_checkpoints=0)
        assert not (tmp_path / "checkpoints").exists()


class TestGuards:
    """The state before what went wrong is saved, of all crosscoders, whichever of them it went wrong in."""

    @pytest.mark.parametrize("kinds", [("l1", "batchtopk"), ("batchtopk", "l1"), ("batchtopk",)])
    @pytest.mark.parametrize(
        ("what", "message"),
        [
            ("activations", r"The chat model's activations are NaN or infinite on 1 of 64 tokens at step 5"),
            ("loss", r"loss of crosscoder 'batchtopk' became nan at step 5 .* with a lower lr"),
            ("gradient", r"gradient of crosscoder 'batchtopk' .* at step 5, .*not finite: b_enc\)"),
        ],
    )
    def test_what_is_not_finite_stops_training_before_it_is_learned(
        self, activations, tmp_path, monkeypatch, kinds, what, message
    ):
        unbroken = run(tmp_path / "unbroken", mixed(activations), kinds=kinds)
        trained = trainers(tmp_path / "stopped", kinds=kinds)
        self.spoil(trained["batchtopk"], what, monkeypatch)
        with pytest.raises(slc.activations.NonFiniteError, match=message) as caught:
            slc.training.train_together(trained, mixed(activations))
        assert "All 320 tokens of training are saved in" in caught.value.__notes__[0]
        monkeypatch.undo()
        resumed = run(tmp_path / "stopped", mixed(activations), kinds=kinds, resume_from_checkpoint="latest")
        assert_same(resumed, unbroken)

    @staticmethod
    def spoil(trainer, what, monkeypatch):
        forward = trainer.sae.training_forward_pass

        def spoilt(step_input):
            output = forward(step_input)
            if step_input.n_training_steps == 5 and what == "loss":
                output.loss = output.loss * math.nan
            if step_input.n_training_steps == 5 and what == "gradient":
                output.loss = output.loss + (trainer.sae.b_enc[0] - trainer.sae.b_enc[0].detach()).clamp(min=0).sqrt()
            return output

        monkeypatch.setattr(trainer.sae, "training_forward_pass", spoilt)
        step = trainer.step

        def stepping(batch):
            if trainer.n_training_steps == 5:
                batch = batch.clone()
                batch[3, 100] = math.inf
            return step(batch)

        if what == "activations":
            monkeypatch.setattr(trainer, "step", stepping)

    def test_a_full_disk_stops_training_and_the_checkpoint_before_stays_whole(self, activations, tmp_path, monkeypatch):
        unbroken = run(tmp_path / "unbroken", mixed(activations))
        written = []
        original = checkpoint_folder.file_sha256

        def full(path):
            written.append(path)
            if "640" in str(path):
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(path)

        monkeypatch.setattr(checkpoint_folder, "file_sha256", full)
        with pytest.raises(
            CheckpointError, match=r"640 could not be written: .*No space left on device. .* GB are free"
        ):
            run(tmp_path / "full", mixed(activations))
        monkeypatch.undo()
        assert sorted(os.listdir(tmp_path / "full" / "checkpoints")) == ["256", "448"]
        assert_same(run(tmp_path / "full", mixed(activations), resume_from_checkpoint="latest"), unbroken)

    def test_files_that_cannot_grow_are_reported_whichever_library_writes_them(self, activations, tmp_path):
        """The real thing, in torch's and safetensors' own code: the system refuses to write more than some bytes."""
        for n_bytes in (2_000, 40_000):
            assert in_child(lambda n=n_bytes: self.limited(activations, tmp_path, n)) == 0
            assert not list((tmp_path / "checkpoints").iterdir())

    @staticmethod
    def limited(activations, folder, n_bytes):
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))
        with pytest.raises(CheckpointError, match="could not be written"):
            run(folder, mixed(activations), metrics_path=None)

    def test_an_error_that_comes_with_a_full_disk_says_both(self, activations, tmp_path, monkeypatch):
        monkeypatch.setattr(checkpoint_folder, "file_sha256", raising_always(OSError(errno.ENOSPC, "No space left")))
        stream = Stopping(mixed(activations), 2, raising(OSError("the dataset is gone")))
        with pytest.raises(OSError, match="the dataset is gone") as caught:
            run(tmp_path, stream, n_checkpoints=0)
        assert "could not be written" in caught.value.__notes__[0]

    def test_without_a_checkpoint_path_the_error_says_that_nothing_was_saved(self, activations):
        stream = Stopping(mixed(activations), 2, raising(OSError("the dataset is gone")))
        with pytest.raises(OSError, match="is gone\nNothing was saved, because checkpoint_path is None"):
            run(None, stream)


def raising_always(error):
    def act(*args):
        raise error

    return act


class TestWhichCheckpoint:
    @pytest.fixture
    def two(self, activations, tmp_path):
        run(tmp_path, mixed(activations))
        return tmp_path / "checkpoints"

    def test_as_many_stay_as_are_to_be_kept(self, activations, tmp_path):
        for n_kept, expected in ((None, {"256", "448", "640", "final_768"}), (2, {"640", "final_768"})):
            folder = tmp_path / str(n_kept)
            (folder / "checkpoints" / "999.partial").mkdir(parents=True)
            run(folder, mixed(activations), n_checkpoints_kept=n_kept, save_final_checkpoint=True)
            assert set(os.listdir(folder / "checkpoints")) - {"999.partial"} == expected
        assert not (folder / "checkpoints" / "999.partial").exists()

    @pytest.mark.parametrize(
        "damage",
        [
            lambda folder: (folder / "run_state_0.pt").unlink(),
            lambda folder: (folder / "checkpoint.json").write_text("{"),
            lambda folder: (folder / "checkpoint.json").unlink(),
            lambda folder: flip_a_bit(folder / "checkpoint.json"),
            lambda folder: flip_a_bit(folder / "batchtopk" / "sae_weights.safetensors"),
            lambda folder: os.truncate(folder / "batchtopk" / "trainer_state.pt", 1000),
        ],
    )
    def test_latest_passes_over_what_is_not_whole(self, activations, two, damage, caplog):
        unbroken = run(two.parent / "unbroken", mixed(activations))
        damage(two / "640")
        resumed = trainers(two.parent, resume_from_checkpoint="latest")
        slc.training.train_together(resumed, mixed(activations))
        assert_same(resumed, unbroken)
        assert problem_with(two / "640") is None  # written anew
        damage(two / "640")
        with pytest.raises(ValueError, match=r"resume_from_checkpoint: .*640.*Give a complete checkpoint"):
            run(two.parent, mixed(activations), resume_from_checkpoint=str(two / "640"))

    def test_other_settings_are_refused_by_name_and_their_checkpoints_never_taken(self, activations, two):
        other = {"crosscoder_fields": {"k": 3}}
        for requested, message in (
            ("latest", "no complete checkpoint of this run"),
            (str(two / "448"), "of another run"),
        ):
            with pytest.raises(ValueError, match=rf"{message}.*batchtopk.crosscoder.k is 4 there and 3 here"):
                run(two.parent, mixed(activations), resume_from_checkpoint=requested, **other)
        with pytest.raises(ValueError, match=r"trainer.lr is 0.01 there and 0.02 here"):
            run(two.parent, mixed(activations), resume_from_checkpoint="latest", lr=0.02, lr_end=1e-3)
        with pytest.raises(ValueError, match=r"l1.crosscoder.k?.* is None there"):
            run(two.parent, mixed(activations), resume_from_checkpoint="latest", kinds=("l1", "batchtopk"))

    def test_where_and_how_long_may_change(self, activations, two):
        changed = {"n_checkpoints": 1, "log_frequency": 3, "n_checkpoints_kept": 1, "save_final_checkpoint": True}
        run(two.parent, mixed(activations), resume_from_checkpoint="latest", steps=14, **changed)
        assert os.listdir(two) == ["final_896"]

    def test_a_shorter_stream_or_another_buffer_is_not_taken_for_the_same(self, activations, two):
        chunks = activations.split(100)
        for stream, message in (
            (mixed_batches(chunks[:2], batch_size=BATCH, buffer_size=5 * BATCH), "but the stream ends after 2"),
            (
                mixed_batches(chunks, batch_size=BATCH, buffer_size=4 * BATCH),
                "buffer holds 320 tokens, but this one 256",
            ),
        ):
            with pytest.raises(ValueError, match=message):
                run(two.parent, stream, resume_from_checkpoint="latest")


def test_a_stream_that_knows_its_own_places_alone_is_not_gone_on_with_by_another_number_of_processes(activations):
    batches = TrainingBatches(Stopping(mixed(activations), 9, raising(OSError())))
    next(batches)
    with pytest.raises(ValueError, match="by another number of processes, which Stopping cannot resume"):
        batches.fast_forward(batches.state_dict(), 2.0)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


class TestKilled:
    """By a signal that nothing can catch, at every single file operation of writing, replacing and pruning."""

    @pytest.mark.parametrize("over_an_earlier_run", [False, True])
    def test_at_every_stage_of_a_checkpoint(self, activations, tmp_path, over_an_earlier_run):
        options = dict(
            steps=2,
            lr_warm_up_steps=0,
            lr_decay_steps=0,
            n_checkpoints=1,
            n_checkpoints_kept=None if over_an_earlier_run else 1,
            save_final_checkpoint=True,
            metrics_path=None,
        )
        unbroken = run(tmp_path / "unbroken", mixed(activations), **options)
        n_killed, were_whole = 0, []
        while True:
            folder = tmp_path / str(n_killed)
            if over_an_earlier_run:
                shutil.copytree(tmp_path / "unbroken", folder)
            if not killed_at(n_killed, folder, lambda f=folder: run(f, mixed(activations), **options)):
                break
            n_killed += 1
            found = list((folder / "checkpoints").glob("*"))
            named = [path for path in found if not path.suffix]
            assert [problem_with(path) for path in named] == [None] * len(named)
            were_whole.append(any(problem_with(path) is None for path in found))
            resumed = run(
                folder, mixed(activations), resume_from_checkpoint="latest" if were_whole[-1] else None, **options
            )
            assert_same(resumed, unbroken)
            shutil.rmtree(folder)
        assert were_whole == sorted(were_whole)  # once there is a checkpoint, there always is one
        assert were_whole.count(True) > 10
        assert all(were_whole) == over_an_earlier_run


def test_every_file_is_on_disk_before_the_checkpoint_has_its_name(activations, tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda path, to: events.append("rename") or rename(path, to))
    run(tmp_path, mixed(activations), n_checkpoints=0, save_final_checkpoint=True)
    folder = tmp_path / "checkpoints" / "final_768"
    partial = f"{folder}.partial"
    at = events.index("rename")
    assert set(events[:at]) >= {str(path).replace(str(folder), partial) for path in (folder, *folder.rglob("*"))}
    assert events[at + 1 :] == [str(folder.parent)]


def test_a_checkpoint_is_readable_without_running_code_of_its_writer(activations, tmp_path):
    run(tmp_path, mixed(activations))
    (folder,) = (tmp_path / "checkpoints").glob("640")
    state = torch.load(folder / "run_state_0.pt", weights_only=True)
    assert state["batches"]["source"]["buffer"].shape == (5 * BATCH, 128)
    manifest = json.loads((folder / "checkpoint.json").read_text())
    assert manifest["n_training_tokens"] == 640
    checksums = json.loads((folder / "checksums.json").read_text())
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    assert set(checksums["files"]) == files - {"checksums.json"}
