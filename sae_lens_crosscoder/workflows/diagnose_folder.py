"""The command `diagnose`: a crosscoder on its run's data, on data that are named, or from its weights alone."""

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import simple_parsing
from sae_lens.constants import RUNNER_CFG_FILENAME

from sae_lens_crosscoder.analysis.diagnosis.conclusion import FVE_FLOOR
from sae_lens_crosscoder.analysis.diagnosis.diagnose import diagnose
from sae_lens_crosscoder.analysis.diagnosis.diagnosis import Diagnosis
from sae_lens_crosscoder.analysis.weights.diagnose_weights import diagnose_weights
from sae_lens_crosscoder.analysis.weights.result import WeightDiagnosis
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.batchtopk_config import BatchTopKCrosscoderTrainingConfig
from sae_lens_crosscoder.crosscoders.collectives import SINGLE_PROCESS
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, hook_name_of
from sae_lens_crosscoder.loading.formats.foreign import ForeignFormat, ModelOrder
from sae_lens_crosscoder.loading.load import load
from sae_lens_crosscoder.report.pages.weights import write_weights
from sae_lens_crosscoder.stacking import split_hooks
from sae_lens_crosscoder.storage.field_types import validate_config, validate_minimums
from sae_lens_crosscoder.training.data.mix_settings import mix_from
from sae_lens_crosscoder.training.data.run_data import RunData
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig
from sae_lens_crosscoder.training.saved_run import held_out_run

WEIGHTS_PAGE = "weights.html"
_N_ROWS = 256
_OF_LOAD = ("format", "model_order", "theta", "allow_relu", "split_gates", "activation_scales")


@dataclass
class DiagnoseConfig:
    """A crosscoder to diagnose, and the data to diagnose it on."""

    crosscoder: str = simple_parsing.field(positional=True)
    """A crosscoder's folder or weights file in any layout, or a Hub id. One that was trained here is diagnosed on the
    rows that training held out; any other on the data that you name, and without data from its weights alone."""
    weights_only: bool = False
    """Tell what the weights alone tell: no model is loaded."""
    n_held_out_rows: int | None = None
    """Number of contexts, from those that training held out; by default all. Of data that you name, by default 256."""
    null: list[str] = field(default_factory=list)
    """Folders of null runs, for q-values: the same training on a pair of models that do not differ."""
    models: list[str] = field(default_factory=list)
    """Names of two models to compare, of a crosscoder of more; by default every model is compared with the first."""
    fve_floor: float = FVE_FLOOR
    """The conclusion is never "no difference detected" if the FVE of a model is below this."""
    output_path: str | None = None
    """Folder for the tables; by default the crosscoder's, or one of the same name here if it comes from the Hub."""
    model_name: str | None = None
    """The base model, if the file names none or another copy of it."""
    chat_model_name: str | None = None
    """The chat model, likewise."""
    hook_name: str | None = None
    """The hook that the activations were read at, likewise; several are joined by +."""
    dataset_path: str | None = None
    """Data that training never saw: a dataset on the Hub, or a folder."""
    mix: Any = simple_parsing.field(default=None, type=mix_from)
    """Instead of `dataset_path`: JSON of the fields of a DataMix, or a JSON file."""
    context_size: int = 1024
    """Tokens per context of the data that you name."""
    device: str = "cpu"
    """Device of the models and the crosscoder, for data that you name."""
    model_dtype: str = "float32"
    """Precision of the models, for data that you name."""
    model_class_name: str = "HookedTransformer"
    """HookedTransformer, TransformerBridge or AutoModelForCausalLM, for data that you name."""
    format: ForeignFormat | None = None
    """Layout of a published file; by default recognised."""
    model_order: ModelOrder | None = None
    """Order of the two models in a published file: base_chat or chat_base."""
    activation_scales: tuple[float, float] | None = None
    """Factors by which each model's activations were multiplied in training, if the file has none."""
    theta: float | None = None
    """Threshold on scores, for a published file without one."""
    allow_relu: bool = False
    """Read a published file whose threshold is unknown as a ReLU crosscoder."""
    split_gates: bool = False
    """Read latents with a gate per model as one latent per model."""

    def __post_init__(self) -> None:
        validate_config(self)
        validate_minimums(self, n_held_out_rows=1, context_size=1)
        if self.names_data and self.weights_only:
            raise ValueError("weights_only=True needs no data: leave out dataset_path and mix, or weights_only.")
        if self.dataset_path and self.mix is not None:
            raise ValueError(f"Give either a mix or dataset_path={self.dataset_path!r}, not both.")

    @property
    def names_data(self) -> bool:
        """True if data are given, and not those of the crosscoder's run."""
        return bool(self.dataset_path) or self.mix is not None

    @property
    def results(self) -> Path:
        """Folder of the results."""
        path = Path(self.crosscoder)
        if self.output_path is not None:
            return Path(self.output_path)
        if path.is_file():
            return path.parent
        return path if path.exists() else Path(path.name)


@validate_arguments
def run_diagnose(cfg: DiagnoseConfig) -> tuple[WeightDiagnosis | None, Diagnosis | None]:
    """Diagnose a crosscoder, and write what was found into `cfg.results`.

    Returns:
        The diagnosis from the weights alone, None for a crosscoder that is diagnosed on its own run's data; and the one
        on data, None without data.

    Raises:
        ValueError: for a crosscoder that cannot be read, evidence that needs data without data, or data without the
            names of the models and the hook.
    """
    crosscoder = _load(cfg)
    nulls = [Diagnosis.load(folder) for folder in cfg.null]
    options: dict[str, Any] = {"models": cfg.models or None, "null": nulls or None, "fve_floor": cfg.fve_floor}
    of_run = not cfg.weights_only and not cfg.names_data and Path(cfg.crosscoder, RUNNER_CFG_FILENAME).exists()
    if of_run:
        instead = "name data as dataset_path or mix."
        held_out = held_out_run(cfg.crosscoder, cfg.n_held_out_rows, instead)
        crosscoder.to(held_out.cfg.device)
        diagnosis = diagnose(crosscoder, held_out.held_out_data(cfg.n_held_out_rows), **options)
        diagnosis.save(cfg.results)
        return None, diagnosis
    _validate_has_data_for(cfg)
    run = _run_config(cfg, crosscoder) if cfg.names_data else None
    weights = diagnose_weights(crosscoder)
    weights.save(cfg.results)
    write_weights(weights, cfg.results / WEIGHTS_PAGE, f"{Path(cfg.crosscoder).name}: from the weights alone")
    if run is None:
        return weights, None
    data = RunData(run, None, None, SINGLE_PROCESS).held_out_data()
    diagnosis = diagnose(crosscoder.to(cfg.device), data, **options)
    diagnosis.save(cfg.results)
    return weights, diagnosis


def _load(cfg: DiagnoseConfig) -> InferenceCrosscoder:
    """Load the crosscoder with the names that the command gives, which then are not assumed."""
    options = {name: getattr(cfg, name) for name in _OF_LOAD if getattr(cfg, name)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*with assumed settings")  # the page and the command list them
        crosscoder = load(cfg.crosscoder, **options)
    metadata = crosscoder.cfg.metadata
    for name in ("model_name", "chat_model_name", "hook_name"):
        if getattr(cfg, name) is not None:
            setattr(metadata, name, getattr(cfg, name))
    known = {"hook_name": cfg.hook_name, "model_names": cfg.model_name and cfg.chat_model_name}
    told = tuple(f"{name}{rest}" for name, given in known.items() if given for rest in ("=", " is unknown"))
    metadata.assumptions = [line for line in metadata.assumptions or [] if not line.startswith(told)]
    return crosscoder


def _validate_has_data_for(cfg: DiagnoseConfig) -> None:
    given = [name for name in ("null", "models", "n_held_out_rows") if getattr(cfg, name)]
    if given and not cfg.names_data:
        raise ValueError(
            f"{' and '.join(given)} needs data, but {cfg.crosscoder} is diagnosed from its weights alone. Name data as "
            f"dataset_path or mix, or leave {' and '.join(given)} out."
        )


def _run_config(cfg: DiagnoseConfig, crosscoder: InferenceCrosscoder) -> CrosscoderRunnerConfig:
    """The config of a run that would read the models and the data at hand, of which only held-out rows are used."""
    layout = crosscoder.layout
    names = [*crosscoder.model_names]
    flags = ["model_name", "chat_model_name", *(f"model {m}" for m in range(2, len(names)))]
    missing = [flag for flag, name in zip(flags, names, strict=False) if name is None]
    if missing:
        raise ValueError(
            f"{cfg.crosscoder} does not say which models it reads: {' and '.join(missing)} is missing. Pass the names, "
            "or leave the data out to read the weights alone."
        )
    hooks = split_hooks(hook_name_of(crosscoder))
    rows: dict[str, Any] = {} if cfg.mix is None else {"mix": cfg.mix}
    return CrosscoderRunnerConfig(
        sae=BatchTopKCrosscoderTrainingConfig(d_models=layout.d_models, d_sae=crosscoder.cfg.d_sae, k=1),
        model_name=str(names[0]),
        chat_model_name=names[1] if len(names) > 1 else None,
        more_model_names=[str(name) for name in names[2:]] or None,
        hook_name=hooks[0] if len(hooks) == 1 else "+".join(hooks),
        dataset_path=cfg.dataset_path or "",
        context_size=cfg.context_size,
        training_tokens=cfg.context_size,  # nothing is trained
        train_batch_size_tokens=cfg.context_size,
        lr_warm_up_steps=0,
        n_held_out_rows=cfg.n_held_out_rows or _N_ROWS,
        device=cfg.device,
        model_dtype=cfg.model_dtype,
        model_class_name=cfg.model_class_name,
        checkpoint_path=None,
        output_path=None,
        **rows,
    )
