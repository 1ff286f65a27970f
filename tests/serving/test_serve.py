"""Laws of the command: what it needs, where it listens, and that Ctrl-C ends it."""

import importlib
import os
import re
import signal
import socket
import threading
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from sae_lens_crosscoder.serving import ServeConfig, serve

command = importlib.import_module("sae_lens_crosscoder.serving.serve")


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    with pytest.raises(ValueError, match=r"^serve needs uvicorn\. Run: pip install 'sae-lens-crosscoder\[serve\]'$"):
        serve(ServeConfig("anything"))


def test_a_port_in_use_and_an_unknown_host_are_refused_before_any_work():
    with socket.create_server(("127.0.0.1", 0)) as used, pytest.raises(ValueError, match=r"Cannot listen on host="):
        serve(ServeConfig("no folder", port=used.getsockname()[1]))
    with pytest.raises(ValueError, match="Cannot listen on host='no such host'"):
        serve(ServeConfig("no folder", host="no such host", port=0))


def test_a_folder_that_training_did_not_write_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a crosscoder folder and contains none"):
        serve(ServeConfig(str(tmp_path), port=0))


@pytest.mark.parametrize("time", [1, 2])
def test_the_page_is_at_the_address_that_is_told_until_ctrl_c(models, monkeypatch, time):
    told, shown = [], []

    def visit():
        try:
            shown.append(urlopen(told[-1], timeout=30).read().decode())
            urlopen(told[-1].replace("token=", "token=x"), timeout=30)
        except HTTPError as error:
            shown.append(error.code)
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    def announce(address):
        told.append(address)
        threading.Thread(target=visit).start()

    def of_a_training(*args):
        raise RuntimeError("SAELens's own exception")

    monkeypatch.setattr(command, "prepare", lambda cfg: (models, "the page"))
    before = signal.signal(signal.SIGINT, of_a_training)
    try:
        serve(ServeConfig("folder", port=0), announce=announce)
        assert signal.getsignal(signal.SIGINT) is of_a_training
    finally:
        signal.signal(signal.SIGINT, before)
    assert shown == ["the page", 401]
    (token,) = re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=([\w-]{32})", told[0]).groups()
    assert token not in TOKENS  # made anew
    TOKENS.add(token)


TOKENS: set[str] = set()
