"""What was written is told from what was not, and nothing of a stranger's file acts on whoever reads about it."""

import dataclasses
import json
import warnings
from typing import Literal

import pytest
import torch

from sae_lens_crosscoder.storage.checksums import FolderChecksums, named_fingerprint, validate_checksums
from sae_lens_crosscoder.storage.field_types import naming_file, validate_field_types
from sae_lens_crosscoder.storage.json_files import load_json
from sae_lens_crosscoder.storage.names import printable_names, validate_folder_name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('{"a": [-Infinity]}', "-Infinity is not a JSON number"),
        ('{"a": 1e999}', "the number 1e999 is too large"),
        ('{"a": ' + "9" * 5000 + "}", "4300 digits"),
        ('{"b": {"a": 1, "a": 1}}', "duplicate key 'a'"),
        ('{"a": ' + "[" * 64 + "]" * 64 + "}", "nested more than 64 levels deep"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "recursion"),
        ('{"a": "\\ud800"}', "surrogates not allowed"),
        ("[1]", "expected a JSON object, got a list"),
        ("", "Expecting value"),
    ],
)
def test_json_that_may_mean_anything_is_refused_by_name(tmp_path, text, message):
    path = tmp_path / "cfg.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"cfg.json is not valid JSON: .*{message}"):
        load_json(path)


def test_what_json_can_say_is_read_as_json_reads_it(tmp_path):
    text = (
        '{"a": [1, 2.5, -0.0, 1e-400, null, true, "\\ud83d\\ude00 \\u202e"], "b": {"c": ' + "[" * 62 + "]" * 62 + "}}"
    )
    (tmp_path / "x.json").write_text(text)
    assert load_json(tmp_path / "x.json") == json.loads(text)
    (tmp_path / "x.json").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"x.json is not valid JSON: .*utf-8"):
        load_json(tmp_path / "x.json")


def test_an_edited_config_warns_once_and_damaged_files_are_refused(tmp_path):
    for name in ("cfg.json", "weights"):
        (tmp_path / name).write_text("{}")
    checksums = FolderChecksums(tmp_path)
    checksums.record("cfg.json", "weights")
    checksums.write()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FolderChecksums(tmp_path).warn_if_edited("cfg.json")
        FolderChecksums(tmp_path).warn_if_edited("unknown.json")
        FolderChecksums(tmp_path).validate("weights", "")
    for name in ("cfg.json", "weights"):
        (tmp_path / name).write_text("{ }")
    with pytest.warns(UserWarning, match=r"cfg.json was edited after it was written \(checksum mismatch"):
        FolderChecksums(tmp_path).warn_if_edited("cfg.json")
    with pytest.raises(ValueError, match=r"weights: checksum mismatch: the file was corrupted or edited. Get it again"):
        FolderChecksums(tmp_path).validate("weights", "Get it again.")
    (tmp_path / "checksums.json").write_text('{"files": [1]}')
    with pytest.raises(ValueError, match=r"checksums.json: `files` must map file names to SHA-256"):
        FolderChecksums(tmp_path)


def test_a_fingerprint_is_of_names_numbers_shapes_and_dtypes():
    zeros = torch.zeros(2, 3)
    variants = [
        {"a": zeros},
        {"b": zeros},
        {"a": zeros.T},
        {"a": zeros.double()},
        {"a": zeros.index_fill(0, torch.tensor([1]), -0.0)},
        {"a": zeros, "b": zeros},
        {"a": torch.zeros(0)},
    ]
    assert len({named_fingerprint(variant) for variant in variants}) == len(variants)
    assert named_fingerprint({"a": zeros, "b": zeros + 1}) == named_fingerprint({"b": zeros + 1, "a": zeros.clone()})


@dataclasses.dataclass
class Fields:
    n: int
    rate: float
    names: tuple[str, ...] | None
    kind: Literal["a", "b"] = "a"


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("n", "8", "int"),
        ("n", True, "int"),
        ("n", 2**63, "int"),
        ("rate", [1], "float"),
        ("names", ["a", 1], "tuple"),
        ("names", "a", "tuple"),
        ("kind", "c", "Literal"),
        ("kind", ["a"], "Literal"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(field, value, expected):
    right = {"n": 1, "rate": 2, "names": ["a"], "kind": "b"}
    validate_field_types(Fields, right)
    with (
        pytest.raises(ValueError, match=rf"^cfg.json: invalid value: `{field}=.*expected .*{expected}"),
        naming_file("cfg.json"),
    ):
        validate_field_types(Fields, right | {field: value})


def test_our_bugs_look_like_our_bugs():
    with pytest.raises(AttributeError), naming_file("cfg.json"):
        raise AttributeError


def test_listed_names_are_short_and_print():
    text = printable_names(["W_dec", "\x1b[2J", "\u202e", "a\0", "x" * 10_000, *map(str, range(100))])
    assert text.isprintable()
    assert len(text) < 500
    assert text.endswith("and 85 more")


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "../a", "/a", "a\\b", "c:", "a\0", "x" * 101, "\u202ea", "*"])
def test_names_that_lead_out_of_a_folder_are_no_folder_names(name):
    with pytest.raises(ValueError, match="not a folder name: use letters"):
        validate_folder_name(name, "saes")


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret", "a/../../secret"])
def test_checksums_of_files_outside_the_folder_are_refused_and_not_read(tmp_path, name, monkeypatch):
    (tmp_path / "secret").write_text("secret")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "checksums.json").write_text(json.dumps({"files": {name: "0" * 64}}))
    monkeypatch.setattr("sae_lens_crosscoder.storage.checksums.file_sha256", None)  # no file may be read
    with pytest.raises(ValueError, match=r"folder lists checksums of '.*', which is outside it"):
        FolderChecksums(folder)
    with pytest.raises(ValueError, match="which is outside it"):
        validate_checksums(folder, {name: "0" * 64}, "")
