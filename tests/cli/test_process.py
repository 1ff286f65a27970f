"""Laws of a command's process: it keeps freed memory, its threads sleep, and the user's own settings win."""

import os

import pytest

from sae_lens_crosscoder.cli import process


class Libc:
    def __init__(self, refuses=()):
        self.options = {}
        self.refuses = refuses

    def mallopt(self, option, value):
        if value in self.refuses:
            return 0
        self.options[option] = value
        return 1


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    names = [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_", "OMP_WAIT", "GOMP_"))]
    for name in [*names, "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"]:
        monkeypatch.setenv(name, "")  # so that what a test sets is undone
        monkeypatch.delenv(name)


@pytest.fixture
def libc(monkeypatch):
    libc = Libc()
    monkeypatch.setattr(process.ctypes, "CDLL", lambda name: libc)
    monkeypatch.setattr(process.sys, "platform", "linux")
    return libc


def test_blocks_below_256_mib_and_the_heap_are_kept(libc):
    process.tune_process()
    assert libc.options == {-3: 2**28, -1: 2**31 - 1}


def test_an_old_glibc_keeps_what_it_can(libc):
    libc.refuses = (2**28,)
    process.tune_process()
    assert libc.options[-3] == 2**25


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_the_users_allocator_settings_win(libc, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    process.tune_process()
    assert not libc.options


def test_a_system_without_mallopt_is_left_alone(monkeypatch):
    monkeypatch.setattr(process.ctypes, "CDLL", lambda name: object())
    process.tune_process()


def test_threads_spin_briefly_unless_the_user_decides(libc, monkeypatch):
    process.tune_process()
    assert os.environ["GOMP_SPINCOUNT"] == "10000"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    process.tune_process()
    assert "GOMP_SPINCOUNT" not in os.environ
