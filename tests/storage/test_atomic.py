"""A file has its name only once it is complete, and a failed write leaves the one before it."""

import pytest
import torch

from sae_lens_crosscoder.storage.atomic import atomic_path, atomic_write, replace_folder, write_text_atomically
from sae_lens_crosscoder.storage.tensor_files import load_tensors, save_tensors


def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "a.bin"
    with atomic_write(path) as file:
        file.write(b"12")
        assert not path.exists()
    assert path.read_bytes() == b"12"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failed_write_keeps_the_file_before_it_and_leaves_no_scraps(tmp_path, error):
    path = tmp_path / "a.txt"
    write_text_atomically("before", path)
    with pytest.raises(error), atomic_path(path) as partial:
        raise error(partial.write_text("half"))
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_takes_the_place_of_another(tmp_path):
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["old", "old/new"]


def test_tensors_and_metadata_survive(tmp_path):
    save_tensors({"a": torch.arange(3)}, tmp_path / "x", {"b": "c"})
    tensors, metadata = load_tensors(tmp_path / "x")
    assert tensors["a"].tolist() == [0, 1, 2]
    assert metadata == {"b": "c"}
