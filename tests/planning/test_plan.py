"""Plans agree with what is really built and run, and runs with the suggested changes really fit."""

import time
from collections import Counter
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from sae_lens.config import LoggingConfig
from sae_lens.util import str_to_dtype
from torch.profiler import ProfilerActivity, profile

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations.shuffle_buffer import mixed_batches
from sae_lens_crosscoder.models.sizes import ModelSize
from sae_lens_crosscoder.models.tiny import TINY_HOOK
from sae_lens_crosscoder.planning import timing
from sae_lens_crosscoder.planning.memory import buffer_bytes, evaluation_bytes, step_bytes
from sae_lens_crosscoder.planning.suggestions import USABLE_SHARE
from tests.models.small_models import random_hooked_transformer

pytestmark = pytest.mark.usefixtures("types_unchecked_in_the_module")

MIB = 1 / 1024  # in GiB
BATCHTOPK = slc.BatchTopKCrosscoderTrainingConfig
L1 = slc.L1CrosscoderTrainingConfig
TOPK = slc.crosscoders.TopKCrosscoderTrainingConfig
MATRYOSHKA = slc.crosscoders.MatryoshkaBatchTopKCrosscoderTrainingConfig
JUMPRELU = slc.crosscoders.JumpReLUCrosscoderTrainingConfig
TRAINING_CLASSES = {
    BATCHTOPK: slc.BatchTopKTrainingCrosscoder,
    L1: slc.L1TrainingCrosscoder,
    TOPK: slc.crosscoders.TopKTrainingCrosscoder,
    MATRYOSHKA: slc.crosscoders.MatryoshkaBatchTopKTrainingCrosscoder,
    JUMPRELU: slc.crosscoders.JumpReLUTrainingCrosscoder,
}


def config(**fields):
    if "saes" not in fields:
        fields = {"sae": BATCHTOPK(d_model=96, d_sae=256, k=8)} | fields
    defaults = dict(
        model_name="tiny-base",
        chat_model_name="tiny-chat",
        hook_name=TINY_HOOK,
        context_size=64,
        training_tokens=200 * 128,
        train_batch_size_tokens=128,
        store_batch_size_prompts=4,
        lr_warm_up_steps=2,
        checkpoint_path=None,
    )
    return slc.CrosscoderRunnerConfig(**(defaults | fields))


def planned(cfg, **options):
    return slc.planning.plan(cfg, **({"measure_time": False} | options))


def by_name(plan):
    return {item.name: item.n_bytes for item in plan.memory}


def peak_bytes(work):
    """The most that was allocated at one time, beyond what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def trainer_of(sae, batch):
    cfg = config(sae=sae, train_batch_size_tokens=batch, training_tokens=1000 * batch, n_batches_in_buffer=1000)
    crosscoder = TRAINING_CLASSES[type(sae)](sae)
    return slc.CrosscoderTrainer(cfg.to_sae_trainer_config(), crosscoder, iter(()))


@pytest.mark.parametrize(
    "sae",
    [
        BATCHTOPK(d_models=(20, 12), d_sae=50, k=4),
        L1(d_model=16, d_sae=40),
        JUMPRELU(d_model=16, d_sae=40),
    ],
)
def test_weights_gradients_and_moments_are_those_of_a_built_crosscoder(sae):
    cfg = config(sae=sae, hook_name="blocks.2.hook_mlp_out")
    plan = planned(cfg)
    trainer = trainer_of(sae, 64)
    kept = {}
    trainer.optimizer.register_step_pre_hook(
        lambda *_: kept.update(gradients=sum(p.grad.nbytes for p in trainer.sae.parameters()))
    )
    trainer.step(torch.randn(64, sae.d_in, generator=torch.Generator().manual_seed(0)))
    state = trainer.optimizer.state.values()
    moments = sum(moment.nbytes for s in state for moment in (s["exp_avg"], s["exp_avg_sq"]))
    items = by_name(plan)
    assert items["crosscoder weights"] == sum(p.nbytes for p in trainer.sae.parameters())
    assert items["gradients"] == kept["gradients"]
    assert items["Adam moments"] == moments
    assert plan.n_params == {"": sum(p.numel() for p in trainer.sae.parameters())}


@pytest.mark.parametrize(
    ("sae", "batch", "frac_dead"),
    [
        (BATCHTOPK(d_model=512, d_sae=2048, k=8), 64, 0.1),
        (BATCHTOPK(d_model=64, d_sae=1024, k=100), 1024, 0.1),
        (BATCHTOPK(d_model=256, d_sae=512, k=8), 1024, 0.1),
        (BATCHTOPK(d_model=16, d_sae=1024, k=8), 2048, 0.0),
        (BATCHTOPK(d_model=16, d_sae=1024, k=8, training_step="dense"), 2048, 0.0),
        (L1(d_model=16, d_sae=1024), 2048, 0.0),
        (L1(d_model=512, d_sae=1024), 64, 0.0),
        (TOPK(d_model=16, d_sae=1024, k=8), 2048, 0.1),
        (MATRYOSHKA(d_model=64, d_sae=1024, k=100, matryoshka_widths=(64, 128, 512)), 1024, 0.1),
        (JUMPRELU(d_model=16, d_sae=1024), 2048, 0.0),
    ],
)
def test_a_steps_arrays_are_no_more_than_planned_and_not_much_less(sae, batch, frac_dead):
    trainer = trainer_of(sae, batch)
    x = torch.randn(batch, sae.d_in, generator=torch.Generator().manual_seed(0))
    weights = sum(p.nbytes for p in trainer.sae.parameters())
    first = peak_bytes(lambda: trainer.step(x)) - 3 * weights  # gradients and moments are made in it
    trainer.step(x)
    trainer.n_forward_passes_since_fired[: int(frac_dead * sae.d_sae)] = 10**9
    later = peak_bytes(lambda: trainer.step(x)) - weights
    assert 0.35 * step_bytes(sae, batch, "cpu") < max(first, later) <= step_bytes(sae, batch, "cpu")


@pytest.mark.parametrize(
    ("contexts", "prompts", "dtype"), [(16, 1, "float32"), (16, 16, "float32"), (40, 7, "bfloat16")]
)
def test_the_buffer_is_the_real_one_at_its_peak(contexts, prompts, dtype):
    cfg = config(n_batches_in_buffer=contexts, store_batch_size_prompts=prompts, dtype=dtype)

    def run():
        chunks = (torch.ones(prompts * 64, 2 * 96) for _ in range(4 * contexts))
        buffer = {"batch_size": 128, "buffer_size": contexts * 64, "dtype": str_to_dtype(dtype)}
        for _ in mixed_batches(chunks, **buffer):
            pass

    assert 0.75 < buffer_bytes(cfg) / peak_bytes(run) < 1.25


def test_an_evaluation_takes_what_is_planned_if_the_run_reaches_one():
    pair = slc.HookedModelPair(*[random_hooked_transformer(16, seed=seed, d_vocab=4000) for seed in (1, 2)])
    rows = Dataset.from_dict({"input_ids": torch.randint(4000, (40, 32)).tolist()})
    cfg = config(
        sae=BATCHTOPK(d_model=16, d_sae=32, k=2),
        hook_name="blocks.1.hook_resid_post",
        context_size=32,
        eval_batch_size_prompts=6,
        n_eval_batches=1,
        training_tokens=1280,
        n_held_out_rows=8,
    )
    runner = slc.CrosscoderTrainingRunner(cfg, override_dataset=rows, override_model=pair)
    trainer = runner._new_trainer("")
    peak = peak_bytes(lambda: trainer.evaluator(trainer.sae, trainer.data_provider, trainer.activation_scaler))
    size = ModelSize("model", 0, 0, 0, 16, 32, 2, 4000, reads_logits=False)
    logger = LoggingConfig(log_to_wandb=True, wandb_log_frequency=2, eval_every_n_wandb_logs=5)
    assert evaluation_bytes(cfg.replace(logger=logger), [size, size]) / 1.5 < peak
    assert peak < 1.5 * evaluation_bytes(cfg.replace(logger=logger), [size, size])
    for never in (replace(logger, log_to_wandb=False), replace(logger, eval_every_n_wandb_logs=6)):
        assert evaluation_bytes(cfg.replace(logger=never), [size, size]) == 0


def test_the_resident_memory_has_python_on_top():
    plan = planned(config())
    assert plan.n_bytes_resident == plan.n_bytes_needed["cpu"] + 2**29
    assert f"with Python: about {plan.n_bytes_resident / 2**30:.1f} GiB" in str(plan)


def test_twice_the_latents_are_twice_the_weights_and_the_same_buffer():
    sizes = [by_name(planned(config(sae=BATCHTOPK(d_model=96, d_sae=n, k=8)))) for n in (100, 200, 300)]
    for name, per_weight in (("crosscoder weights", 1), ("gradients", 1), ("Adam moments", 2)):
        steps = [b[name] - a[name] for a, b in zip(sizes, sizes[1:], strict=False)]
        assert steps == [per_weight * 4 * 100 * (2 * 192 + 1)] * 2
    assert len({items["shuffling buffer"] for items in sizes}) == 1


def test_several_crosscoders_add_up_but_step_one_at_a_time():
    saes = {"small": BATCHTOPK(d_model=96, d_sae=128, k=8), "large": BATCHTOPK(d_model=96, d_sae=512, k=8)}
    together = by_name(planned(config(saes=saes)))
    alone = [by_name(planned(config(sae=sae))) for sae in saes.values()]
    for name in ("crosscoder weights", "Adam moments"):
        assert together[name] == sum(items[name] for items in alone)
    for name in ("gradients", "arrays of a step"):
        assert together[name] == max(items[name] for items in alone)


def test_everything_lies_where_the_config_puts_it():
    cfg = config(device="cuda", llm_device="cuda:1", chat_device="cuda:2", act_store_device="cpu")
    plan = planned(cfg, memory_gib=1)
    where = {item.name: item.device for item in plan.memory}
    assert where["crosscoder weights"] == where["arrays of a step"] == "cuda:0"
    assert (where["tiny-base weights"], where["tiny-chat weights"]) == ("cuda:1", "cuda:2")
    assert where["shuffling buffer"] == "cpu"
    assert Counter(where.values()).keys() == plan.n_bytes_needed.keys() == plan.capacity.keys()
    assert plan.capacity["cuda:2"] == 2**30
    assert plan.capacity["cpu"] is None  # the other machine's
    assert plan.fits is None


def test_half_the_precision_halves_the_models_and_not_the_crosscoder():
    full, half = (by_name(planned(config(model_dtype=dtype))) for dtype in ("float32", "bfloat16"))
    buffers = planned(config()).models[0].n_buffer_bytes
    assert half["tiny-base weights"] - buffers == (full["tiny-base weights"] - buffers) / 2
    assert half["a forward pass"] == full["a forward pass"] / 2
    assert half["crosscoder weights"] == full["crosscoder weights"]


def test_a_run_on_cached_activations_needs_no_models():
    of_models, cached = planned(config()), planned(config(use_cached_activations=True, cached_activations_path="x"))
    loaded = {"tiny-base weights", "tiny-chat weights", "a forward pass"}
    assert by_name(of_models).keys() - by_name(cached).keys() == loaded
    assert by_name(cached).items() <= by_name(of_models).items()
    assert cached.fits


def test_batches_made_ahead_are_counted():
    buffers = [by_name(planned(config(prefetch_llm_batches=n)))["shuffling buffer"] for n in (False, 1, 4)]
    assert [n - buffers[0] for n in buffers] == [n * 128 * 192 * 4 for n in (0, 1, 4)]


def test_steps_and_disk():
    cfg = config(training_tokens=1000, n_checkpoints=2, save_final_checkpoint=True, checkpoint_path="x")
    plan = planned(cfg)
    weights = by_name(plan)["crosscoder weights"]
    assert plan.n_steps == 1000 // 128
    assert plan.n_cache_bytes == {"int8": 1000 * (192 + 4), "bfloat16": 1000 * 192 * 2, "float32": 1000 * 192 * 4}
    buffer = cfg.n_batches_in_buffer * cfg.context_size * 192 * 4
    assert plan.n_checkpoint_bytes == 3 * (3 * weights + buffer) + weights
    two_at_most = cfg.replace(n_checkpoints_kept=1, n_checkpoints=9)
    assert planned(two_at_most).n_checkpoint_bytes == 2 * (3 * weights + buffer) + weights
    assert planned(cfg.replace(checkpoint_path=None, output_path=None)).n_checkpoint_bytes == 0


RUNS = {
    "cpu": config(store_batch_size_prompts=16),
    "several": config(saes={"a": BATCHTOPK(d_model=96, d_sae=512, k=8), "b": BATCHTOPK(d_model=96, d_sae=512, k=4)}),
    "gpu": config(device="cuda", sae=BATCHTOPK(d_model=96, d_sae=4096, k=8)),
    "dense": config(sae=BATCHTOPK(d_model=96, d_sae=2048, k=8, training_step="dense")),
    "l1": config(sae=L1(d_model=96, d_sae=2048), train_batch_size_tokens=512),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_suggestion_does_what_it_says(name):
    cfg = RUNS[name]
    whole = max(planned(cfg).n_bytes_needed.values()) / USABLE_SHARE / 2**30
    verdicts = []
    for share in (0.9, 0.3):
        plan = planned(cfg, memory_gib=share * whole)
        assert plan.fits is False
        for suggestion in plan.suggestions:
            again = planned(cfg.replace(**suggestion.changes), memory_gib=share * whole)
            # Memory of the other machine's CPU is unknown, so that nothing there is certain to fit.
            assert (again.fits is not False) == suggestion.fits
            saved = sum(plan.n_bytes_needed.values()) - again.n_bytes_needed["cuda:0" if name == "gpu" else "cpu"]
            assert saved == suggestion.n_bytes_saved > 0
            verdicts.append(suggestion.fits)
    assert set(verdicts) == {True, False}
    assert planned(cfg, memory_gib=1.01 * whole).fits
    assert planned(cfg, memory_gib=1.01 * whole).suggestions == ()


def test_suggestions_come_by_harm_and_end_with_several_when_one_is_not_enough():
    cfg = config(train_batch_size_tokens=512)
    suggestions = planned(cfg, memory_gib=9 * MIB).suggestions
    *alone, together = suggestions
    assert not any(suggestion.fits for suggestion in alone)
    assert together.fits
    names = [next(iter(suggestion.changes)) for suggestion in alone]
    assert all(len(suggestion.changes) == 1 for suggestion in alone)
    assert names[0] == "store_batch_size_prompts"
    assert names[-1] == "d_sae"
    assert names.index("n_batches_in_buffer") < names.index("model_dtype") < names.index("train_batch_size_tokens")
    assert list(together.changes) == [name for name in names if name in together.changes]
    assert len(together.changes) > 1
    for superfluous in together.changes:
        fewer = {name: value for name, value in together.changes.items() if name != superfluous}
        assert not planned(cfg.replace(**fewer), memory_gib=9 * MIB).fits


def test_without_a_second_gpu_there_is_a_way_too():
    suggestions = planned(
        config(device="cuda", act_store_device="cpu", model_dtype="bfloat16"), memory_gib=4 * MIB
    ).suggestions
    on_one, on_two = [suggestion.changes for suggestion in suggestions if suggestion.fits]
    assert "chat_device" not in on_one
    assert on_two["chat_device"] == "cuda:1"
    assert on_one["d_sae"] < on_two["d_sae"]


def test_what_saves_nothing_is_not_proposed():
    cfg = config(model_dtype="bfloat16", store_batch_size_prompts=1).replace(n_batches_in_buffer=2)
    suggestions = planned(cfg, memory_gib=MIB).suggestions
    names = {name for suggestion in suggestions for name in suggestion.changes}
    assert names
    assert names.isdisjoint(
        {"model_dtype", "store_batch_size_prompts", "n_batches_in_buffer", "act_store_device", "training_step"}
    )


def test_changes_leave_the_rest_of_the_config_alone():
    cfg = config(checkpoint_path="x", saes={"a": BATCHTOPK(d_model=96, d_sae=512, k=8)})
    changed = cfg.replace(d_sae=256, model_dtype="bfloat16")
    before, after = cfg.to_dict(), changed.to_dict()
    assert {key for key in before if before[key] != after[key]} == {"sae", "saes", "model_dtype"}
    assert (cfg.saes["a"].d_sae, changed.saes["a"].d_sae) == (512, 256)


def test_a_config_that_cannot_be_read_is_named_and_planned_around(monkeypatch, tmp_path):
    def unreachable(*args, **kwargs):
        raise OSError("We couldn't connect to the Hub.")

    cfg = config(chat_model_name="some/model", model_class_name="AutoModelForCausalLM")
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", unreachable)
    plan = planned(cfg, memory_gib=1000)
    assert plan.models[1] is None
    assert plan.models[0].name == "tiny-base"
    assert plan.fits is None
    assert "Memory and time leave out some/model: its config cannot be read (We couldn't connect" in plan.notes[0]
    assert "model_config" in plan.notes[0]
    assert "some sizes are unknown" in str(plan)
    assert planned(cfg, memory_gib=MIB).fits is False


def test_nothing_is_loaded(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a model or its weights were loaded")

    for name in ("sae_lens_crosscoder.models.loading.load_model", "torch.load", "safetensors.torch.load_file"):
        monkeypatch.setattr(name, refuse)
    monkeypatch.setattr("sae_lens_crosscoder.models.tiny.models.load_file", refuse)
    assert planned(config()).fits


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({}, {"memory_gib": 0}, "memory_gib=0 must be positive"),
        ({"hook_name": "blocks.9.hook_resid_post"}, {}, "is in layer 9, but tiny-base has 4 layers"),
        ({"sae": BATCHTOPK(d_model=64, d_sae=256, k=8)}, {}, r"widths \(64, 64\).*tiny-base is 96 wide"),
    ],
)
def test_mistakes_are_refused(fields, options, message):
    with pytest.raises(ValueError, match=message):
        planned(config(**fields), **options)


def test_no_time_is_claimed_for_a_device_that_is_not_here():
    plan = slc.planning.plan(config(device="cuda:7"), memory_gib=1)
    assert plan.time is None
    assert "No time estimate: this machine has no device 'cuda:7'" in str(plan)


@pytest.mark.parametrize("sae", [BATCHTOPK(d_model=96, d_sae=2048, k=16), L1(d_model=96, d_sae=1024)])
@pytest.mark.parametrize("longest", [0.5, 0.004], ids=["at the real size", "extrapolated"])
def test_a_step_takes_about_as_long_as_estimated(sae, longest, monkeypatch):
    monkeypatch.setattr(timing, "_LONGEST_STEP_SECONDS", longest)
    monkeypatch.setattr(time, "perf_counter", time.process_time)  # which other processes do not disturb
    cfg = config(sae=sae, train_batch_size_tokens=1024, training_tokens=1024 * 100)
    estimate = slc.planning.plan(cfg).time
    assert ("extrapolated" in estimate.basis) == (longest < 0.5)
    trainer = trainer_of(sae, 1024)
    x = torch.randn(1024, sae.d_in, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        trainer.step(x)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        trainer.step(x)
        seconds.append(time.perf_counter() - start)
    assert estimate.step_seconds / 3 < sorted(seconds)[2] < 3 * estimate.step_seconds


@pytest.mark.parametrize(("d_sae", "batch"), [(256, 128), (256, 100), (2**20, 128), (4096, 2**17), (2**20, 2**17)])
def test_a_machine_that_is_linear_in_tokens_and_latents_is_predicted_exactly(d_sae, batch, monkeypatch):
    def step_seconds(sae, batch, cfg):
        sizes.append((sae.d_sae, batch))
        return sae.d_sae * (1e-6 + 1e-7 * batch)

    sizes = []
    monkeypatch.setattr(timing, "_step_seconds", step_seconds)
    cfg = config(sae=BATCHTOPK(d_model=96, d_sae=d_sae, k=8), train_batch_size_tokens=batch, training_tokens=10 * batch)
    estimate = timing.estimate_time(cfg)
    assert estimate.step_seconds == pytest.approx(step_seconds(cfg.sae, batch, cfg))
    is_small = d_sae * batch < 10**6
    assert is_small == ((d_sae, batch) in sizes[:-1])
    assert is_small == ("extrapolated linearly to" not in estimate.basis)
    assert all(step_seconds(replace(cfg.sae, d_sae=n), m, cfg) < 1 for n, m in sizes[-3:-1])


def test_latents_that_do_not_fit_are_measured_in_part(monkeypatch):
    sae = BATCHTOPK(d_model=96, d_sae=2**15, k=8)
    monkeypatch.setattr(timing, "memory_of", lambda device: 4 * 4 * planned(config(sae=sae)).n_params[""])
    monkeypatch.setattr(timing, "_step_seconds", lambda sae, batch, cfg: 1e-9 * sae.d_sae * batch)
    assert "steps of 4,096 latents" in timing.estimate_time(config(sae=sae)).basis


def test_crosscoders_of_one_run_take_their_steps_in_turn(monkeypatch):
    monkeypatch.setattr(timing, "_step_seconds", lambda sae, batch, cfg: 1e-6 * sae.d_sae)
    saes = {"small": BATCHTOPK(d_model=96, d_sae=256, k=8), "large": BATCHTOPK(d_model=96, d_sae=512, k=8)}
    together = timing.estimate_time(config(saes=saes))
    assert together.step_seconds == pytest.approx(sum(timing.measure_step(sae, config())[0] for sae in saes.values()))
    assert all(f"steps of {n} latents" in together.basis for n in (256, 512))


def test_the_clock_stops_when_the_device_that_works_is_done(monkeypatch):
    synchronized = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: synchronized.append(device))
    timing._seconds(lambda: None, "cuda:1")
    assert synchronized == ["cuda:1"]


def test_time_is_measured_without_touching_the_global_generator():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    timing.estimate_time(config())
    assert torch.equal(torch.rand(3), expected)


def test_a_longer_run_takes_more_disk_and_no_more_memory():
    short, long = planned(config()), planned(config(training_tokens=10**6))
    assert short.memory == long.memory
    assert long.n_cache_bytes["bfloat16"] == 2 * 192 * 10**6 > short.n_cache_bytes["bfloat16"]


def test_what_an_architecture_refuses_is_not_suggested():
    matryoshka = MATRYOSHKA(d_model=96, d_sae=4096, k=8, matryoshka_widths=(512, 1500))
    for sae in (matryoshka, TOPK(d_model=96, d_sae=4096, k=8), JUMPRELU(d_model=96, d_sae=4096)):
        plan = planned(config(sae=sae, train_batch_size_tokens=4096, training_tokens=2**20), memory_gib=40 * MIB)
        assert plan.suggestions
        assert all("training_step" not in suggestion.changes for suggestion in plan.suggestions)
        sizes = [suggestion.changes["d_sae"] for suggestion in plan.suggestions if "d_sae" in suggestion.changes]
        assert all(size > 1500 for size in sizes) or sae is not matryoshka
