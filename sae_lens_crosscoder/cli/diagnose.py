"""`diagnose`: the verdict on every latent of a trained crosscoder, again."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import simple_parsing

from sae_lens_crosscoder.analysis.diagnosis.diagnose import diagnose
from sae_lens_crosscoder.analysis.tables.latents_file import read_latents, write_latents
from sae_lens_crosscoder.cli.flags import parse
from sae_lens_crosscoder.loading.load import load
from sae_lens_crosscoder.training.saved_run import held_out_run


@dataclass
class DiagnoseConfig:
    """Which crosscoder to diagnose, and on what."""

    crosscoder: str = simple_parsing.field(positional=True)
    """A crosscoder folder or Hub id."""
    n_held_out_rows: int | None = None
    """Contexts to diagnose on, from those that training held out; by default all of them."""
    null: list[str] = field(default_factory=list)
    """Folders of null runs: the same training on a pair in which nothing differs. They give q-values."""
    output_path: str | None = None
    """Where latents.parquet goes; by default the crosscoder's own folder."""


def run(args: Sequence[str]) -> None:
    """Diagnose a trained crosscoder again, on the rows that its training held out."""
    cfg = parse(DiagnoseConfig, args, "diagnose")
    crosscoder = load(cfg.crosscoder)
    nulls = [read_latents(folder) for folder in cfg.null]
    instead = "use slc.diagnose with a pair and tokens of your own."
    held_out = held_out_run(cfg.crosscoder, cfg.n_held_out_rows, instead)
    crosscoder.to(held_out.cfg.device)
    table = diagnose(crosscoder, **held_out.held_out_data(cfg.n_held_out_rows), null=nulls)
    print(table.attrs["conclusion"])
    print(write_latents(table, cfg.output_path or cfg.crosscoder))
