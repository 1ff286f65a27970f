"""A published folder says what it is, loads by its own card's lines, and shows nobody what was not asked for."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import filter_repo_objects

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.cli import main
from sae_lens_crosscoder.workflows import publish as publishing
from tests.crosscoders.conftest import batchtopk_crosscoder, stacked_batch, step

REPO = "me/mine"
METRICS = '{"step": 1, "fve_base": 0.5}\n{"step": 2, "fve_base": 0.875, "l0": 3.0, "loss": 1.0}\n'


@pytest.fixture
def folder(tmp_path):
    crosscoder = batchtopk_crosscoder()
    x = stacked_batch()
    crosscoder.training_forward_pass(step(x))
    metadata = crosscoder.cfg.metadata
    metadata.model_name, metadata.chat_model_name = "google/gemma-2-2b", "/home/somebody/models/tuned|<b>"
    metadata.hook_name = "blocks.0.hook_resid_post"
    path = tmp_path / "crosscoder"
    crosscoder.save_inference_model(path)
    slc.diagnose(slc.load(path), slc.EvalData(activations=x.double()), min_active=1).save(path)
    (path / "metrics.jsonl").write_text(METRICS)
    return path


class Hub:
    """Stands in for the Hub's API: repositories are folders, and what is asked of them is noted."""

    def __init__(self, root, visible=None):
        self.root, self.private = root, visible

    def repo_info(self, repo_id):
        if self.private is None:
            raise RepositoryNotFoundError("no", response=SimpleNamespace(headers={}, request=None))
        return SimpleNamespace(private=self.private)

    def create_repo(self, repo_id, private):
        self.private = private

    def upload_folder(self, repo_id, folder_path, ignore_patterns):
        files = [str(path.relative_to(folder_path)) for path in Path(folder_path).rglob("*") if path.is_file()]
        for name in filter_repo_objects(files, ignore_patterns=ignore_patterns):
            target = self.root / repo_id / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(folder_path, name), target)

    @property
    def files(self):
        return {str(path.relative_to(self.root / REPO)) for path in self.root.rglob("*") if path.is_file()}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    fake = Hub(tmp_path / "hub")
    monkeypatch.setattr(publishing, "HfApi", lambda: fake)
    return fake


def test_the_card_says_what_the_folder_holds(folder):
    card = slc.workflows.write_model_card(folder, REPO, license="mit").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "saelens"
    assert front["license"] == "mit"
    assert front["base_model"] == ["google/gemma-2-2b"]  # the other one is nobody's on the Hub
    assert "| fve_base | 0.8750 |" in card  # the last row's
    assert "| loss" not in card
    diagnosis = slc.Diagnosis.load(folder)
    assert f"{diagnosis.conclusion}." in card
    for name, count in diagnosis.latents.verdict.value_counts().items():
        assert f"| {name} | {count} |" in card


def test_names_are_inert_and_folders_of_this_machine_stay_here(folder):
    card = slc.workflows.write_model_card(folder, REPO).read_text()
    assert "/home/somebody" not in card
    assert "`tuned/<b>`" in card  # as code, which renders no tags


def test_nothing_that_a_file_says_is_markup_in_the_card(folder):
    hostile = "a\u202e\0](http://x) ![b](http://y) <script>`|*\n# c"
    crosscoder = slc.load(folder)
    crosscoder.cfg.metadata.training_architecture_details = {hostile: hostile}
    crosscoder.save_model(folder)
    diagnosis = slc.Diagnosis.load(folder)
    diagnosis.manifest.update({"conclusion": hostile, "fve": {hostile: 0.5}})
    replace(diagnosis, latents=diagnosis.latents.assign(verdict=hostile)).save(folder)
    (folder / "metrics.jsonl").write_text(json.dumps({f"fve_{hostile}": 0.5, "fve_base": None}) + "\n")
    text = re.sub("`[^`\n]*`", "", slc.workflows.write_model_card(folder).read_text().replace("\\`", ""))
    assert not re.search("[\u202e\0]|<script|(?<!\\\\)[][]|^# c", text, flags=re.M)
    assert text.count("http://y") >= 4
    (folder / "metrics.jsonl").write_text("[1]\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl has an invalid last line"):
        slc.workflows.write_model_card(folder)


def test_the_cards_own_lines_load_it_in_a_fresh_process(folder, hub):
    slc.push_to_hub(folder, REPO)
    (code,) = re.findall(r"```python\n(.*?)```", (hub.root / REPO / "README.md").read_text(), flags=re.S)
    ask = "\nprint(type(crosscoder).__name__, crosscoder.cfg.d_sae, len(latents))"
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code + ask]  # where it runs, the repository's name is a folder
    done = subprocess.run(command, cwd=hub.root, env=env, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["JumpReLUCrosscoder", "11", "11"], done.stderr


def test_it_is_private_unless_asked_and_checkpoints_and_hidden_files_stay_here(folder, hub):
    (folder / "checkpoints" / "10").mkdir(parents=True)
    for name in ("checkpoints/10/sae_weights.safetensors", "cfg.json.partial", ".token"):
        (folder / name).write_text("x")
    assert slc.push_to_hub(folder, REPO) == "https://huggingface.co/me/mine"
    assert hub.private is True
    names = {"README.md", "cfg.json", "checksums.json", "latents.parquet", "metrics.jsonl", "sae_weights.safetensors"}
    assert hub.files == names


@pytest.mark.parametrize("private", [True, False])
def test_a_public_repository_is_only_written_to_when_asked(folder, hub, private):
    hub.private = False
    if private:
        with pytest.raises(ValueError, match="me/mine is public already: pass private=False"):
            slc.push_to_hub(folder, REPO)
        assert hub.files == set()
    else:
        slc.push_to_hub(folder, REPO, private=False)
        assert "cfg.json" in hub.files


def test_a_card_written_by_hand_is_kept(folder, hub):
    (folder / "README.md").write_text("# Mine\n")
    with pytest.raises(ValueError, match="was written by hand"):
        slc.push_to_hub(folder, REPO)
    assert hub.private is None  # nothing was made
    slc.push_to_hub(folder, REPO, write_card=False)
    assert (hub.root / REPO / "README.md").read_text() == "# Mine\n"


def test_what_is_no_crosscoder_or_no_name_is_refused_before_anything_is_made(tmp_path, folder, hub):
    with pytest.raises(ValueError, match=r"is not a crosscoder folder: cfg\.json is missing"):
        slc.push_to_hub(tmp_path, REPO)
    with pytest.raises(ValueError, match="repo_id='a/b/c' is not a Hub repository name"):
        slc.push_to_hub(folder, "a/b/c")
    assert hub.private is None


def test_without_latents_and_metrics_the_card_is_shorter(folder):
    for name in ("latents.parquet", "metrics.jsonl"):
        (folder / name).unlink()
    card = slc.workflows.write_model_card(folder).read_text()
    assert "Diagnosis.load" not in card
    assert "At the end of training" not in card


def test_the_command_writes_the_card_and_uploads(folder, hub, capsys):
    assert main(["publish", str(folder), REPO, "--dry-run"]) == 0
    assert hub.private is None
    assert main(["publish", str(folder), REPO, "--public"]) == 0
    assert hub.private is False
    assert capsys.readouterr().out.split() == [str(folder / "README.md"), "https://huggingface.co/me/mine"]
    assert isinstance(slc.Diagnosis.load(hub.root / REPO).latents, pd.DataFrame)
