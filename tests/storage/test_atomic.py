"""A file has its name only once it is complete, and a failed write leaves the one before it."""

import threading
from functools import partial

import pytest
import torch

from sae_lens_crosscoder.storage.atomic import (
    atomic_folder,
    atomic_path,
    atomic_write,
    replace_folder,
    replacing_files,
    write_text_atomically,
)
from sae_lens_crosscoder.storage.locks import only_writer
from sae_lens_crosscoder.storage.tensor_files import load_tensors, save_tensors
from tests.killing import in_child, killed_at


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


def test_a_second_writer_of_a_file_waits_for_the_first(tmp_path):
    path, second_is_done = tmp_path / "a.txt", threading.Event()

    def write_second():
        write_text_atomically("2" * 5, path)
        second_is_done.set()

    with atomic_write(path) as file:
        file.write(b"1")
        file.flush()
        second = threading.Thread(target=write_second)
        second.start()
        assert not second_is_done.wait(0.2)
        file.write(b"1" * 9)
    second.join(10)
    assert path.read_text() == "2" * 5
    assert list(tmp_path.iterdir()) == [path]


def test_a_temporary_file_of_a_process_that_died_is_begun_anew(tmp_path):
    (tmp_path / "a.txt.partial").write_text("left by a longer text")
    write_text_atomically("short", tmp_path / "a.txt")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.txt": "short"}


def test_a_folder_is_written_whole_or_the_one_before_stays(tmp_path):
    def write(name, error=None):
        with atomic_folder(tmp_path / "folder") as partial:
            (partial / name).write_text(name)
            if error is not None:
                raise error

    write("old")
    with pytest.raises(OSError, match="full"):
        write("new", OSError("full"))
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["folder", "folder/old"]
    write("new")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["folder", "folder/new"]


def test_files_that_belong_together_are_replaced_in_their_order_and_others_stay(tmp_path):
    """Killed at any change of files, a later file is new only if the earlier ones are."""
    names = ("first", "second", "third")

    def write(text, folder):
        with replacing_files(folder, names.index) as partial:
            for name in reversed(names):
                (partial / name).write_text(text)

    n, seen = 0, set()
    while True:
        folder = tmp_path / str(n)
        write("old", folder)
        (folder / "other").write_text("other")
        was_killed = killed_at(n, folder, partial(write, "new", folder))
        texts = [(folder / name).read_text() for name in names]
        assert texts == sorted(texts)  # "new" before "old"
        seen.add(texts.count("new"))
        write("again", folder)
        assert {path.name: path.read_text() for path in folder.iterdir()} == {
            **dict.fromkeys(names, "again"),
            "other": "other",
        }
        if not was_killed:
            break
        n += 1
    assert seen == {0, 1, 2, 3}


def test_a_folder_that_another_run_writes_to_is_refused(tmp_path):
    with only_writer(tmp_path / "a" / "b", "Wait."):
        refused = in_child(lambda: only_writer(tmp_path / "a" / "b", "Wait.").__enter__())
        with pytest.raises(ValueError, match=r"Another run writes to '.*b' now. Wait."):
            only_writer(tmp_path / "a" / "b", "Wait.").__enter__()
    assert refused == 1
    with only_writer(tmp_path / "a" / "b", "Wait."):
        pass


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
