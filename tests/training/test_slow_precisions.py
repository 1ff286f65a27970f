"""bfloat16 is warned of where the machine multiplies it slowly, and nowhere else."""

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.models.tiny import TINY_HOOK
from sae_lens_crosscoder.training.validation import slow_precisions

MACHINES = {
    "AVX2": ({"architecture": "x86_64", "avx2": True}, True),
    "AVX512-BF16": ({"architecture": "x86_64", "avx512_bf16": True}, False),
    "AMX": ({"architecture": "x86_64", "amx_bf16": True}, False),
    "unknown": ({"architecture": "aarch64"}, False),
}


def config(dtype="bfloat16", **fields):
    sae = slc.BatchTopKCrosscoderTrainingConfig(d_model=96, d_sae=64, k=4, dtype=dtype)
    fields = {"model_dtype": "bfloat16", "context_size": 64, "training_tokens": 1024, **fields}
    return slc.CrosscoderRunnerConfig(
        sae=sae,
        model_name="tiny-base",
        chat_model_name="tiny-chat",
        hook_name=TINY_HOOK,
        dataset_path="tiny-mix",
        train_batch_size_tokens=256,
        lr_warm_up_steps=0,
        device="cpu",
        checkpoint_path=None,
        output_path=None,
        **fields,
    )


def on(monkeypatch, machine):
    capabilities, is_slow = MACHINES[machine]
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    return is_slow


@pytest.mark.parametrize("machine", MACHINES)
def test_both_precisions_are_named_on_a_processor_without_the_instructions(monkeypatch, machine):
    is_slow = on(monkeypatch, machine)
    notes = slow_precisions(config())
    assert [note.split("=")[0] for note in notes] == ["model_dtype", "sae.dtype"] * is_slow


def test_float32_a_gpu_and_cached_activations_are_not_warned_of(monkeypatch):
    on(monkeypatch, "AVX2")
    assert slow_precisions(config(dtype="float32", model_dtype="float32")) == []
    assert slow_precisions(config(dtype="float32", llm_device="cuda")) == []
    assert slow_precisions(config(dtype="float32", llm_device="cuda", chat_device="cpu")) != []


def test_the_plan_and_the_runner_say_so(monkeypatch):
    on(monkeypatch, "AVX2")
    plan = slc.planning.plan(config(dtype="float32"), measure_time=False)
    assert "neither AMX nor AVX512-BF16" in str(plan)
    with pytest.warns(UserWarning, match="model_dtype='bfloat16' is about 100 times as slow"):
        slc.CrosscoderTrainingRunner(config(dtype="float32"))
