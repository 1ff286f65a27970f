"""The causal experiment on saved crosscoders: interrupted, on given answers, with models that have moved."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.causal.experiment import effects
from sae_lens_crosscoder.models.tiny import TINY_HOOK, dialogues
from sae_lens_crosscoder.storage import accumulators as checkpoint
from sae_lens_crosscoder.workflows import causal_experiment as experiment
from sae_lens_crosscoder.workflows.causal_experiment import CausalConfig, run_causal
from tests.models.small_models import gemma2, save_pair

D_SAE = 12


class PowerCutError(Exception):
    pass


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, "_SECONDS_BETWEEN_SAVES", 0.0)


def save_crosscoder(folder, seed, names=("tiny-base", "tiny-chat"), d_model=96, hook_name=TINY_HOOK, **metadata):
    """A random one, and a table of its latents."""
    generator = torch.Generator().manual_seed(seed)
    crosscoder = slc.ReLUCrosscoder(slc.ReLUCrosscoderConfig(d_model=d_model, d_sae=D_SAE))
    with torch.no_grad():
        for parameter in crosscoder.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    for key, value in {"model_name": names[0], "chat_model_name": names[1], "hook_name": hook_name, **metadata}.items():
        crosscoder.cfg.metadata[key] = value
    crosscoder.save_model(folder)
    numbers = torch.linspace(1, 0, D_SAE).tolist()
    columns = {"delta_norm": numbers, "nu_error": 0.1, "nu_reconstruction": numbers, "dead": False}
    table = pd.DataFrame(columns | {"label": ["chat_only"] + ["shared"] * (D_SAE - 1), "verdict": "shared"})
    slc.Diagnosis(table, {"made_by": "hand"}).save(folder)


def config(**kwargs):
    return CausalConfig(
        **{"crosscoder": "both", "n_conversations": 5, "batch_size": 2, "pool_size": 6, "max_new_tokens": 8, **kwargs}
    )


@pytest.fixture
def _two_crosscoders():
    for seed, name in enumerate(("a", "b")):
        save_crosscoder(f"both/{name}", seed)


@pytest.fixture
def power(monkeypatch):
    """How many batches may still be measured, or conversations be answered, before nothing works any more."""
    measure, generate, left = effects.response_batches, experiment.generate_responses, {"batches": 99, "answers": 1}

    def use(what):
        if left[what] == 0:
            raise PowerCutError
        left[what] -= 1

    def measuring(*args):
        for batch in measure(*args):
            use("batches")
            yield batch

    def generating(*args, **kwargs):
        use("answers")
        return generate(*args, **kwargs)

    monkeypatch.setattr(effects, "response_batches", measuring)
    monkeypatch.setattr(experiment, "generate_responses", generating)
    return left


@pytest.mark.usefixtures("_two_crosscoders")
def test_an_interrupted_run_goes_on_to_the_same_files_and_repeats_nothing(power):
    run_causal(config(output_path="unbroken"))
    power["answers"], n_batches = 1, 2 * 3
    for power["batches"] in (0, 1, 3):  # before any, in the first crosscoder, in the second
        with pytest.raises(PowerCutError):
            run_causal(config(output_path="broken"))
    power["batches"] = 99
    run_causal(config(output_path="broken"))
    assert power == {"answers": 0, "batches": 99 - (n_batches - 4)}
    assert sorted(path.name for path in Path("broken").iterdir()) == ["effects.html", "effects.json"]
    for name in ("effects.html", "effects.json"):
        assert Path("broken", name).read_bytes() == Path("unbroken", name).read_bytes()


@pytest.mark.usefixtures("_two_crosscoders")
def test_another_run_in_the_same_folder_starts_anew(power):
    power["batches"] = 0

    def answers_anew(**kwargs):
        power["answers"] = 1
        with pytest.raises(PowerCutError):
            run_causal(config(output_path="out", **kwargs))
        return power["answers"] == 0

    assert answers_anew()
    assert not answers_anew()
    save_crosscoder("both/b", seed=7)
    assert answers_anew()
    diagnosis = slc.Diagnosis.load("both/b")
    replace(diagnosis, latents=diagnosis.latents.assign(nu_error=0.05)).save("both/b")
    assert answers_anew()
    assert answers_anew(max_new_tokens=7)


def rows_of(path):
    return pd.DataFrame(json.loads(Path(path, "effects.json").read_text())["rows"])


def test_the_file_holds_the_named_columns_and_the_tests_between_halves():
    save_crosscoder("both/a", 0)
    run_causal(config(output_path="out"))
    written = json.loads(Path("out/effects.json").read_text())
    columns = ["setup", "variant", "window", "kl_nats", "ci_low", "ci_high", "n_tokens", "n_conversations"]
    assert list(written["rows"][0]) == ["crosscoder", *columns]
    contrasts = pd.DataFrame(written["contrasts"])
    assert {"top_nu", "top_delta_norm"} == set(contrasts.setup)
    halves = contrasts.query("setup == 'top_nu' and against == 'bottom_nu' and window == 'all' and variant == 'add'")
    kl = rows_of("out").query("window == 'all' and variant == 'add'").set_index("setup").kl_nats
    assert halves.kl_nats_difference.tolist() == pytest.approx([kl["top_nu"] - kl["bottom_nu"]])


def test_given_answers_are_scored_as_they_are():
    save_crosscoder("both/a", 0)
    conversations = dialogues(8, seed=5, split="held_out")
    lines = [json.dumps({"messages": messages} if i % 2 else messages) for i, messages in enumerate(conversations)]
    Path("talks.jsonl").write_text("\n".join(lines))
    run_causal(config(output_path="out", prompts="talks.jsonl", answers="given"))
    different = list({json.dumps(messages): messages for messages in conversations}.values())[:5]
    answers = [message["content"] for messages in different for message in messages[1::2]]
    rows = rows_of("out").query("window == 'all'")
    assert set(rows.n_tokens) == {sum(len(answer.split()) + 1 for answer in answers)}  # each ends its turn
    assert set(rows.n_conversations) == {5}


def test_models_in_folders_are_found_where_they_are_now(tmp_path):
    folders = save_pair(tmp_path / "then", gemma2)
    hook = {"hook_name": "blocks.1.hook_resid_post", "model_class_name": "TransformerBridge"}
    save_crosscoder("one", 0, folders, d_model=32, **hook)
    Path("asked.txt").write_text("so what does anna eat ?\nhello where does ben live ?\n")
    options = {"crosscoder": "one", "prompts": "asked.txt", "max_new_tokens": 4}
    there = run_causal(config(output_path="there", **options))
    shutil.move(tmp_path / "then", tmp_path / "now")
    with pytest.raises(ValueError, match=r"the folder .*then/base does not exist: pass model_name"):
        run_causal(config(output_path="moved", **options))
    moved = {"model_name": str(tmp_path / "now/base"), "chat_model_name": str(tmp_path / "now/chat")}
    pd.testing.assert_frame_equal(run_causal(config(output_path="moved", **options, **moved)), there)
    assert set(there.crosscoder) == {"one"}
