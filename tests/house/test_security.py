"""No code from strangers, and nothing leaves this machine unasked: what the package's own code may not call."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [
    path
    for folder in ("sae_lens_crosscoder", "benchmarks", "examples")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
RUNS_CODE = {"eval", "exec", "pickle.load", "pickle.loads", "pickle.Unpickler", "yaml.load", "joblib.load", "os.system"}
UPLOADS = {"create_repo", "push_to_hub", "upload_file", "upload_folder", "upload_saes_to_huggingface", "log_artifact"}


def problems(source):
    """What one file's code does that it may not."""
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        given = {arg: value.value for arg, value in keywords.items() if isinstance(value, ast.Constant)}
        if name in RUNS_CODE or given.get("shell") or given.get("allow_pickle"):
            yield f"{name} runs code"
        if name == "torch.load" and given.get("weights_only") is not True:
            yield "torch.load without weights_only=True"
        if given.get("trust_remote_code", False) or given.get("dataset_trust_remote_code", False):
            yield f"{name} with trust_remote_code"
        if name.rpartition(".")[2] in ("create_repo", "push_to_hub") and (
            "private" not in keywords or given.get("private", True) is False
        ):
            yield f"{name} that may be public unasked"


def uploads(source):
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return {ast.unparse(call.func).rpartition(".")[2] for call in calls} & UPLOADS


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_runs_what_it_reads(path):
    assert list(problems(path.read_text())) == []


def test_only_the_command_that_is_asked_to_uploads():
    package = [
        path for path in FILES if "sae_lens_crosscoder" in path.parts and path.stem not in ("publish", "publishing")
    ]
    assert {path.name: uploads(path.read_text()) for path in package if uploads(path.read_text())} == {}


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "pickle.loads(data)",
        "eval(text)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "api.create_repo(name)",
        "model.push_to_hub(name, private=False)",
    ],
)
def test_the_check_sees_what_it_is_for(code):
    assert list(problems(code))
