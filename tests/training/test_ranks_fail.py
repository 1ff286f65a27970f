"""Ranks whose data end unevenly, that were started with other settings, or that die: the others stop, and say why."""

import os
from pathlib import Path

import pytest
import sae_lens
import torch
import torch.distributed as dist

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.training.checkpoints.folder import CheckpointError, checkpoints_in, problem_with
from sae_lens_crosscoder.training.distributed.process_group import (
    LostProcessError,
    StoppedElsewhereError,
    _validate_same_settings,
)
from sae_lens_crosscoder.training.trainer import StepTrainer
from tests.training.processes import BATCH, activations, grid, new_trainer, on_processes
from tests.training.test_distributed_runner import _runner, config

STEPS = 8
PHASES = ("before the first step", "while scales are estimated", "while a checkpoint is written", "after the last step")


def _end_unevenly(folder, what):
    """The last rank's data end a batch earlier, or its fourth batch is short, or its data end before training."""
    collectives = grid(1)
    is_last = collectives.rank == collectives.n_processes - 1

    def stream():
        for step, batch in enumerate(activations(collectives, STEPS, "float64")):
            if is_last and step == (0 if what == "no data" else 3):
                if what != "short batch":
                    return
                batch = batch[1:]
            yield batch

    scaled = {"activation_scaling": "per_model"} if what == "no data" else {}
    trainer = new_trainer("batchtopk", collectives, STEPS, checkpoint_path=folder, stream=stream(), **scaled)
    with pytest.raises((ValueError, StoppedElsewhereError)) as raised:
        trainer.fit()
    return str(raised.value)


@pytest.mark.parametrize(
    ("n", "what", "message"),
    [
        (2, "early end", f"The activations ended after {3 * BATCH} tokens"),
        (4, "short batch", f"The batch has {BATCH // 4 - 1} rows on this rank, expected {BATCH} / 4"),
        (2, "no data", "The activations ended after 0 tokens"),
    ],
)
def test_data_that_end_unevenly_stop_all_ranks_at_one_step_with_a_checkpoint(tmp_path, n, what, message):
    *others, last = on_processes(n, _end_unevenly, tmp_path / "processes", tmp_path / "run", what)
    assert message in last
    assert others == ["Another rank failed; see its log."] * (n - 1)
    if what != "no data":
        (checkpoint,) = (tmp_path / "run").iterdir()
        assert (checkpoint.name, problem_with(checkpoint)) == (str(3 * BATCH), None)


def _differ_in_settings():
    rank = dist.get_rank()
    with pytest.raises(ValueError, match="settings") as raised:
        _validate_same_settings({"lr": [1e-3, 1e-3, 2e-3, 1e-3][rank], "k": 4, "hook_name": "h"})
    _validate_same_settings({"lr": 1e-3})
    return str(raised.value)


def test_ranks_with_different_settings_are_refused_on_all_by_name(tmp_path):
    messages = on_processes(4, _differ_in_settings, tmp_path)
    for rank, message in enumerate(messages):
        assert message.startswith("Ranks [2] have other settings than rank 0: lr. This rank has lr=")
        assert f"lr={2e-3 if rank == 2 else 1e-3}" in message


def _train_and_save(trainer, dies):
    """As a runner does: at the end the first rank collects the whole crosscoder."""
    trainer.fit()
    if dies:
        os._exit(0)
    trainer.collectives.unshard(trainer.sae)
    with trainer.collectives.fail_together():
        pass


def _die_in(phase, folder):
    """The last rank dies in a phase of the run; the others must stop by themselves."""
    collectives = grid(1)
    dies = collectives.rank == collectives.n_processes - 1

    def stream():
        for step, batch in enumerate(activations(collectives, STEPS + 2, "float64")):
            if dies and (phase, step) in ((PHASES[0], 0), (PHASES[1], 1)):
                os._exit(0)
            yield batch

    fields = {"activation_scaling": "per_model"} if phase == PHASES[1] else {}
    trainer = new_trainer("batchtopk", collectives, STEPS, checkpoint_path=folder, stream=stream(), **fields)
    trainer.checkpoint_thresholds = [1, 2 * BATCH]
    save = torch.save

    def saved(thing, file):
        if dies and phase == PHASES[2] and trainer.n_training_steps > 1:
            os._exit(0)
        save(thing, file)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "save", saved)
        with pytest.raises((LostProcessError, CheckpointError)):
            _train_and_save(trainer, dies)
    save(trainer.n_training_samples, folder.with_name(f"survivor-{collectives.rank}.pt"))
    os._exit(0)


@pytest.mark.parametrize(("n", "phase"), [(2, PHASES[0]), (2, PHASES[1]), (4, PHASES[2]), (2, PHASES[3])])
def test_a_rank_that_dies_in_any_phase_ends_the_others_and_leaves_whole_checkpoints_alone(tmp_path, n, phase):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    with pytest.raises(FileNotFoundError):  # no process comes to its end
        on_processes(n, _die_in, tmp_path / "processes", phase, folder)
    survivors = sorted(path.name for path in folder.parent.glob("survivor-*.pt"))
    assert survivors == [f"survivor-{rank}.pt" for rank in range(n - 1)]
    whole = checkpoints_in(folder)
    assert [problem_with(path) for path in whole] == [None] * len(whole)
    assert len(whole) == {PHASES[0]: 0, PHASES[1]: 0, PHASES[2]: 1, PHASES[3]: 2}[phase]


@pytest.fixture(scope="module")
def pair():
    return slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")


def _die_in_run(rank, where, folder, pair):
    """One of two ranks of a runner's run dies when it calls a function the second time, or at all in the last save."""
    runner = _runner(folder, pair)
    owner, name = where
    real, n_calls = getattr(owner, name), []

    def called(*args, **kwargs):
        n_calls.append(None)
        if runner.collectives.rank == rank and (owner is not StepTrainer or len(n_calls) == 2):
            os._exit(0)
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(owner, name, called)
        with pytest.raises(LostProcessError):
            runner.run()
    torch.save(runner.cfg.checkpoint_path, folder / "survivor.pt")
    os._exit(0)


@pytest.mark.parametrize(
    ("rank", "where"),
    [(1, (StepTrainer, "metrics")), (0, (sae_lens.saes.sae, "save_file"))],
    ids=["evaluation", "save"],
)
def test_a_rank_that_dies_in_the_evaluation_or_the_last_save_ends_the_others_and_the_run_goes_on(
    tmp_path, pair, rank, where
):
    with pytest.raises(FileNotFoundError):  # no process comes to its end
        on_processes(2, _die_in_run, tmp_path / "processes", rank, where, tmp_path, pair)
    newest = checkpoints_in(Path(torch.load(tmp_path / "survivor.pt")))[-1]
    assert problem_with(newest) is None
    with pytest.raises(ValueError, match="output"):
        slc.load(tmp_path / "output")
    runner = slc.CrosscoderTrainingRunner(config(tmp_path, resume_from_checkpoint=str(newest)), override_model=pair)
    assert runner.run().cfg.d_sae == slc.load(tmp_path / "output").cfg.d_sae
