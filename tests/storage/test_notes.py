"""Lines about a run are no errors in a notebook."""

import sys
import types

from sae_lens_crosscoder.storage.notes import write_note


def test_lines_go_to_stderr_and_in_a_notebook_to_stdout(capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    write_note("one")
    assert capsys.readouterr() == ("", "one\n")
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    write_note("two")
    assert capsys.readouterr() == ("two\n", "")
