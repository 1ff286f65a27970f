"""The command `diagnose`."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import simple_parsing

from sae_lens_crosscoder.analysis.diagnosis.conclusion import FVE_FLOOR
from sae_lens_crosscoder.analysis.diagnosis.diagnose import diagnose
from sae_lens_crosscoder.analysis.diagnosis.diagnosis import Diagnosis
from sae_lens_crosscoder.cli.flags import parse
from sae_lens_crosscoder.loading.load import load
from sae_lens_crosscoder.storage.field_types import validate_config, validate_minimums
from sae_lens_crosscoder.training.saved_run import held_out_run


@dataclass
class DiagnoseConfig:
    """A crosscoder to diagnose, and the data to diagnose it on."""

    crosscoder: str = simple_parsing.field(positional=True)
    """A crosscoder's folder, or a Hub id."""
    n_held_out_rows: int | None = None
    """Number of contexts, from those that training held out; by default all."""
    null: list[str] = field(default_factory=list)
    """Folders of null runs, for q-values: the same training on a pair of models that do not differ."""
    models: list[str] = field(default_factory=list)
    """Names of two models to compare, of a crosscoder of more; by default every model is compared with the first."""
    fve_floor: float = FVE_FLOOR
    """The conclusion is never "no difference detected" if the FVE of a model is below this."""
    output_path: str | None = None
    """Folder for latents.parquet; by default the crosscoder's."""

    def __post_init__(self) -> None:
        validate_config(self)
        validate_minimums(self, n_held_out_rows=1)


def run(args: Sequence[str]) -> None:
    """Diagnose a trained crosscoder again, on the rows that its training held out."""
    cfg = parse(DiagnoseConfig, args, "diagnose")
    crosscoder = load(cfg.crosscoder)
    nulls = [Diagnosis.load(folder) for folder in cfg.null]
    instead = "use slc.diagnose with data of your own."
    held_out = held_out_run(cfg.crosscoder, cfg.n_held_out_rows, instead)
    crosscoder.to(held_out.cfg.device)
    data, models = held_out.held_out_data(cfg.n_held_out_rows), cfg.models or None
    diagnosis = diagnose(crosscoder, data, models=models, null=nulls or None, fve_floor=cfg.fve_floor)
    print(diagnosis.conclusion)
    print(diagnosis.save(cfg.output_path or cfg.crosscoder))
