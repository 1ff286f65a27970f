"""The command: an estimate first, then answers over HTTP, explanations in the folder, and nothing asked twice."""

import re
import sys

import pytest

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.cli import main
from sae_lens_crosscoder.models.tiny import TINY_HOOK
from tests.interpretation.test_clients import server as server

TINY = (
    f"--model_name tiny-base --chat-model-name tiny-chat --dataset_path tiny-mix --hook_name {TINY_HOOK} "
    "--context_size 64 --d_model 96 --d-sae 32 --k 4 --training_tokens 640 --train_batch_size_tokens 64 "
    "--lr_warm_up_steps 2 --n_held_out_rows 24 --checkpoint_path None --output_path out"
).split()
COMMAND = ["interpret", "--crosscoder", "out", "--model", "m", "--embedder", "words", "--n_windows", "400"]


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *TINY]) == 0
    return tmp_path / "out"


def judge(messages):
    texts = re.findall(r"^\d+\. ", messages[0]["content"], flags=re.M)
    return str([1] * len(texts)) if texts else "EXPLANATION: every token"


def test_it_says_the_cost_asks_and_leaves_explanations_in_the_folder(out, server, capsys):
    server.reply = judge
    table = slc.Diagnosis.load(out).latents
    latents = table.index[(table.n_active > 30) & (table.frequency < 0.5)][:2].tolist()
    command = [*COMMAND, "--base-url", server.url, "--latents", *map(str, latents), "--prompt_price", "2"]
    command += ["--answer-price", "8"]
    capsys.readouterr()
    assert main([*command, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    cost = re.search(r"2 latents: (\d+) prompts to send \(0 more are recorded\), .* about 0\.\d\d", shown)
    assert cost
    assert server.requests == []
    assert not (out / "answers.jsonl").exists()
    assert main(command) == 0
    assert len(server.requests) == int(cost[1])
    shown = capsys.readouterr().out
    assert "0 answers could not be parsed" in shown
    assert shown.splitlines()[-1] == "out/interpretations.parquet"
    found = slc.Diagnosis.load(out).latents
    assert found.explanation.dropna().to_dict() == dict.fromkeys(latents, "every token")
    assert (found.loc[latents, ["detection_random", "detection_hard", "fuzzing"]] == 0.5).all(axis=None)
    n_asked = len(server.requests)
    assert main([*command, "--recorded_only"]) == 0
    assert len(server.requests) == n_asked
    assert main([*command, "--recorded_only", "--settings", '{"seed": 1}']) == 2
    assert "and recorded_only=True" in capsys.readouterr().err
    assert len(server.requests) == n_asked


def test_mistakes_are_one_clear_line(out, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    for args, message in (
        (["--settings", "{"], "settings='{' is not valid JSON"),
        (["--labels", "none"], "No live latent has one of the labels ['none']"),
        (["--embedder", "all-MiniLM-L6-v2"], "pip install 'sae-lens-crosscoder[autointerp]'"),
        (["--n_held_out_rows", "25"], "would include training data"),
        (["--latents", "32"], "There is no latent 32"),
        (["--examples", "out/cfg.json"], "is not an examples file"),
    ):
        assert main([*COMMAND, "--latents", "1", *args] if args[0] != "--labels" else [*COMMAND, *args]) == 2
        assert message in capsys.readouterr().err
