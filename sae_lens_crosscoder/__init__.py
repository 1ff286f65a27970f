"""Crosscoders for SAELens and TransformerLens: find what fine-tuning changed inside a language model.

Importing registers the architectures with SAELens and does nothing else. The command line imports the heavy parts
itself, once it knows that a command needs them.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any


def _is_command() -> bool:
    if sys.argv[:1] == ["-m"]:  # Python is still looking for the module that -m names
        return "sae_lens_crosscoder" in sys.orig_argv[sys.orig_argv.index("-m") :][1:2]
    return os.path.basename(sys.argv[0] if sys.argv else "").removesuffix(".exe") == "sae-lens-crosscoder"


if TYPE_CHECKING or not _is_command():
    from sae_lens_crosscoder.public import *  # noqa: F403
    from sae_lens_crosscoder.public import __all__ as __all__
    from sae_lens_crosscoder.public import convert as convert
    from sae_lens_crosscoder.public import paper as paper
else:

    def __getattr__(name: str) -> Any:
        return getattr(importlib.import_module("sae_lens_crosscoder.public"), name)
