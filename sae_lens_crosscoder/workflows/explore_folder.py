"""Gather what the explorer shows of saved crosscoders, on the rows that their training held out."""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import simple_parsing

from sae_lens_crosscoder.analysis.diagnosis.diagnosis import LATENTS_FILENAME
from sae_lens_crosscoder.analysis.examples.file import EXAMPLES_FILENAME, ExamplesFile, load_examples
from sae_lens_crosscoder.analysis.use.result import USE_FILENAME, LatentUse
from sae_lens_crosscoder.causal import Responses, generate_responses
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.data.tiny_contrasts import tiny_contrasts
from sae_lens_crosscoder.loading.load import load
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.models.tiny import TINY_MODELS
from sae_lens_crosscoder.report import Exploration
from sae_lens_crosscoder.storage.field_types import validate_config, validate_minimums
from sae_lens_crosscoder.training.saved_run import held_out_run, validate_has_runner_config
from sae_lens_crosscoder.workflows.causal_experiment import CausalConfig, load_conversations
from sae_lens_crosscoder.workflows.explore import explore
from sae_lens_crosscoder.workflows.saved_crosscoders import crosscoder_folders, load_diagnosis

logger = logging.getLogger(__name__)

_INSTEAD = "use slc.explore with a pair and tokens of your own, and slc.write_explorer."


@dataclass
class ReportConfig:
    """Crosscoders to show, and the data to show them on."""

    crosscoder: str = simple_parsing.field(default="demo")
    """A crosscoder's folder, or a folder of several, such as the demo writes. Its latents.parquet, latent_use.parquet
    and examples.safetensors (of all held-out rows) are used if it has them."""
    output_path: str = "explorer.html"
    """The file to write."""
    models: list[str] = field(default_factory=list)
    """Names of two models to show, of crosscoders of more, as in their diagnosis: such as model_0 model_2."""
    neuronpedia: str | None = None
    """A new folder for the same latents in the format that Neuronpedia imports."""
    n_held_out_rows: int | None = None
    """Number of contexts, from those that training held out; by default all."""
    prompts: str | None = None
    """A text file with one user request per line. Causal effects are measured on the chat model's answers to them. The
    built-in pair has its own prompts."""
    n_conversations: int = 48
    """Largest number of prompts to use, from the first; 0 measures no causal effects."""
    max_new_tokens: int = 32
    """Longest answer, in tokens."""
    seed: int = 0
    """Seed of samples and of the built-in prompts."""

    def __post_init__(self) -> None:
        validate_config(self)
        validate_minimums(self, n_held_out_rows=1, n_conversations=0, max_new_tokens=1)


def validate_report_folders(cfg: ReportConfig) -> dict[str, Path]:
    """Find the crosscoder folders by name, and check before any work that the pages can be written."""
    folders = crosscoder_folders(cfg.crosscoder)
    for folder in folders.values():
        validate_has_runner_config(str(folder), _INSTEAD)
    if cfg.neuronpedia is not None and Path(cfg.neuronpedia).exists():
        raise ValueError(f"neuronpedia={cfg.neuronpedia!r} already exists: name a new folder.")
    Path(cfg.output_path).parent.mkdir(parents=True, exist_ok=True)
    return folders


def explore_folder(cfg: ReportConfig, folder: Path) -> Exploration:
    """Explore one saved crosscoder on the rows that its training held out."""
    held_out = held_out_run(str(folder), cfg.n_held_out_rows, _INSTEAD)
    crosscoder = load(str(folder)).to(held_out.cfg.device)
    if held_out.reads_cache:
        logger.warning("Cached activations: the explorer omits logit lens, KL and effects, which need the models.")
    is_tiny = held_out.cfg.chat_model_name in TINY_MODELS and not held_out.reads_cache
    contrasts = tiny_contrasts(n_pairs=256, seed=cfg.seed) if is_tiny else []
    return explore(
        crosscoder,
        replace(held_out.held_out_data(cfg.n_held_out_rows), tokenizer=held_out.tokenizer),
        diagnosis=load_diagnosis(folder, cfg.models) if cfg.models or (folder / LATENTS_FILENAME).exists() else None,
        examples=_examples(cfg, folder),
        use=LatentUse.load(folder) if (folder / USE_FILENAME).exists() else None,
        contrasts=contrasts,
        responses=_responses(cfg, crosscoder, held_out.pair) if is_tiny or cfg.prompts is not None else None,
        seed=cfg.seed,
    )


def _examples(cfg: ReportConfig, folder: Path) -> ExamplesFile | None:
    path = folder / EXAMPLES_FILENAME
    return load_examples(path) if path.exists() and cfg.n_held_out_rows is None else None


def _responses(cfg: ReportConfig, crosscoder: InferenceCrosscoder, pair: HookedModelPair) -> Responses | None:
    if cfg.n_conversations == 0:
        return None
    asked = CausalConfig(prompts=cfg.prompts, n_conversations=cfg.n_conversations, seed=cfg.seed)
    pair = pair.of(*cfg.models) if cfg.models else pair
    return generate_responses(pair, load_conversations(asked, crosscoder), max_new_tokens=cfg.max_new_tokens)
