"""Several processes train the crosscoder that one would have trained, in every layout."""

import os
import signal

import pandas as pd
import pytest
import torch
import torch.distributed as dist
from sae_lens.training._interruption import InterruptedException

from sae_lens_crosscoder.crosscoders.collectives import SINGLE_PROCESS
from sae_lens_crosscoder.crosscoders.sparse_step.kernels import largest
from sae_lens_crosscoder.training.checkpoints.folder import CheckpointError, checkpoints_in, problem_with
from sae_lens_crosscoder.training.distributed.process_group import LostProcessError, StoppedElsewhereError, connect
from tests.training.processes import BATCH, activations, grid, new_trainer, on_processes, whole_weights

STEPS = 12
COLUMNS = {2: (1, 2), 4: (1, 2, 4)}
RUNS = {
    "l1": {},
    "batchtopk": {},
    "batchtopk scaled": {"activation_scaling": "per_model", "score": "max", "screening": "bfloat16"},
    "batchtopk partitioned": {"n_base_exclusive": 3, "n_chat_exclusive": 9, "k_exclusive": 0.7},
}


def _train_everything(columns):
    """What one process knows after training, by run and layout."""
    results = {}
    for n_latents in columns:
        for run, fields in RUNS.items():
            trainer = new_trainer(run.split()[0], grid(n_latents), STEPS, **fields)
            trainer.fit()
            metadata = trainer.sae.cfg.metadata
            numbers = {"l0": metadata.l0, "n_dead": metadata.num_dead_features, "k": trainer.n_training_samples}
            results[run, n_latents] = whole_weights(trainer), trainer.history, numbers
    return results


@pytest.fixture(scope="module", params=[2, 4])
def trained(request, tmp_path_factory):
    """By run and layout: what the first of several processes knows, and what the only one does."""
    n = request.param
    alone = _train_everything([1])
    everyones = on_processes(n, _train_everything, tmp_path_factory.mktemp("trained"), COLUMNS[n])
    return {layout: (found, alone[layout[0], 1]) for layout, found in everyones[0].items()}


def test_every_layout_gives_the_weights_of_one_process(trained):
    for layout, (found, expected) in trained.items():
        for name, weights in found[0].items():
            torch.testing.assert_close(weights, expected[0][name], rtol=0, atol=1e-9, msg=f"{layout}: {name}")


def test_metrics_are_those_of_the_whole_batch_and_of_all_latents(trained):
    for found, expected in trained.values():
        pd.testing.assert_frame_equal(found[1], expected[1], rtol=1e-7)
        assert found[2] == pytest.approx(expected[2])
    assert max(expected[1].n_dead.max() for _, expected in trained.values()) > 0  # the revival loss was in use


def _gradients_become_weights(optimizer, *_):
    for weights in optimizer.param_groups[0]["params"]:
        weights.data.copy_(weights.grad)


def _first_gradients(n_latents):
    """Of the whole float32 crosscoder, by kind."""
    found = {}
    for kind in ("l1", "batchtopk"):
        trainer = new_trainer(kind, grid(n_latents), STEPS, dtype="float32", gradient_clip_norm=None)

        trainer.optimizer.register_step_post_hook(_gradients_become_weights)
        trainer.step(trainer.collectives.all_gather(next(activations(trainer.collectives, 1, "float32")), "latents"))
        found[kind] = whole_weights(trainer)
    return found


def test_in_float32_the_first_gradients_agree(tmp_path):
    expected = _first_gradients(1)
    found = on_processes(4, _first_gradients, tmp_path, 2)[0]
    for kind, gradients in expected.items():
        for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
            gradient = gradients[name]
            scale = gradient.abs().max().item()
            assert scale > 0
            torch.testing.assert_close(found[kind][name], gradient, rtol=0, atol=1e-5 * scale, msg=f"{kind} {name}")


def _train_until_the_stream_ends(n_latents, n_batches, folder, resume=None):
    """Train on as many batches in all, and leave a checkpoint."""
    collectives = grid(n_latents)
    stream = activations(collectives, n_batches, "float64")
    trainer = new_trainer("batchtopk", collectives, STEPS, checkpoint_path=folder, stream=stream, resume=resume)
    if n_batches < STEPS:
        with pytest.raises(ValueError, match=f"The activations ended after {n_batches * BATCH} tokens"):
            trainer.fit()
    else:
        trainer.fit()
    return whole_weights(trainer), trainer.n_forward_passes_since_fired, trainer.history


def test_saved_on_four_and_resumed_on_two_and_on_one_is_the_unbroken_run(tmp_path):
    expected, since_fired, history = _train_until_the_stream_ends(1, STEPS, tmp_path / "unbroken")
    folder = tmp_path / "broken"
    on_processes(4, _train_until_the_stream_ends, tmp_path / "four", 2, 4, folder)
    on_processes(2, _train_until_the_stream_ends, tmp_path / "two", 2, 8, folder, "latest")
    found, found_since_fired, found_history = _train_until_the_stream_ends(1, STEPS, folder, "latest")
    for name, weights in expected.items():
        torch.testing.assert_close(found[name], weights, rtol=0, atol=1e-9, msg=name)
    assert torch.equal(found_since_fired, since_fired)
    pd.testing.assert_frame_equal(found_history, history, rtol=1e-7)


def _largest_of_all(scores, n):
    collectives = grid(1)
    own = scores[collectives.rank]
    kept, smallest, n_candidates = collectives.top_scores(own, n)
    return own[kept], smallest, n_candidates


@pytest.mark.parametrize("n", [1, 3, 4, 6, 9, 20])
def test_the_largest_scores_of_all_processes_are_found_exactly_even_among_equal_ones(tmp_path, n):
    scores = [torch.tensor([4.0, 1.0, 4.0]), torch.tensor([]), torch.tensor([4.0, 9.0, 2.0, 4.0, 1.0, 0.5])]
    everyones = on_processes(3, _largest_of_all, tmp_path, scores, n)
    pooled = torch.cat(scores)
    expected = pooled[largest(pooled, n)]
    found = torch.cat([kept for kept, _, _ in everyones])
    assert found.sort().values.tolist() == expected.sort().values.tolist()
    assert {smallest for _, smallest, _ in everyones} == {expected.min().item()}
    assert {n_candidates for _, _, n_candidates in everyones} == {9}


def _meet_a_bad_batch(folder):
    """Activations that are not finite on the second process alone, at the third step."""
    collectives = grid(1)

    def stream():
        for step, batch in enumerate(activations(collectives, STEPS, "float64")):
            if (collectives.rank, step) == (1, 2):
                batch[0, 0] = torch.nan
            yield batch

    trainer = new_trainer("batchtopk", collectives, STEPS, checkpoint_path=folder, stream=stream())
    with pytest.raises((ValueError, StoppedElsewhereError)) as raised:
        trainer.fit()
    return str(raised.value)


def test_what_one_process_alone_cannot_go_on_from_stops_all_with_a_checkpoint(tmp_path):
    messages = on_processes(2, _meet_a_bad_batch, tmp_path / "processes", tmp_path / "run")
    assert messages[0] == "Another rank failed; see its log."
    assert "The base model's activations are NaN or infinite on 1 of 24 tokens at step 2" in messages[1]
    (checkpoint,) = (tmp_path / "run").iterdir()
    assert (checkpoint.name, problem_with(checkpoint)) == (str(2 * BATCH), None)


def _meet_a_full_disk(folder, what):
    """The second process cannot write its part of the second checkpoint."""
    collectives = grid(1)
    trainer = new_trainer("l1", collectives, STEPS, checkpoint_path=folder)
    trainer.checkpoint_thresholds = [1, 2 * BATCH]
    save = torch.save

    def saved(thing, file):
        is_run_state = str(file).endswith("run_state_1.pt")
        if collectives.rank == 1 and trainer.n_training_steps > 1 and is_run_state == (what == "run state"):
            raise OSError("No space left on device")
        save(thing, file)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "save", saved)
        with pytest.raises(CheckpointError) as raised:
            trainer.fit()
    return str(raised.value)


@pytest.mark.parametrize(
    ("what", "reasons"),
    [
        ("run state", ["Another rank failed; see its log", "No space left on device"]),
        ("crosscoder", ["torch could not save the shards in"] * 2),
    ],
)
def test_a_disk_that_is_full_for_one_process_stops_all_and_leaves_whole_checkpoints_alone(tmp_path, what, reasons):
    messages = on_processes(2, _meet_a_full_disk, tmp_path / "processes", tmp_path / "run", what)
    for message, reason in zip(messages, reasons, strict=True):
        assert f"{3 * BATCH} could not be written: {reason}" in message
    assert [(path.name, problem_with(path)) for path in (tmp_path / "run").iterdir()] == [(str(BATCH), None)]


def _be_interrupted(folder):
    """One process gets SIGTERM, as from a job system; then all stop together."""
    collectives = grid(1)

    def stream():
        for step, batch in enumerate(activations(collectives, STEPS, "float64")):
            if (collectives.rank, step) == (1, 3):
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    trainer = new_trainer("l1", collectives, STEPS, checkpoint_path=folder, stream=stream())
    with pytest.raises(InterruptedException, match="interrupted by SIGTERM"):
        trainer.fit()
    return trainer.n_training_samples


def test_a_signal_to_one_process_stops_all_at_the_same_step_with_a_checkpoint(tmp_path):
    assert on_processes(2, _be_interrupted, tmp_path / "processes", tmp_path / "run") == [4 * BATCH] * 2
    assert problem_with(tmp_path / "run" / str(4 * BATCH)) is None


def _lose_a_process(folder):
    """The second process dies at the fourth step, just after a checkpoint."""
    collectives = grid(1)

    def stream():
        for step, batch in enumerate(activations(collectives, STEPS, "float64")):
            if (collectives.rank, step) == (1, 3):
                os._exit(0)
            yield batch

    trainer = new_trainer("l1", collectives, STEPS, checkpoint_path=folder, stream=stream())
    trainer.checkpoint_thresholds = [1, 2 * BATCH]
    with pytest.raises(LostProcessError, match="Resume from the last complete checkpoint"):
        trainer.fit()
    torch.save(trainer.n_training_samples, folder / "survivor.pt")
    os._exit(0)


def test_a_process_that_dies_ends_the_others_and_leaves_the_last_whole_checkpoint(tmp_path):
    folder = tmp_path / "checkpoints" / "run"
    with pytest.raises(FileNotFoundError):  # neither process comes to its end
        on_processes(2, _lose_a_process, tmp_path / "processes", folder)
    assert torch.load(folder / "survivor.pt") == 3 * BATCH
    assert [(path.name, problem_with(path)) for path in checkpoints_in(folder)][-1] == (str(3 * BATCH), None)


def test_without_torchrun_there_is_one_process_which_holds_all_latents():
    assert connect(1, "cpu") is SINGLE_PROCESS
    with pytest.raises(ValueError, match="latent_shards=2 must divide the number of processes, which is 1"):
        connect(2, "cpu")
    assert not dist.is_initialized()
