"""Settings are refused before anything runs, or they train and are read back as they were written."""

import dataclasses
import importlib
import inspect
import itertools
import json
import math
import pkgutil
from typing import get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sae_lens import LoggingConfig, SAEConfig, TrainingSAEConfig

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.cli.plan import PlanOptions
from sae_lens_crosscoder.crosscoders import l1
from sae_lens_crosscoder.loading.formats.foreign import ForeignOptions
from sae_lens_crosscoder.storage.checksums import FolderChecksums
from sae_lens_crosscoder.storage.field_types import matches_type
from sae_lens_crosscoder.synthetic.concepts import Concept
from sae_lens_crosscoder.synthetic.null_streams import shuffled_batches
from sae_lens_crosscoder.synthetic.worlds import world_a
from sae_lens_crosscoder.training.checkpoints.run_checkpoints import RUN_STATE_FILENAME
from sae_lens_crosscoder.workflows.causal_experiment import CausalConfig
from sae_lens_crosscoder.workflows.demo import DemoConfig
from sae_lens_crosscoder.workflows.diagnose_folder import DiagnoseConfig
from sae_lens_crosscoder.workflows.explore_folder import ReportConfig
from sae_lens_crosscoder.workflows.interpret_folder import InterpretConfig
from sae_lens_crosscoder.workflows.look import LookConfig
from sae_lens_crosscoder.workflows.paper_report import PaperReportConfig

BATCH = 64
BTK, L1 = slc.BatchTopKCrosscoderTrainingConfig, slc.L1CrosscoderTrainingConfig
TOPK = slc.crosscoders.TopKCrosscoderTrainingConfig
MATRYOSHKA = slc.crosscoders.MatryoshkaBatchTopKCrosscoderTrainingConfig
JUMPRELU = slc.crosscoders.JumpReLUCrosscoderTrainingConfig


def build(cls, **fields):
    """Build a config past the type checker that the tests run under, so that the message is ours."""
    cfg = object.__new__(cls)
    for field in dataclasses.fields(cls):
        default = field.default_factory() if callable(field.default_factory) else field.default
        object.__setattr__(cfg, field.name, (SMALLEST[cls] | fields).get(field.name, default))
    cfg.__post_init__()
    return cfg


SMALLEST = {
    BTK: {"d_model": 4, "d_sae": 200, "k_max": 150, "k_anneal_steps": 10, "n_chat_exclusive": 2},
    L1: {"d_model": 4, "d_sae": 8},
    TOPK: {"d_model": 4, "d_sae": 200},
    MATRYOSHKA: {"d_model": 4, "d_sae": 200, "matryoshka_widths": (8, 50), "k_max": 150, "k_anneal_steps": 10},
    JUMPRELU: {"d_model": 4, "d_sae": 200, "jumprelu_sparsity_loss_mode": "quadratic", "target_l0": 4.0},
    slc.ReLUCrosscoderConfig: {"d_model": 4, "d_sae": 8},
    slc.JumpReLUCrosscoderConfig: {"d_model": 4, "d_sae": 8},
    slc.CrosscoderTrainerConfig: {"total_training_samples": 2**22},
    slc.CrosscoderRunnerConfig: {
        "sae": L1(d_model=4, d_sae=8),
        "training_tokens": 2**22,
        "dataset_path": "chats.jsonl",
    },
    slc.MixSource: {"path": "chats.jsonl"},
    Concept: {"kind": "shared", "firing_probability": 0.1},
    ForeignOptions: {},
    slc.EvalData: {"activations": torch.zeros(2, 8)},
    CausalConfig: {},
    DemoConfig: {},
    DiagnoseConfig: {"crosscoder": "demo"},
    InterpretConfig: {"crosscoder": "demo", "model": "a-model"},
    LookConfig: {"base": "tiny-base", "chat": "tiny-chat"},
    PaperReportConfig: {"crosscoder": "demo"},
    PlanOptions: {},
    ReportConfig: {},
}
EVALUATED = ("batch_size", "max_norm_ratio")
TRAINER, RUNNER = slc.CrosscoderTrainerConfig, slc.CrosscoderRunnerConfig
NUMBERS = [
    (cls, field.name)
    for cls in SMALLEST
    for field in dataclasses.fields(cls)
    if field.init and any(matches_type(number, get_type_hints(cls)[field.name]) for number in (0.5, 3))
    if field.name != "metadata" and not matches_type(object(), get_type_hints(cls)[field.name])
]
LISTS = [(cls, "activation_scales") for cls in SMALLEST if "activation_scales" in get_type_hints(cls)]
BAD = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "text": "8", "list": [1], "huge": 2**70}


def named(cases):
    return [f"{cls.__name__}.{name}" for cls, name in cases]


@pytest.mark.parametrize(("cls", "name"), NUMBERS, ids=named(NUMBERS))
def test_every_number_of_every_config_refuses_what_is_none(cls, name):
    for value in BAD.values():
        with pytest.raises(ValueError, match=name):
            build(cls, **{name: value})


@pytest.mark.parametrize(("cls", "name"), LISTS, ids=named(LISTS))
def test_every_list_of_numbers_refuses_what_is_none(cls, name):
    for value in (math.nan, math.inf, "8"):
        with pytest.raises(ValueError, match=name):
            build(cls, **{name: [1.0, value]})


FIELDS = [(cls, field.name) for cls in SMALLEST for field in dataclasses.fields(cls) if field.init]
FIELDS = [(cls, name) for cls, name in FIELDS if name != "metadata" and (cls is not slc.EvalData or name in EVALUATED)]
CANDIDATES = (0, 1, 2, 8, 150, 2048, 2**22, -1, 0.5, 1e-30, 1e30, np.int64(2), np.float32(0.5), np.bool_(True))
ONE = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(CANDIDATES)
NUMBER = st.sampled_from(CANDIDATES) | st.integers() | st.floats() | st.integers(-2, 300) | st.floats(0, 1)
ANY = ONE | st.lists(ONE, max_size=3) | st.dictionaries(st.text(max_size=3), ONE, max_size=2)


def law(n_examples):
    """The same examples in every run, however slow the machine is."""
    unhurried = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
    return settings(max_examples=n_examples, derandomize=True, database=None, phases=[Phase.generate], **unhurried)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=named(FIELDS))
def test_every_value_of_every_field_is_refused_or_written_and_read_as_it_was(cls, name):
    is_number, accepted = (cls, name) in NUMBERS, []

    @law(20 if is_number else 6)
    @given(NUMBER if is_number else ANY)
    def refused_or_read(value):
        if is_number and isinstance(value, int | np.integer) and "int" not in str(get_type_hints(cls)[name]):
            value = float(value) if abs(int(value)) < 2**63 else value
        try:
            cfg = build(cls, **{name: value})
        except ValueError:
            return
        accepted.append(value)
        assert plain(getattr(read_again(cfg), name)) == plain(getattr(cfg, name))
        assert not isinstance(getattr(cfg, name), np.generic)

    refused_or_read()
    never = ["lp_norm", "hook_head_index"]
    if issubclass(cls, BTK):  # the smallest of which has a partition or is not plain
        never += ["polish_at", *(["k_exclusive"] if cls is not BTK else []), *(["k_max"] if cls is TOPK else [])]
    assert accepted or not is_number or name in never


def read_again(cfg):
    """What is read of the JSON that a config writes; a config of a command is its flags."""
    if not hasattr(cfg, "to_dict"):
        fields = {field.name: getattr(cfg, field.name) for field in dataclasses.fields(cfg)}
        if type(cfg) is not slc.EvalData:
            json.dumps(fields, allow_nan=False, default=dataclasses.asdict)
        return cfg
    written = json.loads(json.dumps(cfg.to_dict(), allow_nan=False))
    host = type(cfg) if isinstance(cfg, TrainingSAEConfig | slc.CrosscoderRunnerConfig) else SAEConfig
    return host.from_dict(written)


def plain(value):
    """A value without the difference of lists and tuples, and nested configs as dictionaries."""
    if dataclasses.is_dataclass(value):
        return plain(dataclasses.asdict(value))
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


def test_the_table_holds_every_config_with_a_number():
    """A new config with a float has to join the table, and so the laws above."""
    found = set()
    for module in pkgutil.walk_packages(slc.__path__, "sae_lens_crosscoder."):
        if not module.name.startswith(("sae_lens_crosscoder.crosscoders", "sae_lens_crosscoder.training")):
            continue
        if module.name.endswith("triton_kernels"):
            continue
        for _, cls in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if dataclasses.is_dataclass(cls) and cls.__name__.endswith("Config") and not inspect.isabstract(cls):
                found.add(cls)
    found = {cls for cls in found if cls.__module__.startswith("sae_lens_crosscoder") and hasattr(cls, "device")}
    assert found <= set(SMALLEST)


@pytest.mark.parametrize("name", ["wandb_log_frequency", "eval_every_n_wandb_logs"])
def test_logging_that_would_fail_at_the_first_row_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
        build(TRAINER, logger=LoggingConfig(log_to_wandb=False, **{name: 0}))


@pytest.mark.parametrize(
    ("cls", "fields", "message"),
    [
        (TRAINER, {"dead_feature_window": -1}, "dead_feature_window=-1 must be at least 0"),
        (TRAINER, {"lr_warm_up_steps": -1}, "lr_warm_up_steps=-1 must be at least 0"),
        (TRAINER, {"lr_decay_steps": -1}, "lr_decay_steps=-1 must be at least 0"),
        (TRAINER, {"feature_sampling_window": 0}, "feature_sampling_window=0 must be at least 1"),
        (TRAINER, {"n_batches_for_norm_estimate": 0}, "n_batches_for_norm_estimate=0 must be at least 1"),
        (TRAINER, {"n_checkpoints": -1}, "n_checkpoints=-1 must be at least 0"),
        (TRAINER, {"lr": 0.0}, "lr=0.0 must be positive"),
        (TRAINER, {"adam_beta2": 1.0}, r"adam_beta2=1.0 must lie in \[0, 1\)"),
        (TRAINER, {"lr_scheduler_name": "linear"}, "lr_scheduler_name='linear' is not one of"),
        (
            TRAINER,
            {"lr_scheduler_name": "cosineannealing", "lr_warm_up_steps": 2048},
            "has 0 steps between warm-up and decay for 1 cycles",
        ),
        (BTK, {"k": "8"}, "invalid value: `k='8'`"),
        (BTK, {"k_max": 150, "k_anneal_steps": -1}, "k_anneal_steps=-1 must be at least 0"),
        (L1, {"l1_warm_up_steps": -1}, "l1_warm_up_steps=-1 must be at least 0"),
        (JUMPRELU, {"jumprelu_sparsity_loss_mode": "l1"}, "jumprelu_sparsity_loss_mode='l1' is not one of"),
        (L1, {"dtype": "float16"}, "dtype='float16' cannot be trained"),
        (RUNNER, {"sae": BTK(d_model=4, d_sae=8, k=1e-4)}, "k=0.0001 selects nothing from a batch of 2048"),
        (RUNNER, {"dtype": "float8"}, "dtype='float8' is not one of"),
        (RUNNER, {"model_dtype": "half"}, "model_dtype='half' is not one of"),
        (RUNNER, {"n_eval_batches": 0}, "n_eval_batches=0 must be at least 1"),
    ],
)
def test_what_would_fail_or_do_nothing_later_is_refused(cls, fields, message):
    with pytest.raises(ValueError, match=message):
        build(cls, **fields)


@pytest.mark.parametrize(
    ("sae", "message"),
    [
        (
            JUMPRELU(d_model=4, d_sae=8, l0_warm_up_steps=2049),
            "l0_warm_up_steps=2049 exceeds the 2048 steps of this run",
        ),
        (L1(d_model=4, d_sae=8, l1_warm_up_steps=2049), "l1_warm_up_steps=2049 exceeds the 2048 steps of this run"),
        (
            BTK(d_model=4, d_sae=200, k_max=150, k_anneal_steps=2049),
            "k_anneal_steps=2049 exceeds the 2048 steps of this run",
        ),
    ],
)
def test_a_ramp_that_ends_after_training_warns(sae, message):
    with pytest.warns(UserWarning, match=message):
        build(RUNNER, sae=sae)


@pytest.fixture(scope="module")
def activations():
    return world_a(seed=0).sample(1024, seed=1).activations


def trained(kind, batches, steps=20, trainer=None, **fields):
    torch.manual_seed(0)
    if kind == "l1":
        sae = slc.L1TrainingCrosscoder(L1(d_model=64, d_sae=32, **fields))
    else:
        sae = slc.BatchTopKTrainingCrosscoder(BTK(d_model=64, d_sae=32, **({"k": 4} | fields)))
    defaults = {"lr": 1e-3, "lr_warm_up_steps": 0, "dead_feature_window": 3, "log_frequency": 1}
    cfg = slc.CrosscoderTrainerConfig(
        total_training_samples=steps * BATCH, train_batch_size_samples=BATCH, **(defaults | (trainer or {}))
    )
    run = slc.CrosscoderTrainer(cfg, sae, batches)
    run.fit()
    return run


@pytest.mark.parametrize("kind", ["l1", "batchtopk"])
@pytest.mark.parametrize("autocast", [False, True])
def test_every_precision_and_step_trains_what_float64_trains(activations, monkeypatch, tmp_path, kind, autocast):
    monkeypatch.setattr(l1, "_SPARSE_BELOW", 2.0)  # the L1 step is sparse from the second batch on
    start = {"initialisation": "paired", "decoder_bias_init": "zeros"}
    torch.manual_seed(0)

    def weights_and_loss(dtype, step):
        batches = shuffled_batches(activations, BATCH, seed=0)
        run = trained(kind, batches, trainer={"autocast": autocast}, dtype=dtype, training_step=step, **start)
        return run.sae, run.history.loss.iloc[-1]

    exact, exact_loss = weights_and_loss("float64", "dense")
    for dtype, step in itertools.product(("float32", "bfloat16"), ("sparse", "dense")):
        sae, loss = weights_and_loss(dtype, step)
        # The start is drawn in the dtype's own numbers, so a run differs by more than rounding, but not by much.
        assert loss == pytest.approx(exact_loss, rel=0.05)
        norms = [
            (sae.get_parameter(name).double().norm() / exact.get_parameter(name).norm()).item()
            for name in ("W_enc", "W_dec", "b_dec")
        ]
        assert norms == pytest.approx([1.0] * 3, rel=0.1)
        sae.save_inference_model(tmp_path / dtype / step)
        saved = slc.load(tmp_path / dtype / step)
        assert saved.W_dec.dtype == getattr(torch, dtype)
        if kind == "batchtopk":
            assert saved.threshold.dtype == torch.float32
            assert saved.threshold[0].item() == torch.tensor(sae.topk_threshold.item()).item()


@pytest.mark.parametrize("kind", ["l1", "batchtopk"])
def test_in_half_precision_the_sparse_step_is_the_dense_one_within_rounding(activations, monkeypatch, kind):
    monkeypatch.setattr(l1, "_SPARSE_BELOW", 2.0)
    losses = [
        trained(kind, shuffled_batches(activations, BATCH, seed=0), dtype="bfloat16", training_step=step).history.loss
        for step in ("sparse", "dense")
    ]
    assert losses[0].tolist() == pytest.approx(losses[1].tolist(), rel=2**-6)


@pytest.mark.parametrize("step", ["sparse", "dense"])
def test_the_first_step_that_selects_nothing_stops_training(activations, tmp_path, step):
    def batches():
        yield from itertools.islice(shuffled_batches(activations, BATCH, seed=0), 5)
        while True:
            yield torch.zeros(BATCH, 128)

    trainer = {"checkpoint_path": str(tmp_path), "max_norm_ratio": None}
    with pytest.raises(ValueError, match=r"Step 5 selected no latent.*\n.*320 tokens of training are saved") as raised:
        trained("batchtopk", batches(), training_step=step, trainer=trainer)
    assert "lower the learning rate" in str(raised.value)


def test_a_row_holds_the_learning_rate_of_its_step(activations):
    run = trained("l1", shuffled_batches(activations, BATCH, seed=0), steps=4, trainer={"lr_warm_up_steps": 4})
    assert run.history.lr.tolist() == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3])


def test_a_resumed_run_says_what_it_resumes_from(activations, tmp_path, capsys):
    trainer = {"checkpoint_path": str(tmp_path), "save_final_checkpoint": True}
    trained("l1", shuffled_batches(activations, BATCH, seed=0), steps=4, trainer=trainer)
    assert "Resuming" not in capsys.readouterr().err
    again = trainer | {"resume_from_checkpoint": "latest"}
    trained("l1", shuffled_batches(activations, BATCH, seed=0), steps=6, trainer=again)
    expected = "final_256: 256 of 384 tokens are trained (step 4 of 6)."
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("name", [RUN_STATE_FILENAME.format(rank=0), "trainer_state.pt"])
def test_a_pickle_in_a_resealed_checkpoint_is_refused_in_our_words(activations, tmp_path, name):
    trainer = {"checkpoint_path": str(tmp_path), "save_final_checkpoint": True}
    trained("l1", shuffled_batches(activations, BATCH, seed=0), steps=4, trainer=trainer)
    folder = tmp_path / "final_256"
    torch.save({"state": _Unsafe()}, folder / name)
    checksums = FolderChecksums(folder)
    checksums.record(name)
    checksums.write()
    again = trainer | {"resume_from_checkpoint": str(folder)}
    with pytest.raises(ValueError, match="contains Python objects that a checkpoint of this package does not have"):
        trained("l1", shuffled_batches(activations, BATCH, seed=0), steps=6, trainer=again)


class _Unsafe:
    """Not among the types that torch reads without running code."""
