"""`report`: the explorer of a crosscoder's latents, or of several crosscoders'."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import simple_parsing

from sae_lens_crosscoder.analysis.examples.file import EXAMPLES_FILENAME, ExamplesFile, read_examples
from sae_lens_crosscoder.analysis.tables.latents_file import LATENTS_FILENAME, read_latents
from sae_lens_crosscoder.causal import Responses, generate_responses
from sae_lens_crosscoder.cli.flags import parse
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.loading.load import load
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.models.tiny import CONCEPTS, TINY_MODELS, matched_prompts
from sae_lens_crosscoder.report import Exploration, write_explorer, write_neuronpedia
from sae_lens_crosscoder.report.export.neuronpedia import slug
from sae_lens_crosscoder.training.saved_run import held_out_run, require_runner_config
from sae_lens_crosscoder.workflows.causal_experiment import CausalConfig, conversations_of, crosscoder_folders
from sae_lens_crosscoder.workflows.explore import explore

_INSTEAD = "use slc.explore with a pair and tokens of your own, and slc.write_explorer."


@dataclass
class ReportConfig:
    """Whose latents to show, and on what to look at them."""

    crosscoder: str = simple_parsing.field(default="demo")
    """A crosscoder's folder, or a folder of several, such as the demo writes. Its latents.parquet and
    examples.safetensors (of all held-out rows) are used if it has them."""
    output_path: str = "explorer.html"
    """The file to write."""
    neuronpedia: str | None = None
    """A new folder, to which the latents are written as well, as Neuronpedia imports them."""
    n_held_out_rows: int | None = None
    """Contexts to look at, from those that training held out; by default all of them."""
    prompts: str | None = None
    """A text file with a user's request in every line: on the chat model's answers, causal effects are measured. The
    built-in pair has its own."""
    n_conversations: int = 48
    """How many prompts are used at most, the first ones; 0 measures no causal effects."""
    max_new_tokens: int = 32
    """Where an answer that does not end is cut off."""
    seed: int = 0
    """Of samples, and of the built-in prompts."""


def run(args: Sequence[str]) -> None:
    """Make the explorer: one HTML file with everything about every latent, on the rows that training held out."""
    cfg = parse(ReportConfig, args, "report")
    folders = crosscoder_folders(cfg.crosscoder)
    for folder in folders.values():
        require_runner_config(str(folder), _INSTEAD)
    if cfg.neuronpedia is not None and Path(cfg.neuronpedia).exists():
        raise ValueError(f"neuronpedia={cfg.neuronpedia!r} is there already: give a folder to be made.")
    Path(cfg.output_path).parent.mkdir(parents=True, exist_ok=True)  # fails now rather than after the work
    explorations = {name: _explored(cfg, name, folder) for name, folder in folders.items()}
    print(write_explorer(cfg.output_path, explorations))
    if cfg.neuronpedia is not None:  # which may refuse a name, and then the explorer is there
        for name, exploration in explorations.items():
            print(write_neuronpedia(cfg.neuronpedia, exploration, slug(f"crosscoder-{name}")))


def _explored(cfg: ReportConfig, name: str, folder: Path) -> Exploration:
    print(f"{name}: looking at its latents on held-out rows", flush=True)
    held_out = held_out_run(str(folder), cfg.n_held_out_rows, _INSTEAD)
    crosscoder = load(str(folder)).to(held_out.cfg.device)
    if held_out.reads_cache:
        print("Its activations come from a cache, so nothing is shown that takes the models: logit lens, KL, effects.")
    is_tiny = held_out.cfg.chat_model_name in TINY_MODELS and not held_out.reads_cache
    contrasts = {concept: matched_prompts(concept, n_pairs=256, seed=cfg.seed) for concept in CONCEPTS if is_tiny}
    return explore(
        crosscoder,
        **held_out.held_out_data(cfg.n_held_out_rows),
        tokenizer=held_out.tokenizer,
        latents=read_latents(folder) if (folder / LATENTS_FILENAME).exists() else None,
        examples=_examples(cfg, folder),
        contrasts=contrasts,
        responses=_responses(cfg, crosscoder, held_out.pair) if is_tiny or cfg.prompts is not None else None,
        seed=cfg.seed,
    )


def _examples(cfg: ReportConfig, folder: Path) -> ExamplesFile | None:
    path = folder / EXAMPLES_FILENAME
    return read_examples(path) if path.exists() and cfg.n_held_out_rows is None else None


def _responses(cfg: ReportConfig, crosscoder: InferenceCrosscoder, pair: HookedModelPair) -> Responses | None:
    if cfg.n_conversations == 0:
        return None
    asked = CausalConfig(prompts=cfg.prompts, n_conversations=cfg.n_conversations, seed=cfg.seed)
    return generate_responses(pair, conversations_of(asked, crosscoder), max_new_tokens=cfg.max_new_tokens)
