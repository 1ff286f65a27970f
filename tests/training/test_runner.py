"""From a config to saved crosscoders: seeded, complete, resumable, and refusing early what cannot run."""

import errno
import json
import threading
import time
from pathlib import Path

import pytest
import torch
from datasets import Dataset

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.models.tiny import TINY_CONTEXT_SIZE, TINY_DATASET, TINY_HOOK, tiny_dataset, tiny_tokenizer
from sae_lens_crosscoder.training import runner as runner_module
from sae_lens_crosscoder.training import wandb_log

pytestmark = pytest.mark.usefixtures("types_unchecked_in_the_module")

STEPS, BATCH = 8, 128


def sae(**fields):
    return slc.BatchTopKCrosscoderTrainingConfig(**({"d_model": 96, "d_sae": 64, "k": 4} | fields))


@pytest.fixture(scope="module")
def pair():
    return slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")


def config(tmp_path, **fields):
    fields = {"saes": None} | fields
    if fields["saes"] is None:
        fields = {"sae": sae()} | fields
    defaults = dict(
        model_name="tiny-base",
        chat_model_name="tiny-chat",
        hook_name=TINY_HOOK,
        dataset_path=TINY_DATASET,
        context_size=TINY_CONTEXT_SIZE,
        training_tokens=STEPS * BATCH,
        train_batch_size_tokens=BATCH,
        store_batch_size_prompts=4,
        n_held_out_rows=8,
        lr=1e-3,
        lr_warm_up_steps=2,
        log_frequency=4,
        checkpoint_path=str(tmp_path / "checkpoints"),
        output_path=str(tmp_path / "output"),
    )
    return slc.CrosscoderRunnerConfig(**(defaults | fields))


def run(tmp_path, pair, **fields):
    runner = slc.CrosscoderTrainingRunner(config(tmp_path, **fields), override_model=pair)
    return runner, runner.run()


def test_a_run_leaves_a_whole_crosscoder_folder_and_returns_what_is_in_it(tmp_path, pair):
    runner, crosscoder = run(tmp_path, pair)
    folder = tmp_path / "output"
    assert {path.name for path in folder.iterdir()} == {
        "cfg.json",
        "checksums.json",
        "sae_weights.safetensors",
        "metrics.jsonl",
        "runner_cfg.json",
    }
    x = pair.activations(runner.held_out_tokens[:2], TINY_HOOK)
    assert torch.equal(slc.load(folder).encode(x), crosscoder.encode(x))
    metadata = slc.load(folder).cfg.metadata
    assert (metadata.model_name, metadata.chat_model_name) == ("tiny-base", "tiny-chat")
    assert (metadata.hook_name, metadata.dataset_path, metadata.seed) == (TINY_HOOK, TINY_DATASET, 42)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [4, 8]
    fve = {"fve_base", "fve_chat", "fve_pooled", "fve_difference"}
    assert fve | {"l0", "n_dead", "topk_threshold", "loss", "lr"} <= set(rows[0])


def test_training_writes_nothing_into_the_callers_config(tmp_path, pair):
    cfg = config(tmp_path)
    before = json.dumps(cfg.sae.to_dict())
    slc.CrosscoderTrainingRunner(cfg, override_model=pair).run()
    assert json.dumps(cfg.sae.to_dict()) == before


def test_the_written_config_makes_the_same_run_again(tmp_path, pair):
    _, first = run(tmp_path, pair)
    written = json.loads((tmp_path / "output" / "runner_cfg.json").read_text())
    again = slc.CrosscoderRunnerConfig.from_dict(written)
    again.output_path = str(tmp_path / "again")
    second = slc.CrosscoderTrainingRunner(again).run()
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_another_seed_gives_other_weights(tmp_path, pair):
    _, first = run(tmp_path / "a", pair)
    _, second = run(tmp_path / "b", pair, seed=7)
    assert not torch.equal(first.W_dec, second.W_dec)


def test_several_crosscoders_share_one_pair_of_forward_passes_and_each_is_what_it_would_be_alone(tmp_path, pair):
    saes = {"l1": slc.L1CrosscoderTrainingConfig(d_model=96, d_sae=64), "k=4": sae(), "k=8": sae(k=8)}
    calls = []
    original = pair.run_with_cache

    def counting(*args, **kwargs):
        calls.append(kwargs.get("names_filter"))
        return original(*args, **kwargs)

    pair.run_with_cache = counting
    try:
        runner, together = run(tmp_path / "together", pair, saes=saes)
        n_together = len(calls)
        calls.clear()
        _, alone = run(tmp_path / "alone", pair)
    finally:
        del pair.run_with_cache
    assert n_together == len(calls)
    assert torch.equal(together["k=4"].W_dec, alone.W_dec)
    assert list(runner.summary.index) == ["l1", "k=4", "k=8"]
    assert {path.name for path in (tmp_path / "together" / "output").iterdir()} == set(saes)


def test_held_out_tokens_are_never_trained_on(tmp_path, pair):
    rows = Dataset.from_dict({"input_ids": [[0] + [i] * (TINY_CONTEXT_SIZE - 1) for i in range(1, 60)]})
    runner = slc.CrosscoderTrainingRunner(config(tmp_path), override_dataset=rows, override_model=pair)
    assert runner.held_out_tokens[:, 1].tolist() == list(range(1, 9))
    seen = {int(ids[1]) for ids in runner.activations_store.iterable_sequences}
    assert seen == set(range(9, 60))


def test_without_an_output_path_nothing_is_written(tmp_path, pair, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(tmp_path, pair, output_path=None, checkpoint_path=None)
    assert list(tmp_path.iterdir()) == []


class Vanishing(Exception):
    pass


SAES = {"l1": slc.L1CrosscoderTrainingConfig(d_model=96, d_sae=64), "k=4": sae()}


def text_rows(n_rows=120):
    """Untokenised rows of uneven length, which SAELens packs into contexts."""
    tokenizer = tiny_tokenizer()
    ids = tiny_dataset(n_rows, seed=5)["input_ids"]
    return Dataset.from_dict({"text": [tokenizer.decode(row[: 20 + 7 * i % 40]) for i, row in enumerate(ids)]})


def token_rows(n_rows=15):
    return Dataset.from_dict({"input_ids": tiny_dataset(n_rows, seed=5)["input_ids"]})


@pytest.mark.parametrize(
    ("rows", "fields"),
    [
        (lambda: None, {"saes": SAES}),
        (token_rows, {}),  # which end, and begin anew
        (lambda: token_rows(60).to_iterable_dataset().shuffle(seed=1, buffer_size=9), {"prefetch_llm_batches": 2}),
        (text_rows, {}),
        (lambda: text_rows(40).to_iterable_dataset(), {"activations_mixing_fraction": 0.0}),
    ],
    ids=["tiny pair's dataset, a sweep", "tokens", "shuffled tokens, made ahead", "text", "streamed text"],
)
@pytest.mark.parametrize("n_chunks", [3, 5])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_run_whose_data_vanish_is_gone_on_with_to_the_bit(tmp_path, pair, monkeypatch, rows, fields, n_chunks):
    fields = {"n_batches_in_buffer": 5, "store_batch_size_prompts": 3} | fields

    def runner(folder, **more):
        cfg = config(folder, **fields, **more)
        return slc.CrosscoderTrainingRunner(cfg, override_dataset=rows(), override_model=pair)

    unbroken = runner(tmp_path / "unbroken").run()
    stopped = runner(tmp_path / "stopped")
    calls, original = [], stopped.activations_store.get_activations

    def vanishing(tokens):
        calls.append(None)
        if len(calls) > n_chunks:
            raise Vanishing("the connection is gone")
        return original(tokens)

    stopped.activations_store.get_activations = vanishing
    with pytest.raises(Vanishing, match=r"is gone\nAll \d+ tokens of training are saved in"):
        stopped.run()
    resumed = runner(tmp_path / "stopped", resume_from_checkpoint="latest").run()
    if "saes" not in fields:
        unbroken, resumed = {"": unbroken}, {"": resumed}
    for name, crosscoder in unbroken.items():
        assert all(
            torch.equal(value, resumed[name].state_dict()[key]) for key, value in crosscoder.state_dict().items()
        )
        histories = [(tmp_path / of / "output" / name / "metrics.jsonl").read_text() for of in ("unbroken", "stopped")]
        assert histories[0] == histories[1]


def test_latest_is_the_newest_of_this_run_whatever_else_lies_beside_it(tmp_path, pair):
    fields = {"save_final_checkpoint": True}
    first, _ = run(tmp_path, pair, **fields)
    run(tmp_path, pair, sae=sae(k=5), **fields)
    before = json.dumps(first.training_crosscoder.state_dict(), default=str)
    again = config(tmp_path, resume_from_checkpoint="latest", **fields)  # with a new random id in its path
    second = slc.CrosscoderTrainingRunner(again, override_model=pair)
    second.run()  # nothing is left to do
    assert json.dumps(second.training_crosscoder.state_dict(), default=str) == before
    trainers = [runner.trainers[""] for runner in (first, second)]
    assert torch.equal(*(trainer.n_forward_passes_since_fired for trainer in trainers))
    assert again.checkpoint_path == first.cfg.checkpoint_path
    for field, value in (("sae", sae(k=6)), ("seed", 1), ("dataset_path", "other")):
        other = config(tmp_path, resume_from_checkpoint="latest", **({field: value} | fields))
        with pytest.raises(ValueError, match=rf"There is one of another run: .*{field}.* there and"):
            slc.CrosscoderTrainingRunner(other, override_model=pair)


def test_when_the_trained_crosscoder_cannot_be_written_it_is_in_a_checkpoint(tmp_path, pair, monkeypatch):
    runner = slc.CrosscoderTrainingRunner(config(tmp_path), override_model=pair)

    def full(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runner.training_crosscoder, "save_inference_model", full)
    with pytest.raises(OSError, match=r"No space left on device\nAll 1024 tokens of training are saved in .*/1024"):
        runner.run()
    again = config(tmp_path, resume_from_checkpoint="latest")
    crosscoder = slc.CrosscoderTrainingRunner(again, override_model=pair).run()
    _, unbroken = run(tmp_path / "unbroken", pair)
    assert all(torch.equal(value, crosscoder.state_dict()[name]) for name, value in unbroken.state_dict().items())


def test_nothing_is_made_ahead_while_saelens_evaluates(tmp_path, pair, monkeypatch):
    monkeypatch.setattr(wandb_log.wandb, "init", lambda **kwargs: None)
    monkeypatch.setattr(wandb_log.wandb, "finish", lambda: None)
    monkeypatch.setattr(wandb_log.wandb, "log", lambda row, step: None)
    cfg = config(tmp_path, prefetch_llm_batches=2)
    cfg.logger.log_to_wandb, cfg.logger.eval_every_n_wandb_logs = True, 1
    runner = slc.CrosscoderTrainingRunner(cfg, override_model=pair)
    made, harvest = [], runner.activations_store.get_activations
    runner.activations_store.get_activations = lambda tokens: made.append(None) or harvest(tokens)
    during = []

    def evaluating(*args):
        n_made = len(made)
        time.sleep(0.2)
        during.append(len(made) - n_made)
        return {}

    monkeypatch.setattr(runner_module, "LLMSaeEvaluator", lambda **kwargs: evaluating)
    runner.run()
    assert during == [0, 0]


def test_training_goes_on_from_a_pretrained_crosscoder(tmp_path, pair):
    runner, _ = run(tmp_path / "a", pair)
    runner.training_crosscoder.save_model(tmp_path / "trained")
    cfg = config(tmp_path / "b", from_pretrained_path=str(tmp_path / "trained"))
    second = slc.CrosscoderTrainingRunner(cfg, override_model=pair)
    assert torch.equal(second.training_crosscoder.W_dec, runner.training_crosscoder.W_dec)
    changed = config(
        tmp_path / "d", from_pretrained_path=str(tmp_path / "trained"), sae=sae(k=5, gradient_clip_norm=0.5)
    )
    third = slc.CrosscoderTrainingRunner(changed, override_model=pair).training_crosscoder
    assert torch.equal(third.W_enc, runner.training_crosscoder.W_enc)
    assert (third.cfg.k, third.cfg.gradient_clip_norm, third.activation_fn.k) == (5, 0.5, 5)
    cfg = config(tmp_path / "c", from_pretrained_path=str(tmp_path / "trained"), sae=sae(d_sae=32))
    with pytest.raises(ValueError, match=r"with d_sae=64, but the config asks for .* d_sae=32"):
        slc.CrosscoderTrainingRunner(cfg, override_model=pair)


def test_prefetching_changes_nothing_but_the_time(tmp_path, pair):
    _, plain = run(tmp_path / "a", pair)
    _, ahead = run(tmp_path / "b", pair, prefetch_llm_batches=2)
    assert torch.equal(plain.W_dec, ahead.W_dec)


@pytest.mark.parametrize(
    ("fields", "ahead"),
    [
        ({}, False),
        ({"device": "cuda", "llm_device": "cuda:0"}, False),
        ({"device": "cuda:1", "llm_device": "cuda:0"}, True),
        ({"device": "cuda:0", "chat_device": "cuda:1"}, True),
        ({"device": "cpu", "llm_device": "cuda", "prefetch_llm_batches": False}, False),
        ({"prefetch_llm_batches": 3}, 3),
    ],
)
def test_batches_are_made_ahead_where_the_models_have_a_device_of_their_own(tmp_path, fields, ahead):
    cfg = config(tmp_path, **fields)
    assert cfg.prefetch_llm_batches == ahead
    again = slc.CrosscoderRunnerConfig.from_dict(json.loads(json.dumps(cfg.to_dict())))
    assert again.prefetch_llm_batches == ahead


@pytest.mark.parametrize("ahead", [True, False])
def test_made_ahead_means_that_the_models_run_while_a_training_step_does(tmp_path, pair, monkeypatch, ahead):
    """Each step waits for a forward pass that only the batch after its own needs."""
    n_first, n_more = 4, 2  # contexts in the buffer, and in a batch
    fields = dict(n_batches_in_buffer=n_first, store_batch_size_prompts=1, activations_mixing_fraction=0.5)
    cfg = config(tmp_path, prefetch_llm_batches=ahead, training_tokens=3 * BATCH, **fields)
    runner = slc.CrosscoderTrainingRunner(cfg, override_model=pair)
    began, overlapped = threading.Semaphore(0), []
    harvest, step = runner.activations_store.get_activations, slc.CrosscoderTrainer.step

    def harvesting(tokens):
        began.release()
        return harvest(tokens)

    def waiting(trainer, batch):
        for _ in range(n_more if overlapped else n_first):
            assert began.acquire(timeout=10)
        overlapped.append(began.acquire(timeout=10 if ahead else 0.01))
        if overlapped[-1]:
            began.release()
        return step(trainer, batch)

    runner.activations_store.get_activations = harvesting
    monkeypatch.setattr(slc.CrosscoderTrainer, "step", waiting)
    runner.run()
    assert overlapped == [ahead] * 3


@pytest.mark.parametrize("model_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_half_precision_of_models_and_buffer_trains_nearly_the_same_crosscoder(tmp_path, pair, model_dtype, dtype):
    _, exact = run(tmp_path / "exact", pair)
    cfg = config(tmp_path / "half", model_dtype=model_dtype, dtype=dtype)
    runner = slc.CrosscoderTrainingRunner(cfg)
    crosscoder = runner.run()
    assert runner.pair.base.W_E.dtype == runner.pair.chat.W_E.dtype == getattr(torch, model_dtype)
    assert next(runner.activations_store).dtype == getattr(torch, dtype)
    assert crosscoder.W_dec.dtype == torch.float32
    difference = (crosscoder.W_dec - exact.W_dec).norm() / exact.W_dec.norm()
    assert difference < (1e-6 if model_dtype == dtype == "float32" else 0.02)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hook_name": "blocks.2.hook_resid_pots"}, "no common hook 'blocks.2.hook_resid_pots'. Did you mean"),
        ({"hook_name": "blocks.2.attn.hook_q"}, "split by attention head"),
        ({"sae": sae(d_model=64)}, r"widths \(64, 64\), but at .* these models are \(96, 96\) wide"),
        ({"n_held_out_rows": 0}, "diagnosis needs unseen data"),
        ({"n_batches_in_buffer": 1}, "do not fill one training batch of 128: use at least 2"),
        ({"lr_warm_up_steps": 100}, "exceed the 8 steps"),
        ({"dataset_trust_remote_code": True}, "would run a dataset's own code"),
        ({"device": "cuda:99"}, "device='cuda:99' cannot be used here"),
        ({"output_path": f"{__file__}/output"}, "test_runner.py is not a writable folder"),
        ({"output_path": "/proc/output"}, r"Cannot write to '/proc/output': /proc is not a writable folder \(.+\)"),
        ({"compile_sae": True}, "not supported for a pair"),
        ({"hook_head_index": 1}, "has no heads to choose from"),
        ({"from_pretrained_path": "nowhere"}, "nowhere has no cfg.json"),
        ({"dataset_path": ""}, "dataset_path is empty"),
        ({"sae": None}, "Pass exactly one of"),
        ({"saes": {}}, "saes is empty"),
        ({"saes": {"a": sae(), "b": sae(d_model=64)}}, "must have the same widths"),
        ({"resume_from_checkpoint": "latest"}, "no complete checkpoint of this run"),
        ({"resume_from_checkpoint": "nowhere"}, "there is no folder 'nowhere'"),
    ],
)
def test_what_cannot_run_is_refused_before_training(tmp_path, pair, fields, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, pair, **fields)
    assert not (tmp_path / "output").exists()


def test_an_empty_dataset_and_one_that_is_all_held_out_are_refused(tmp_path, pair):
    row = [0] * TINY_CONTEXT_SIZE
    for rows, message in (([], "dataset is empty"), ([row] * 8, "no rows are left to train on")):
        dataset = Dataset.from_dict({"input_ids": rows})
        with pytest.raises(ValueError, match=message):
            slc.CrosscoderTrainingRunner(config(tmp_path), override_dataset=dataset, override_model=pair)


def test_an_unknown_config_key_is_named(tmp_path):
    written = {**config(tmp_path).to_dict(), "chat_model": "x"}
    with pytest.raises(ValueError, match=r"no field 'chat_model'. Did you mean 'chat_model_name'\?"):
        slc.CrosscoderRunnerConfig.from_dict(written)


def test_several_crosscoders_survive_the_config_dictionary(tmp_path):
    cfg = config(tmp_path, saes={"a": sae(), "b": slc.L1CrosscoderTrainingConfig(d_model=96, d_sae=64)})
    again = slc.CrosscoderRunnerConfig.from_dict(json.loads(json.dumps(cfg.to_dict())))
    assert {name: type(c) for name, c in again.crosscoder_configs.items()} == {
        name: type(c) for name, c in cfg.crosscoder_configs.items()
    }
    assert again.checkpoint_path == cfg.checkpoint_path


def test_without_a_wandb_key_the_run_is_offline_instead_of_asking(tmp_path, monkeypatch):
    started = {}
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(wandb_log.wandb, "init", lambda **kwargs: started.update(kwargs))
    wandb_log.start(config(tmp_path).logger, {})
    assert started["mode"] == "offline"


def test_wandb_gets_the_same_rows_and_saelens_evaluations(tmp_path, pair, monkeypatch):
    logged = []
    monkeypatch.setattr(wandb_log.wandb, "init", lambda **kwargs: None)
    monkeypatch.setattr(wandb_log.wandb, "finish", lambda: None)
    monkeypatch.setattr(wandb_log.wandb, "log", lambda row, step: logged.append((step, row)))
    cfg = config(tmp_path, n_eval_batches=1, eval_batch_size_prompts=2)
    cfg.logger.log_to_wandb = True
    cfg.logger.eval_every_n_wandb_logs = 2
    runner = slc.CrosscoderTrainingRunner(cfg, override_model=pair)
    runner.run()
    rows = [row for _, row in logged if "fve_base" in row]
    assert [row["step"] for row in rows] == runner.trainers[""].history.step.tolist()
    (evaluation,) = [row for _, row in logged if "fve_base" not in row]
    assert "model_performance_preservation" in str(evaluation)


def test_runner_files_hold_no_secret_paths_of_python_objects(tmp_path, pair):
    """runner_cfg.json is plain JSON that another machine can read."""
    run(tmp_path, pair)
    text = Path(tmp_path, "output", "runner_cfg.json").read_text()
    assert "object at 0x" not in text
