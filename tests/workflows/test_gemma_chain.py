"""From two Gemma 2 models in local folders to a report, by the command line alone, through two kills."""

import json
from pathlib import Path

import pandas as pd
import pytest

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.cli import main
from tests.data.data_files import chat_file, documents, gemma_like_tokenizer, text_file
from tests.killing import killed_at
from tests.models.small_models import D_MODEL, gemma2, save_pair

D_SAE, HOOK = 48, "blocks.1.hook_resid_post"
LATE = 40
"""File operations before a kill, after some of which there are whole files."""


@pytest.fixture
def flags(tmp_path, monkeypatch):
    """Of `cache` and `train`, in a folder with the models, the data and a file of requests."""
    monkeypatch.chdir(tmp_path)
    base, chat = save_pair(tmp_path, gemma2)
    gemma_like_tokenizer().save_pretrained(chat)
    sources = [{"path": text_file(tmp_path)}, {"path": chat_file(tmp_path), "kind": "conversations"}]
    Path("mix.json").write_text(json.dumps({"sources": sources}))
    Path("asked.txt").write_text("\n".join(documents(6, seed=5, longest=6)))
    return (
        f"--model_name {base} --chat_model_name {chat} --model_class_name TransformerBridge --hook_name {HOOK} "
        f"--mix mix.json --packing one_document --context_size 24 --d_model {D_MODEL} --d_sae {D_SAE} --k 4 "
        "--training_tokens 4096 --train_batch_size_tokens 128 --lr 1e-2 --lr_warm_up_steps 2 --n_held_out_rows 8 "
        "--store_batch_size_prompts 4 --n_checkpoints 4 --log_frequency 2 "
        f"--use_cached_activations True --cached_activations_path {tmp_path / 'cache'}"
    ).split()


def test_a_gemma_pair_goes_from_a_mix_to_reports_through_two_kills(flags, tmp_path):
    cache = ["cache", *flags, "--prompts_per_shard", "16"]
    assert killed_at(LATE, tmp_path / "cache", lambda: main(cache))
    assert main(cache) == 0
    manifest = slc.ActivationCache(tmp_path / "cache" / "training").manifest
    assert manifest.model_names == (str(tmp_path / "base"), str(tmp_path / "chat"))
    assert (manifest.hook_name, manifest.d_models) == (HOOK, (D_MODEL, D_MODEL))

    def train(name, *more):
        where = ["--output_path", name, "--checkpoint_path", str(tmp_path / "checkpoints" / name)]
        return main(["train", *flags, *where, *more])

    assert train("whole") == 0
    assert killed_at(LATE, tmp_path / "checkpoints" / "out", lambda: train("out"))
    assert len(list(Path("checkpoints/out").glob("*/*/checkpoint.json"))) in (1, 2, 3)
    assert not Path("out/cfg.json").exists()
    assert train("out", "--resume_from_checkpoint", "latest") == 0
    for name in ("sae_weights.safetensors", "metrics.jsonl"):
        assert Path("out", name).read_bytes() == Path("whole", name).read_bytes()

    table = slc.Diagnosis.load("out").latents
    assert main(["diagnose", "out"]) == 0
    pd.testing.assert_frame_equal(slc.Diagnosis.load("out").latents, table)

    asked = ["--crosscoder", "out", "--prompts", "asked.txt", "--n_conversations", "4", "--max_new_tokens", "6"]
    assert main(["causal", *asked, "--pool_size", "24", "--output_path", "effects"]) == 0
    rows = json.loads(Path("effects/effects.json").read_text())["rows"]
    kl = {(row["setup"], row["variant"]): row["kl_nats"] for row in rows if row["window"] == "all"}
    assert abs(kl["chat", ""]) < 1e-6 < kl["error", "replace"] < kl["all", "replace"] < kl["none", ""]

    assert main(["report", "--crosscoder", "out", "--output_path", "latents.html"]) == 0
    assert Path("latents.html").stat().st_size > 0
    assert main(["paper-report", "out", "--output_path", "paper"]) == 0
    assert str(tmp_path / "chat") in Path("paper/paper.json").read_text()
