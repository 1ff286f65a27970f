"""`interpret`: latents explained by a language model, and the explanations scored."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sae_lens_crosscoder.analysis.examples.collect import collect_examples
from sae_lens_crosscoder.analysis.examples.file import EXAMPLES_FILENAME, ExamplesFile, read_examples
from sae_lens_crosscoder.analysis.tables.latents_file import read_latents, write_interpretations
from sae_lens_crosscoder.cli.flags import parse
from sae_lens_crosscoder.interpretation.answers import Answers
from sae_lens_crosscoder.interpretation.cases import interpretation_cases
from sae_lens_crosscoder.interpretation.clients import OPENAI_URL, Client, EndpointClient
from sae_lens_crosscoder.interpretation.cost import about_four_bytes, interpretation_cost
from sae_lens_crosscoder.interpretation.embedding import sentence_embedder
from sae_lens_crosscoder.interpretation.interpret import interpret
from sae_lens_crosscoder.interpretation.local_client import LocalClient
from sae_lens_crosscoder.loading.load import load
from sae_lens_crosscoder.training.saved_run import held_out_run

ANSWERS_FILENAME = "answers.jsonl"


@dataclass(kw_only=True)
class InterpretConfig:
    """Which latents to explain, from what, and by which model."""

    crosscoder: str
    """A crosscoder folder that `train` wrote."""
    model: str
    """The model that explains and scores: its name at the endpoint, or a Hub name or folder with `--backend local`."""
    backend: Literal["endpoint", "local"] = "endpoint"
    """Whether the model is behind an endpoint or runs here."""
    base_url: str = OPENAI_URL
    """Of any endpoint that speaks OpenAI's chat completions."""
    api_key_variable: str = "OPENAI_API_KEY"
    """The environment variable that holds the endpoint's key."""
    settings: str | None = None
    """Fields of every request (endpoint) or arguments of `generate` (local), as JSON; by default the most likely
    answer of at most 1,000 tokens."""
    concurrency: int = 8
    """Requests at a time, or prompts in a batch of a local model."""
    device: str = "cpu"
    """Of a local model and of the embedder."""
    dtype: str = "float32"
    """Of a local model."""
    examples: str | None = None
    """A file of `collect_examples`, made if there is none; by default examples.safetensors in the crosscoder's
    folder."""
    latents: list[int] = field(default_factory=list)
    """Which latents; by default those whose class is one of `labels`."""
    labels: list[str] = field(default_factory=lambda: ["chat_only", "base_only"])
    n_shown: int = 5
    """Contexts to explain from, of each third by activation."""
    n_scored: int = 5
    """Contexts to score on, of each third."""
    texts_per_prompt: int = 5
    """Texts judged in one answer."""
    n_windows: int = 5000
    """Windows of text that negatives are chosen from."""
    embedder: str = "all-MiniLM-L6-v2"
    """By which hard negatives are found: a sentence-transformers model, or `words`, which needs none."""
    n_held_out_rows: int | None = None
    """Contexts to take texts from, of those that training held out; by default all of them."""
    seed: int = 0
    answers: str | None = None
    """Where answers are kept and looked up; by default answers.jsonl in the crosscoder's folder."""
    recorded_only: bool = False
    """Ask nothing, and fail if an answer is not recorded."""
    dry_run: bool = False
    """Say what it would cost, and ask nothing."""
    prompt_price: float = float("nan")
    """Per million tokens of prompts."""
    answer_price: float = float("nan")
    """Per million tokens of answers."""
    tokens_per_answer: int = 100
    """To reckon with; models that think first write many times as much."""
    tokenizer: str | None = None
    """A Hub name or folder, whose tokenizer counts tokens for the estimate; by default four bytes are a token."""


def run(args: Sequence[str]) -> None:
    """Explain latents by a language model and score the explanations; --dry-run says what that would cost."""
    cfg = parse(InterpretConfig, args, "interpret")
    folder = Path(cfg.crosscoder)
    crosscoder = load(cfg.crosscoder)
    latents = _latents(cfg)
    embed = sentence_embedder(cfg.embedder, cfg.device)
    answers = Answers(cfg.answers or folder / ANSWERS_FILENAME, _client(cfg), recorded_only=cfg.recorded_only)
    instead = "use slc.interpret with a pair and tokens of your own."
    held_out = held_out_run(cfg.crosscoder, cfg.n_held_out_rows, instead)
    crosscoder.to(held_out.cfg.device)
    data: dict[str, Any] = {"pair": None, "tokens": None, **held_out.held_out_data(cfg.n_held_out_rows)}
    data["tokenizer"] = held_out.tokenizer
    path = Path(cfg.examples or folder / EXAMPLES_FILENAME)
    examples: ExamplesFile = read_examples(path) if path.exists() else collect_examples(crosscoder, path=path, **data)
    sizes: dict[str, Any] = {
        "n_shown": cfg.n_shown,
        "n_scored": cfg.n_scored,
        "n_windows": cfg.n_windows,
        "seed": cfg.seed,
    }
    cases = interpretation_cases(crosscoder, examples=examples, latents=latents, embed=embed, **data, **sizes)
    cost = interpretation_cost(
        cases,
        answers,
        price_per_million_prompt_tokens=cfg.prompt_price,
        price_per_million_answer_tokens=cfg.answer_price,
        tokens_per_answer=cfg.tokens_per_answer,
        count_tokens=_token_counter(cfg.tokenizer),
        texts_per_prompt=cfg.texts_per_prompt,
    )
    print(f"{len(latents):,} latents: {cost}")
    if not cfg.dry_run:
        table = interpret(cases, answers, texts_per_prompt=cfg.texts_per_prompt)
        medians = table[["detection_random", "detection_hard", "fuzzing"]].median()
        print(f"{table.n_unparsable.sum():,} answers could not be read. Medians:\n{medians.round(3).to_string()}")
        print(write_interpretations(table, folder))


def _latents(cfg: InterpretConfig) -> list[int]:
    if cfg.latents:
        return cfg.latents
    table = read_latents(cfg.crosscoder)
    found: list[int] = table.index[table.label.isin(cfg.labels) & ~table.dead].tolist()
    if not found:
        raise ValueError(f"No live latent has one of the labels {cfg.labels}: there are {sorted(set(table.label))}.")
    return found


def _client(cfg: InterpretConfig) -> Client:
    given: dict[str, Any] = {}
    if cfg.settings is not None:
        try:
            given = {"settings": json.loads(cfg.settings)}
        except ValueError as error:
            raise ValueError(f'settings={cfg.settings!r} is not JSON: write it like {{"seed": 1}}.') from error
    if cfg.backend == "local":
        return LocalClient(cfg.model, batch_size=cfg.concurrency, device=cfg.device, dtype=cfg.dtype, **given)
    endpoint: dict[str, Any] = {
        "base_url": cfg.base_url,
        "api_key_variable": cfg.api_key_variable,
        "concurrency": cfg.concurrency,
    }
    return EndpointClient(cfg.model, **endpoint, **given)


def _token_counter(name: str | None) -> Callable[[str], int]:
    if name is None:
        return about_four_bytes
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(name)
    return lambda text: len(tokenizer(text).input_ids)
