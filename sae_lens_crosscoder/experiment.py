"""The paper's causal experiment on saved crosscoders: prompts, the chat model's answers, effects, one page."""

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import simple_parsing
from sae_lens.constants import SAE_CFG_FILENAME

from sae_lens_crosscoder.analysis.table import read_latents
from sae_lens_crosscoder.causal.effects import causal_effects
from sae_lens_crosscoder.causal.generation import Responses, generate_responses
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.loading.load import load
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.models.tiny import TINY_MODELS, dialogues
from sae_lens_crosscoder.report import write_effects

EFFECTS_FILENAME = "effects.json"
PAGE_FILENAME = "effects.html"
COLUMNS = ("crosscoder", "setup", "variant", "window", "kl_nats", "ci_low", "ci_high", "n_tokens", "n_conversations")


@dataclass
class CausalConfig:
    """Whose latents to patch, and on which conversations."""

    crosscoder: str = simple_parsing.field(default="demo")
    """A diagnosed crosscoder's folder, or a folder of several of one pair, such as the demo writes."""
    output_path: str = "causal"
    """Folder for effects.json and effects.html."""
    prompts: str | None = None
    """A text file with a user's request in every line, held out from training; the chat model answers them. The
    built-in pair has its own."""
    n_conversations: int = 600
    """How many prompts are used at most, the first ones."""
    max_new_tokens: int = 32
    """Where an answer that does not end is cut off."""
    pool_size: int | None = None
    """How many of the most chat-leaning latents are halved; by default the paper's share of all."""
    batch_size: int = 32
    """Conversations at a time."""
    device: str = "cpu"
    dtype: str = "float32"
    model_class_name: str = "HookedTransformer"
    """HookedTransformer or TransformerBridge."""
    seed: int = 0
    """Of random controls, intervals and the built-in prompts."""


def run_causal(cfg: CausalConfig) -> pd.DataFrame:
    """Run `causal_effects` for every crosscoder, on the same answers, and write effects.json and effects.html.

    Returns:
        What effects.json holds: a row per crosscoder, setup, variant and window, with the mean KL per token in nats and
        its 95 % interval over conversations.
    """
    output_path = Path(cfg.output_path)
    folders = crosscoder_folders(cfg.crosscoder)
    crosscoders = {name: load(folder, device=cfg.device) for name, folder in folders.items()}
    latents = {name: read_latents(folder) for name, folder in folders.items()}
    requests = requests_of(cfg, next(iter(crosscoders.values())))
    output_path.mkdir(parents=True, exist_ok=True)  # fails now rather than after the experiment
    pair = _pair_of(cfg, crosscoders)
    messages = [[{"role": "user", "content": request}] for request in requests]
    said = generate_responses(pair, messages, max_new_tokens=cfg.max_new_tokens, batch_size=cfg.batch_size)
    effects = {name: _effects(cfg, pair, crosscoders[name], latents[name], said) for name in crosscoders}
    table = pd.concat(effects, names=["crosscoder"]).reset_index(level=0)
    table = table.rename(columns={"kl_nats_low": "ci_low", "kl_nats_high": "ci_high"})[list(COLUMNS)]
    rows = json.loads(table.to_json(orient="records", double_precision=15))  # nan becomes null
    (output_path / EFFECTS_FILENAME).write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    write_effects(output_path / PAGE_FILENAME, effects)
    return table


def crosscoder_folders(path: str | Path) -> dict[str, Path]:
    """The crosscoder folder that `path` is, or those that it holds, by name."""
    path = Path(path)
    if (path / SAE_CFG_FILENAME).exists():
        return {path.resolve().name: path}
    folders = {inner.parent.name: inner.parent for inner in sorted(path.glob(f"*/{SAE_CFG_FILENAME}"), reverse=True)}
    if not folders:
        raise ValueError(
            f"{path} is no crosscoder folder and holds none: it has no {SAE_CFG_FILENAME}. Give a folder that `train` "
            "or `demo` wrote."
        )
    return folders


def requests_of(cfg: CausalConfig, crosscoder: InferenceCrosscoder) -> list[str]:
    """Different requests, of which none was trained on."""
    if cfg.prompts is not None:
        lines = Path(cfg.prompts).read_text(encoding="utf-8").splitlines()
        requests = [line for line in lines if line.strip()]
    elif crosscoder.cfg.metadata.chat_model_name in TINY_MODELS:
        requests = [messages[0]["content"] for messages in dialogues(2 * cfg.n_conversations, cfg.seed, "held_out")]
    else:
        raise ValueError(
            f"prompts must name a file of requests to {crosscoder.cfg.metadata.chat_model_name}, one in every line: "
            "only the built-in pair has requests of its own."
        )
    requests = list(dict.fromkeys(requests))[: cfg.n_conversations]
    if len(requests) < 2:
        raise ValueError(f"{len(requests)} different requests are too few for an interval: give at least 2.")
    return requests


def _pair_of(cfg: CausalConfig, crosscoders: dict[str, InferenceCrosscoder]) -> HookedModelPair:
    metadatas = [crosscoder.cfg.metadata for crosscoder in crosscoders.values()]
    names = {(metadata.model_name, metadata.chat_model_name) for metadata in metadatas}
    base, chat = names.pop()
    if names or base is None or chat is None:
        raise ValueError(
            f"{cfg.crosscoder} must hold crosscoders of one pair of models that they name, not of "
            f"{[(base, chat), *names]}: give the folder of one of them."
        )
    options = {"device": cfg.device, "dtype": cfg.dtype, "model_class_name": cfg.model_class_name}
    return HookedModelPair.from_pretrained(base, chat, **options)


def _effects(
    cfg: CausalConfig, pair: HookedModelPair, crosscoder: InferenceCrosscoder, latents: pd.DataFrame, said: Responses
) -> pd.DataFrame:
    return causal_effects(
        pair,
        crosscoder,
        said.tokens,
        said.response,
        latents,
        template=said.template,
        pool_size=cfg.pool_size,
        seed=cfg.seed,
        batch_size=cfg.batch_size,
    )
