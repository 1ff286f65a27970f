"""Run the paper's causal experiment on saved crosscoders and write its tables and page."""

import json
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import simple_parsing

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.causal import Responses, causal_effects, generate_responses, given_responses
from sae_lens_crosscoder.causal.experiment.unfinished import UnfinishedRun
from sae_lens_crosscoder.causal.forward.responses import Messages
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.data.prompts import load_prompts
from sae_lens_crosscoder.loading.load import load
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.models.tiny import TINY_MODELS, dialogues
from sae_lens_crosscoder.report import write_effects
from sae_lens_crosscoder.storage.atomic import write_text_atomically
from sae_lens_crosscoder.storage.checksums import fingerprint
from sae_lens_crosscoder.storage.field_types import validate_config, validate_field_types, validate_minimums
from sae_lens_crosscoder.workflows.saved_crosscoders import crosscoder_folders, load_diagnosis, load_pair

EFFECTS_FILENAME = "effects.json"
PAGE_FILENAME = "effects.html"
UNFINISHED_FOLDER = "unfinished"
COLUMNS = ("crosscoder", "setup", "variant", "window", "kl_nats", "ci_low", "ci_high", "n_tokens", "n_conversations")


@dataclass
class CausalConfig:
    """Crosscoders whose latents to patch, and the conversations to patch them on."""

    crosscoder: str = simple_parsing.field(default="demo")
    """A diagnosed crosscoder's folder, or a folder of several of one pair, such as the demo writes."""
    output_path: str = "causal"
    """Folder for effects.json and effects.html. An unfinished run keeps its checkpoints there too."""
    models: list[str] = field(default_factory=list)
    """Names of two models to compare, of crosscoders of more, as in their diagnosis: such as model_0 model_2."""
    prompts: str | None = None
    """A text file with one user request per line, held out from training, or a .json or .jsonl file of conversations:
    lists of messages with `role` and `content`, or objects with such `messages`. The built-in pair has its own
    prompts."""
    answers: Literal["generated", "given"] = "generated"
    """`generated`: the chat model answers the last request; `given`: the conversations' own answers are scored."""
    n_conversations: int = 600
    """Largest number of prompts to use, from the first."""
    max_new_tokens: int = 32
    """Longest answer, in tokens."""
    pool_size: int | None = None
    """Number of the most chat-leaning latents to split into halves; by default the paper's share of all."""
    batch_size: int = 32
    """Conversations per forward pass."""
    device: str = "cpu"
    """Device of the models and the crosscoder."""
    chat_device: str | None = None
    """Device of the chat model, if it differs from the base model's."""
    dtype: str = "float32"
    """Dtype of the models."""
    model_name: str | None = None
    """The base model, if it has moved since training."""
    chat_model_name: str | None = None
    """The chat model, if it has moved since training."""
    model_class_name: str | None = None
    """HookedTransformer or TransformerBridge; by default as in training."""
    seed: int = 0
    """Seed of random controls, intervals and the built-in prompts."""

    def __post_init__(self) -> None:
        validate_config(self)
        validate_field_types(type(self), {"answers": self.answers})
        validate_minimums(self, n_conversations=1, max_new_tokens=1, pool_size=1, batch_size=1)


@validate_arguments
def run_causal(cfg: CausalConfig) -> pd.DataFrame:
    """Run `causal_effects` for every crosscoder, on the same answers, and write effects.json and effects.html.

    An interrupted run resumes when it is started again with the same config.

    Returns:
        The rows of effects.json: one per crosscoder, setup, variant and window, with the mean KL per token in nats and
        its 95 % interval over conversations. The file's `contrasts` are those of `CausalEffects`.
    """
    output_path = Path(cfg.output_path)
    folders = crosscoder_folders(cfg.crosscoder)
    crosscoders = {name: load(folder, device=cfg.device) for name, folder in folders.items()}
    latents = {name: load_diagnosis(folder, cfg.models).latents for name, folder in folders.items()}
    conversations = load_conversations(cfg, next(iter(crosscoders.values())))
    output_path.mkdir(parents=True, exist_ok=True)  # fails before the experiment
    models = {"model_name": cfg.model_name, "chat_model_name": cfg.chat_model_name}
    devices = {"device": cfg.device, "chat_device": cfg.chat_device, "dtype": cfg.dtype}
    pair = load_pair(crosscoders, cfg.crosscoder, **models, **devices, model_class_name=cfg.model_class_name)
    weights = {name: fingerprint(crosscoder.state_dict().values()) for name, crosscoder in crosscoders.items()}
    latent_tables = {name: table.to_json() for name, table in latents.items()}
    run = UnfinishedRun(output_path / UNFINISHED_FOLDER, [asdict(cfg), conversations, weights, latent_tables])
    compared = pair.of(*cfg.models) if cfg.models else pair
    responses = run.responses(lambda: _responses(cfg, compared, conversations))
    tables = {
        name: run.tables(
            name, partial(_effects, cfg, crosscoder, pair, responses, latents[name], run.folder / f"{name}.sums")
        )
        for name, crosscoder in crosscoders.items()
    }
    effects, contrasts = ({name: table[kind] for name, table in tables.items()} for kind in ("effects", "contrasts"))
    rows = _joined(effects).rename(columns={"kl_nats_low": "ci_low", "kl_nats_high": "ci_high"})[list(COLUMNS)]
    document = {"rows": _records(rows), "contrasts": _records(_joined(contrasts))}
    write_text_atomically(json.dumps(document, indent=1) + "\n", output_path / EFFECTS_FILENAME)
    write_effects(effects, output_path / PAGE_FILENAME, contrasts)
    run.remove()
    return rows


def load_conversations(cfg: CausalConfig, crosscoder: InferenceCrosscoder) -> list[Messages]:
    """Load distinct held-out conversations. They end with a request unless answers are given."""
    if cfg.prompts is not None:
        conversations: list[Any] = load_prompts(cfg.prompts)
    elif crosscoder.cfg.metadata.chat_model_name in TINY_MODELS:
        conversations = dialogues(2 * cfg.n_conversations, cfg.seed, "held_out")
        if cfg.answers == "generated":
            conversations = [messages[:1] for messages in conversations]
    else:
        raise ValueError(
            f"`prompts` is missing: pass a file of requests to {crosscoder.cfg.metadata.chat_model_name}, one per "
            "line. Only the built-in pair has prompts of its own."
        )
    if cfg.answers == "generated":
        conversations = [messages[: _n_until_last_request(messages)] for messages in conversations]
    distinct = {json.dumps(messages): messages for messages in conversations if messages}
    chosen = list(distinct.values())[: cfg.n_conversations]
    if len(chosen) < 2:
        raise ValueError(f"Found {len(chosen)} distinct requests, too few for an interval: pass at least 2.")
    return chosen


def _n_until_last_request(messages: Messages) -> int:
    """Count the messages up to the user's last one."""
    return max((i + 1 for i, message in enumerate(messages) if message["role"] == "user"), default=0)


def _responses(cfg: CausalConfig, pair: HookedModelPair, conversations: list[Messages]) -> Responses:
    if cfg.answers == "given":
        return given_responses(pair, conversations)
    return generate_responses(pair, conversations, max_new_tokens=cfg.max_new_tokens, batch_size=cfg.batch_size)


def _effects(
    cfg: CausalConfig,
    crosscoder: InferenceCrosscoder,
    pair: HookedModelPair,
    responses: Responses,
    latents: pd.DataFrame,
    checkpoint_path: Path,
) -> dict[str, pd.DataFrame]:
    """Run `causal_effects`, and return its tables."""
    result = causal_effects(
        crosscoder,
        pair,
        responses,
        latents,
        models=cfg.models or None,
        pool_size=cfg.pool_size,
        seed=cfg.seed,
        batch_size=cfg.batch_size,
        checkpoint_path=checkpoint_path,
    )
    return {"effects": result.table, "contrasts": result.contrasts}


def _joined(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([table.assign(crosscoder=name) for name, table in tables.items()], ignore_index=True)


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return json.loads(table.to_json(orient="records", double_precision=15))  # nan becomes null
