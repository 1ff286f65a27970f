"""Records of versions are made wherever the package runs from, installed or not."""

import importlib.metadata
import json

import pytest

import sae_lens_crosscoder as slc
from benchmarks import results_file
from sae_lens_crosscoder.cli import main
from sae_lens_crosscoder.storage.versions import NOT_INSTALLED, package_versions
from sae_lens_crosscoder.workflows import doctor
from tests.analysis.conftest import random_activations, random_crosscoder

NAME = "sae-lens-crosscoder"


@pytest.fixture
def _from_a_source_tree(monkeypatch):
    """No distribution of this package is installed."""
    real = importlib.metadata.distribution

    def without_us(name):
        if name == NAME:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "distribution", without_us)


def test_versions_are_those_that_are_installed():
    assert package_versions(("torch", "no-such-package")) == {
        "torch": importlib.metadata.version("torch"),
        "no-such-package": NOT_INSTALLED,
    }


@pytest.mark.usefixtures("_from_a_source_tree")
def test_a_diagnosis_a_benchmark_and_the_commands_end_without_an_installation(tmp_path, capsys, monkeypatch):
    crosscoder = random_crosscoder()
    diagnosis = slc.diagnose(crosscoder, slc.EvalData(activations=random_activations(40)))
    assert diagnosis.manifest["versions"][NAME] == NOT_INSTALLED
    monkeypatch.setattr("sys.argv", [str(results_file.ROOT / "benchmarks" / "a.py")])
    results_file.write_results(tmp_path / "rows.json", [{"a": 1}])
    assert json.loads((tmp_path / "rows.json").read_text())["versions"][NAME] == NOT_INSTALLED
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == NOT_INSTALLED
    packages = list(doctor._packages())
    assert [(finding.status, finding.name) for finding in packages] == [("note", NAME)]
