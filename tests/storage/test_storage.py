"""What was written is told from what was not, and nothing of a stranger's file acts on whoever reads about it."""

import json

import pytest
import torch

from sae_lens_crosscoder.storage.checksums import blaming, load_sealed, named_fingerprint, seal
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


def test_a_seal_survives_json_and_notices_everything_but_order(tmp_path):
    fields = {"a": (1, 2), "b": {"c": 0.1, "d": None}, "e": "\u202e"}
    path = tmp_path / "x.json"
    path.write_text(json.dumps(seal(fields), indent=3))
    sealed = json.loads(path.read_text())
    assert load_sealed(path) == json.loads(json.dumps(fields))
    path.write_text(json.dumps(dict(reversed(sealed.items()))))
    assert load_sealed(path)["a"] == [1, 2]
    for changed in ({"a": [1, 3]}, {"a": [1, 2.0]}, {"f": None}, {"sha256": None}, {"b": {"c": 0.1}}):
        path.write_text(json.dumps(sealed | changed))
        with pytest.raises(ValueError, match=r"x.json is not what was written .* delete its entry 'sha256'"):
            load_sealed(path)
    del sealed["sha256"]
    path.write_text(json.dumps(sealed | {"a": 5}))
    assert load_sealed(path)["a"] == 5  # edited on purpose


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


@pytest.mark.parametrize(
    "error", [KeyError("x"), TypeError("x"), RecursionError("x"), OverflowError("x"), ValueError("x")]
)
def test_blame_names_the_file_and_keeps_the_cause(tmp_path, error):
    with (
        pytest.raises(ValueError, match=r"cfg.json holds what it cannot hold\..*x") as caught,
        blaming(tmp_path / "cfg.json"),
    ):
        raise error
    assert caught.value.__cause__ is error


def test_interrupts_are_nobodys_fault(tmp_path):
    with pytest.raises(KeyboardInterrupt), blaming(tmp_path):
        raise KeyboardInterrupt


def test_listed_names_are_short_and_print():
    text = printable_names(["W_dec", "\x1b[2J", "\u202e", "a\0", "x" * 10_000, *map(str, range(100))])
    assert text.isprintable()
    assert len(text) < 500
    assert text.endswith("and 85 more")


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "../a", "/a", "a\\b", "c:", "a\0", "x" * 101, "\u202ea", "*"])
def test_names_that_lead_out_of_a_folder_are_no_folder_names(name):
    with pytest.raises(ValueError, match="not a folder name: use letters"):
        validate_folder_name(name, "saes")
