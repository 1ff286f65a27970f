"""The command `convert`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import simple_parsing

from sae_lens_crosscoder.cli.flags import parse
from sae_lens_crosscoder.loading.formats.dictionary_learning_export import save_dictionary_learning
from sae_lens_crosscoder.loading.formats.foreign import ForeignOptions
from sae_lens_crosscoder.loading.load import load


@dataclass(kw_only=True)
class ConvertConfig(ForeignOptions):
    """A crosscoder to convert, and the layout to write."""

    source: str = simple_parsing.field(positional=True)
    """A folder, weights file or Hub id, in any layout that slc.load reads."""
    target: str = simple_parsing.field(positional=True)
    """The folder to write."""
    to: Literal["sae_lens_crosscoder", "dictionary_learning"] = "sae_lens_crosscoder"
    """Layout to write: this package's, or that of the paper's authors."""
    device: str = "cpu"
    """Device that converts."""


def run(args: Sequence[str]) -> None:
    """Convert a published crosscoder to this package's layout, or a crosscoder to the paper authors' layout."""
    cfg = parse(ConvertConfig, args, "convert")
    if Path(cfg.source).resolve() == Path(cfg.target).resolve():
        raise ValueError(f"{cfg.target} is the source as well: name another folder.")
    options = {name: getattr(cfg, name) for name in cfg.given}
    crosscoder = load(cfg.source, device=cfg.device, **options)
    if cfg.to == "dictionary_learning":
        save_dictionary_learning(crosscoder, cfg.target)
    else:
        crosscoder.save_model(cfg.target)
    print(cfg.target)
