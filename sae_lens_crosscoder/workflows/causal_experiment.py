"""The paper's causal experiment on saved crosscoders: prompts, the chat model's answers, effects, one page."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import simple_parsing
from sae_lens.constants import SAE_CFG_FILENAME

from sae_lens_crosscoder.analysis.diagnosis.diagnosis import Diagnosis
from sae_lens_crosscoder.causal import Responses, causal_effects, generate_responses, given_responses
from sae_lens_crosscoder.causal.experiment.unfinished import UnfinishedRun
from sae_lens_crosscoder.causal.forward.responses import Messages
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.loading.load import load
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.models.tiny import TINY_MODELS, dialogues
from sae_lens_crosscoder.report import write_effects
from sae_lens_crosscoder.storage.checksums import fingerprint

EFFECTS_FILENAME = "effects.json"
PAGE_FILENAME = "effects.html"
UNFINISHED_FOLDER = "unfinished"
COLUMNS = ("crosscoder", "setup", "variant", "window", "kl_nats", "ci_low", "ci_high", "n_tokens", "n_conversations")


@dataclass
class CausalConfig:
    """Whose latents to patch, and on which conversations."""

    crosscoder: str = simple_parsing.field(default="demo")
    """A diagnosed crosscoder's folder, or a folder of several of one pair, such as the demo writes."""
    output_path: str = "causal"
    """Folder for effects.json and effects.html, and, until these are written, for what an interrupted run has done."""
    prompts: str | None = None
    """A text file with a user's request in every line, held out from training, or a .jsonl file with a conversation in
    every line: a list of messages with `role` and `content`, or an object with such `messages`. The built-in pair has
    its own."""
    answers: Literal["generated", "given"] = "generated"
    """`generated`: the chat model answers the last request; `given`: the conversations' own answers are scored."""
    n_conversations: int = 600
    """How many prompts are used at most, the first ones."""
    max_new_tokens: int = 32
    """Where an answer that does not end is cut off."""
    pool_size: int | None = None
    """How many of the most chat-leaning latents are halved; by default the paper's share of all."""
    batch_size: int = 32
    """Conversations at a time."""
    device: str = "cpu"
    chat_device: str | None = None
    """The chat model's device, when it is not the base model's."""
    dtype: str = "float32"
    model_name: str | None = None
    """Where the base model is, when not where it was when the crosscoder was trained."""
    chat_model_name: str | None = None
    model_class_name: str | None = None
    """HookedTransformer or TransformerBridge; by default as in training."""
    seed: int = 0
    """Of random controls, intervals and the built-in prompts."""


def run_causal(cfg: CausalConfig) -> pd.DataFrame:
    """Run `causal_effects` for every crosscoder, on the same answers, and write effects.json and effects.html.

    An interrupted run goes on where it was when it is started again with the same config.

    Returns:
        What effects.json holds: a row per crosscoder, setup, variant and window, with the mean KL per token in nats and
        its 95 % interval over conversations. The file's `contrasts` are those of `CausalEffects`.
    """
    output_path = Path(cfg.output_path)
    folders = crosscoder_folders(cfg.crosscoder)
    crosscoders = {name: load(folder, device=cfg.device) for name, folder in folders.items()}
    latents = {name: Diagnosis.load(folder).latents for name, folder in folders.items()}
    conversations = conversations_of(cfg, next(iter(crosscoders.values())))
    output_path.mkdir(parents=True, exist_ok=True)  # fails now rather than after the experiment
    models = {"model_name": cfg.model_name, "chat_model_name": cfg.chat_model_name}
    devices = {"device": cfg.device, "chat_device": cfg.chat_device, "dtype": cfg.dtype}
    pair = pair_of(crosscoders, cfg.crosscoder, **models, **devices, model_class_name=cfg.model_class_name)
    weights = {name: fingerprint(crosscoder.state_dict().values()) for name, crosscoder in crosscoders.items()}
    latent_tables = {name: table.to_json() for name, table in latents.items()}
    run = UnfinishedRun(output_path / UNFINISHED_FOLDER, [asdict(cfg), conversations, weights, latent_tables])
    responses = run.responses(lambda: _responses(cfg, pair, conversations))
    tables = {
        name: run.tables(
            name, partial(_effects, cfg, crosscoder, pair, responses, latents[name], run.folder / f"{name}.sums")
        )
        for name, crosscoder in crosscoders.items()
    }
    effects, contrasts = ({name: table[kind] for name, table in tables.items()} for kind in ("effects", "contrasts"))
    rows = _joined(effects).rename(columns={"kl_nats_low": "ci_low", "kl_nats_high": "ci_high"})[list(COLUMNS)]
    document = {"rows": _records(rows), "contrasts": _records(_joined(contrasts))}
    (output_path / EFFECTS_FILENAME).write_text(json.dumps(document, indent=1) + "\n")
    write_effects(effects, output_path / PAGE_FILENAME, contrasts)
    run.remove()
    return rows


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


def conversations_of(cfg: CausalConfig, crosscoder: InferenceCrosscoder) -> list[Messages]:
    """Different conversations, of which none was trained on, that end with a request unless answers are given."""
    if cfg.prompts is not None:
        found = _read_conversations(Path(cfg.prompts))
    elif crosscoder.cfg.metadata.chat_model_name in TINY_MODELS:
        found = dialogues(2 * cfg.n_conversations, cfg.seed, "held_out")
        if cfg.answers == "generated":
            found = [messages[:1] for messages in found]
    else:
        raise ValueError(
            f"prompts must name a file of requests to {crosscoder.cfg.metadata.chat_model_name}, one in every line: "
            "only the built-in pair has requests of its own."
        )
    if cfg.answers == "generated":
        found = [messages[: _n_asked(messages)] for messages in found]
    different = {json.dumps(messages): messages for messages in found if messages}
    chosen = list(different.values())[: cfg.n_conversations]
    if len(chosen) < 2:
        raise ValueError(f"{len(chosen)} different requests are too few for an interval: give at least 2.")
    return chosen


def _read_conversations(path: Path) -> list[Messages]:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if path.suffix != ".jsonl":
        return [[{"role": "user", "content": line}] for line in lines]
    parsed: list[Any] = [json.loads(line) for line in lines]
    return [line["messages"] if isinstance(line, dict) else line for line in parsed]


def _n_asked(messages: Messages) -> int:
    """How many messages there are up to the last one of the user's."""
    return max((i + 1 for i, message in enumerate(messages) if message["role"] == "user"), default=0)


def _responses(cfg: CausalConfig, pair: HookedModelPair, conversations: list[Messages]) -> Responses:
    if cfg.answers == "given":
        return given_responses(pair, conversations)
    return generate_responses(pair, conversations, max_new_tokens=cfg.max_new_tokens, batch_size=cfg.batch_size)


def pair_of(
    crosscoders: Mapping[str, InferenceCrosscoder],
    folder: str,
    model_name: str | None = None,
    chat_model_name: str | None = None,
    model_class_name: str | None = None,
    **options: Any,
) -> HookedModelPair:
    """The pair that all crosscoders of a folder are of, from where it was in training or from where it is said to be.

    Args:
        folder: of the crosscoders, for error messages.
        model_class_name: by default as in training.
        options: as for `HookedModelPair.from_pretrained`.
    """
    metadatas: list[Any] = [crosscoder.cfg.metadata for crosscoder in crosscoders.values()]
    names = {(metadata.model_name, metadata.chat_model_name) for metadata in metadatas}
    base, chat = names.pop()
    if names or base is None or chat is None:
        raise ValueError(
            f"{folder} must hold crosscoders of one pair of models that they name, not of "
            f"{[(base, chat), *names]}: give the folder of one of them."
        )
    where = (model_name or base, chat_model_name or chat)
    for name in where:
        if Path(name).is_absolute() and not Path(name).is_dir():
            raise ValueError(
                f"The crosscoder was trained on the models {base} and {chat}, but there is no folder {name} here: say "
                "with model_name and chat_model_name where they are."
            )
    pair = HookedModelPair.from_pretrained(
        *where,
        model_class_name=model_class_name or metadatas[0].model_class_name or "HookedTransformer",
        token_replacements=metadatas[0].token_replacements,
        **options,
    )
    pair.model_names = (base, chat)  # wherever they are now
    return pair


def _effects(
    cfg: CausalConfig,
    crosscoder: InferenceCrosscoder,
    pair: HookedModelPair,
    responses: Responses,
    latents: pd.DataFrame,
    checkpoint_path: Path,
) -> dict[str, pd.DataFrame]:
    """The tables of `causal_effects`."""
    result = causal_effects(
        crosscoder,
        pair,
        responses,
        latents,
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
