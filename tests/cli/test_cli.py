"""The command line: what it prints, what it writes, how it refuses; and the demo, once, as the README runs it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.cli import main
from sae_lens_crosscoder.models.tiny import CONCEPTS, TINY_HOOK
from sae_lens_crosscoder.serving import ServeConfig
from sae_lens_crosscoder.serving.requests import AnswersRequest, Edit
from sae_lens_crosscoder.serving.serve import prepare
from sae_lens_crosscoder.workflows.demo import DemoConfig, run_demo

pytestmark = pytest.mark.usefixtures("types_unchecked_in_the_module")

COMMAND = Path(sys.executable).parent / "sae-lens-crosscoder"
TINY = (
    f"--model_name tiny-base --chat-model-name tiny-chat --dataset_path tiny-mix --hook_name {TINY_HOOK} "
    "--context_size 64 --d_model 96 --d-sae 32 --k 4 --training_tokens 640 --train_batch_size_tokens 64 "
    "--lr_warm_up_steps 2 --n_held_out_rows 8 --checkpoint_path None"
).split()


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_train_writes_one_whole_folder_and_diagnose_reads_it(capsys):
    assert main(["train", *TINY, "--output_path", "out"]) == 0
    assert {path.name for path in Path("out").iterdir()} == {
        "cfg.json",
        "checksums.json",
        "sae_weights.safetensors",
        "latents.parquet",
        "metrics.jsonl",
        "runner_cfg.json",
    }
    first = slc.Diagnosis.load("out").latents
    assert len(first) == 32
    assert main(["diagnose", "out"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "out/latents.parquet"
    pd.testing.assert_frame_equal(slc.Diagnosis.load("out").latents, first)
    assert main(["diagnose", "out", "--n_held_out_rows", "2"]) == 0
    assert slc.Diagnosis.load("out").manifest["n_tokens"] == 2 * 64


def test_null_runs_give_q_values(capsys):
    null = ["--chat-model-name", "tiny-base+jitter=0.02"]
    assert main(["train", *TINY, "--output_path", "out"]) == 0
    assert main(["train", *TINY, *null, "--output_path", "null"]) == 0
    assert main(["diagnose", "out", "--null", "null", "null", "--fve_floor", "0.4"]) == 0
    assert re.search(
        r"^undecided: the FVE of the \w+ model is .*, below the floor of 0\.4", capsys.readouterr().out, re.M
    )
    diagnosis = slc.Diagnosis.load("out")
    table = diagnosis.latents
    assert diagnosis.manifest["n_null_runs"] == 2
    assert table.q_value.notna().any()
    assert main(["diagnose", "out", "--null", "nowhere"]) == 2
    assert "'nowhere' is neither a local folder nor a Hub id" in capsys.readouterr().err


def test_the_papers_report_reads_the_held_out_rows_of_a_run_of_another_pair():
    assert main(["train", *TINY, "--chat-model-name", "tiny-base+jitter=0.02", "--output_path", "out"]) == 0
    assert main(["paper-report", "out", "--output_path", "paper", "--n_rows", "4", "--images", "svg"]) == 0
    document = json.loads(Path("paper/paper.json").read_text())
    assert "tiny-base+jitter=0.02" in json.dumps(document)
    config = json.loads(Path("out/runner_cfg.json").read_text())
    Path("out/runner_cfg.json").write_text(json.dumps({**config, "seed": config["seed"] + 1}))
    with pytest.warns(UserWarning, match="runner_cfg.json was edited after it was written"):
        assert main(["paper-report", "out", "--output_path", "again", "--n_rows", "4", "--images", "svg"]) == 0


def test_a_sweep_trains_one_crosscoder_per_value(capsys):
    assert main(["train", *TINY, "--output_path", "out", "--sweep", "k=2,8"]) == 0
    assert {path.name for path in Path("out").iterdir()} == {"k=2", "k=8"}
    table = capsys.readouterr().out
    assert re.search(r"^k=2 .*\b2\.0 ", table, flags=re.M)
    l0 = {name: slc.Diagnosis.load(f"out/{name}").manifest["l0"] for name in ("k=2", "k=8")}
    assert l0["k=2"] < l0["k=8"]


def test_causal_takes_a_crosscoder_or_a_folder_of_several(capsys):
    assert main(["train", *TINY, "--output_path", "out", "--sweep", "k=4,8"]) == 0
    small = ["--n_conversations", "4", "--pool_size", "24"]
    for given, names in (("out", {"k=4", "k=8"}), ("out/k=8", {"k=8"})):
        capsys.readouterr()
        assert main(["causal", "--crosscoder", given, "--output-path", "effects", *small]) == 0
        shown = capsys.readouterr().out
        assert shown.splitlines()[-2:] == ["effects/effects.json", "effects/effects.html"]
        rows = pd.DataFrame(json.loads(Path("effects/effects.json").read_text())["rows"])
        assert set(rows.crosscoder) == names
        assert set(rows) == {
            *("crosscoder", "setup", "variant", "window", "kl_nats", "ci_low", "ci_high", "n_tokens"),
            "n_conversations",
        }
        assert {"none", "all", "error", "chat", "template", "top_nu", "bottom_delta_norm"} <= set(rows.setup)
        assert set(rows.variant[rows.setup == "top_nu"]) == {"replace", "add"}
        assert (rows.n_conversations == 4).all()
        whole = rows[rows.window == "all"].set_index(["crosscoder", "setup"])
        for name in names:
            assert abs(whole.kl_nats[name, "chat"]) < 1e-6
            none = whole.loc[(name, "none")]
            assert 0 < none.ci_low <= none.kl_nats <= none.ci_high
            assert f"{none.kl_nats:.3f}" in shown
        page = re.sub(r"<script>.*?</script>", "", Path("effects/effects.html").read_text(), flags=re.S)
        assert all(f"<h3>{name}</h3>" in page for name in names)
        assert "http" not in page.replace("http-equiv", "")


def test_causal_runs_on_the_first_prompts_of_a_file():
    assert main(["train", *TINY, "--output_path", "out"]) == 0
    asked = ["so what does anna eat ?", "", "hello where does ben live ?", "so what does anna eat ?"]
    Path("asked.txt").write_text("\n".join([*asked, "an unknown word"]))
    prompts = ["--prompts", "asked.txt", "--n_conversations", "2", "--pool_size", "24"]
    assert main(["causal", "--crosscoder", "out", "--output-path", "effects", *prompts]) == 0
    rows = pd.DataFrame(json.loads(Path("effects/effects.json").read_text())["rows"])
    answers = ["food of anna is bread . <eot>", "home of ben is ? . <eot>"]
    assert set(rows.n_tokens[rows.window == "all"]) == {sum(len(answer.split()) for answer in answers)}


def test_report_makes_the_explorer_of_a_crosscoder_or_of_several(capsys):
    assert main(["train", *TINY, "--output_path", "out", "--sweep", "k=4,8"]) == 0
    capsys.readouterr()
    few = ["--n_held_out_rows", "4", "--n_conversations"]
    for given, names, n in (("out", ["k=8", "k=4"], "0"), ("out/k=8", ["k=8"], "3")):
        files = ["--output-path", "new/explorer.html", "--neuronpedia", f"exports/{n}"]
        assert main(["report", "--crosscoder", given, *files, *few, n]) == 0
        exports = [f"exports/{n}/tiny-chat/2-crosscoder-k-{name[2:]}" for name in names]
        assert capsys.readouterr().out.splitlines()[-len(names) - 1 :] == ["new/explorer.html", *exports]
        assert all(Path(export, "features", "batch-0.jsonl.gz").exists() for export in exports)
        source = Path("new/explorer.html").read_text(encoding="utf-8")
        about = json.loads(re.search('id="about">(.*?)</script>', source)[1])
        assert [crosscoder["name"] for crosscoder in about["crosscoders"]] == names
        assert all(crosscoder["n"] == 32 for crosscoder in about["crosscoders"])
    models, page = prepare(ServeConfig("out", n_held_out_rows=2, max_new_tokens=3))
    assert [(each["name"], each["d_sae"], each["can_steer"]) for each in models.description()["crosscoders"]] == [
        ("k=8", 32, True),
        ("k=4", 32, True),
    ]
    assert json.loads(re.search('id="about">(.*?)</script>', page)[1])["live"] == models.description()
    asked = AnswersRequest("so what does anna eat ?", "k=4", (Edit((1,), "steer"),), max_new_tokens=3)
    *_, last = models.answers(asked, models.tokenize(asked.prompt, 3))
    assert [len(each["token_ids"]) for each in last["answers"]] == [3] * 4
    assert main(["report", "--crosscoder", "out", "--neuronpedia", "exports/3"]) == 2
    assert "neuronpedia='exports/3' already exists" in capsys.readouterr().err
    Path("out/k=8/runner_cfg.json").unlink()
    assert main(["report", "--crosscoder", "out/k=8"]) == 2
    assert "use slc.explore with a pair and tokens of your own" in capsys.readouterr().err


def test_plan_takes_trains_flags_and_what_training_wrote_alike(capsys):
    def shown(*args):
        assert main(["plan", *args]) == 0
        return re.sub(r"time .*?\n( {6}.*?\n)*", "", capsys.readouterr().out)

    assert main(["train", *TINY, "--output_path", "out"]) == 0
    capsys.readouterr()
    from_flags = shown(*TINY, "--output_path", "out")
    assert "It fits." in from_flags
    assert f"{2 * 192 * 32 + 32 + 192:,} parameters" in from_flags
    assert shown("out") == shown("out/runner_cfg.json") == from_flags
    wider = shown(*TINY, "--output_path", "out", "--d_sae", "64")
    assert shown("out", "--d-sae", "64") == wider != from_flags


def test_plan_says_what_would_fit(capsys):
    small = ["--memory_gib", "0.009"]
    assert main(["plan", *TINY, *small]) == 0
    out = capsys.readouterr().out
    assert "It does not fit." in out
    edits = re.findall(r"^  (--.*)\n.* (fits|not enough)\.", out, flags=re.M)
    enough = [edit for edit, verdict in edits if verdict == "fits"]
    assert enough
    for edit in enough:
        assert main(["plan", *TINY, *small, *edit.split()]) == 0
        assert "It fits." in capsys.readouterr().out


def test_plan_reads_sweeps(capsys):
    sweep = ["--sweep", "k=2,8"]
    assert main(["train", *TINY, "--output_path", "out", *sweep]) == 0
    capsys.readouterr()
    assert main(["plan", *TINY, *sweep]) == 0
    assert "crosscoder k=8: " in capsys.readouterr().out
    assert main(["plan", "out/k=2", "--device", "cuda:7"]) == 0
    out = capsys.readouterr().out
    assert "crosscoder k=8: " in out
    assert "memory on cuda:7" in out
    assert "No time estimate: this machine has no device 'cuda:7'" in out
    assert main(["plan", "out/k=2", "--k", "4"]) == 2
    assert "change their fields in the file, not by flags" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_says_how_to_go_on_and_goes_on_to_the_same_files(number, code, capsys, monkeypatch):
    args = ["train", *TINY[:-2], "--checkpoint_path", "checkpoints", "--log_frequency", "3"]
    assert main([*args, "--output_path", "whole"]) == 0
    step = slc.CrosscoderTrainer.step

    def interrupted(trainer, batch):
        if trainer.n_training_steps == 4:
            os.kill(os.getpid(), number)
        return step(trainer, batch)

    with monkeypatch.context() as patched:
        patched.setattr(slc.CrosscoderTrainer, "step", interrupted)
        assert main([*args, "--output_path", "out"]) == code
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        rf"sae-lens-crosscoder train: Training was interrupted by {number.name}. All 320 tokens of training are saved "
        r"in checkpoints/\w+/320: resume with resume_from_checkpoint='latest'.",
        said,
    )
    assert not Path("out/cfg.json").exists()
    assert main([*args, "--output_path", "out", "--resume_from_checkpoint", "latest"]) == 0
    for name in ("sae_weights.safetensors", "metrics.jsonl"):
        assert Path("out", name).read_bytes() == Path("whole", name).read_bytes()
    shutil.rmtree("checkpoints")
    assert main(["diagnose", "out"]) == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["dmeo"], "unknown command 'dmeo'. Did you mean 'demo'?"),
        (["train", *TINY, "--hook_name", "blocks.9.hook_resid_post"], "no common hook 'blocks.9.hook_resid_post'"),
        (["train", *TINY, "--k", "33"], "k=33.0 must be above 0 and at most d_sae=32"),
        (["train", *TINY, "--sweep", "k"], "--sweep k: expected a numeric field and values, such as k=50,100,200"),
        (["train", *TINY, "--sweep", "kk=1,2"], "--sweep kk=1,2: expected a numeric field"),
        (["train", *TINY, "--sweep", "use_sparse_activations=True,False"], "expected a numeric field"),
        (["plan", "nowhere"], "nowhere does not exist: give a runner_cfg.json"),
        (["plan", "out", "--sweep", "k=1,2"], "--sweep cannot change a saved config"),
        (["plan", *TINY, "--memory_gib", "-1"], "memory_gib=-1.0 must be positive"),
        (["plan", *TINY, "--hook_name", "blocks.9.hook_resid_post"], "is in layer 9, but tiny-base has 4 layers"),
        (["causal", "--crosscoder", "nowhere"], "nowhere is not a crosscoder folder and contains none"),
        (["diagnose", "nowhere"], "'nowhere' is neither a local folder nor a Hub id"),
    ],
)
def test_a_mistake_is_one_clear_line_and_exit_code_2(args, message, capsys):
    assert main(args) == 2
    assert message in capsys.readouterr().err


def test_diagnosing_on_more_rows_than_were_held_out_is_refused(capsys):
    assert main(["train", *TINY, "--output_path", "out"]) == 0
    assert main(["diagnose", "out", "--n_held_out_rows", "9"]) == 2
    assert "include training data" in capsys.readouterr().err


def test_the_demo_in_small_is_the_same_twice():
    cfg = {"d_sae": 64, "training_steps": 40, "batch_size": 128}
    first, second = (run_demo(DemoConfig(output_path=name, **cfg)) for name in ("a", "b"))
    for name in ("l1", "batchtopk"):
        pd.testing.assert_frame_equal(first.diagnoses[name].latents, second.diagnoses[name].latents)
    pd.testing.assert_frame_equal(first.concepts, second.concepts)


def test_the_demo_in_a_fifth_of_its_steps():
    flags = ["--output-path", "demo", "--training-steps", "500"]
    result = subprocess.run([COMMAND, "demo", *flags], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    for path in ("summary.json", "report.html", "l1", "batchtopk"):
        assert f"demo/{path}" in result.stdout
        assert Path("demo", path).exists()
    summary = json.loads(Path("demo/summary.json").read_text())
    for name, architecture in (("l1", "crosscoder"), ("batchtopk", "jumprelu_crosscoder")):
        row = summary["crosscoders"][name]
        assert row["architecture"] == architecture
        assert set(row) == {
            "architecture", "fve_base", "fve_chat", "l0", "labels", "verdicts", "n_dead", "conclusion", "seconds",
        }  # fmt: skip
        table = slc.Diagnosis.load(Path("demo", name)).latents
        assert row["labels"] == {k: int(n) for k, n in table.label.value_counts().items()}
        assert row["n_dead"] == int(table.dead.sum())
        assert min(row["fve_base"], row["fve_chat"]) > 0.95
        assert slc.load(Path("demo", name)).cfg.d_sae == len(table)
    assert summary["crosscoders"]["batchtopk"]["l0"] == pytest.approx(8, rel=0.1)
    assert {"torch", "sae-lens"} <= set(summary["versions"])
    assert all(concept in result.stdout for concept in CONCEPTS)
    page = re.sub(r"<script.*?</script>", "", Path("demo/report.html").read_text(), flags=re.S)
    assert "http://" not in page
    assert "https://" not in page
