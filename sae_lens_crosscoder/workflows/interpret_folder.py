"""Explain the latents of a saved crosscoder by a language model, on the rows that its training held out."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from sae_lens_crosscoder.analysis.diagnosis.diagnosis import Diagnosis
from sae_lens_crosscoder.analysis.examples.collect import collect_examples
from sae_lens_crosscoder.analysis.examples.file import EXAMPLES_FILENAME, ExamplesFile, load_examples
from sae_lens_crosscoder.interpretation.answers import Answers
from sae_lens_crosscoder.interpretation.cases import InterpretationCases, interpretation_cases
from sae_lens_crosscoder.interpretation.clients import OPENAI_URL, Client, EndpointClient, LocalClient
from sae_lens_crosscoder.interpretation.cost import InterpretationCost, about_four_bytes, interpretation_cost
from sae_lens_crosscoder.interpretation.embedding import sentence_embedder
from sae_lens_crosscoder.loading.load import load
from sae_lens_crosscoder.storage.field_types import validate_config, validate_field_types, validate_minimums
from sae_lens_crosscoder.training.saved_run import held_out_run

ANSWERS_FILENAME = "answers.jsonl"


@dataclass(kw_only=True)
class InterpretConfig:
    """Latents to explain, the texts to explain them from, and the model that explains them."""

    crosscoder: str
    """A crosscoder's folder, as train writes it."""
    model: str
    """The model that explains and scores: its name at the endpoint, or a Hub name or folder with `--backend local`."""
    backend: Literal["endpoint", "local"] = "endpoint"
    """Ask an HTTP endpoint, or run the model here."""
    base_url: str = OPENAI_URL
    """URL of an endpoint with OpenAI's chat completions."""
    api_key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the endpoint's key."""
    settings: str | None = None
    """JSON with fields of every request (endpoint) or arguments of `generate` (local); by default the most likely
    answer of at most 1,000 tokens."""
    concurrency: int = 8
    """Requests at a time, or prompts in a batch of a local model."""
    device: str = "cpu"
    """Device of a local model and of the embedder."""
    dtype: str = "float32"
    """Precision of a local model."""
    examples: str | None = None
    """A file of `collect_examples`, written if it does not exist; by default examples.safetensors in the crosscoder's
    folder."""
    latents: list[int] = field(default_factory=list)
    """Latent ids; by default all latents with one of the labels."""
    labels: list[str] = field(default_factory=lambda: ["chat_only", "base_only"])
    """Labels of the latents to explain."""
    n_shown: int = 5
    """Contexts to explain from, of each third by activation."""
    n_scored: int = 5
    """Contexts to score on, of each third."""
    texts_per_prompt: int = 5
    """Texts judged in one answer."""
    n_windows: int = 5000
    """Windows of text to choose negatives from."""
    embedder: str = "all-MiniLM-L6-v2"
    """A sentence-transformers model that finds hard negatives, or `words`, which needs no model."""
    n_held_out_rows: int | None = None
    """Number of contexts, from those that training held out; by default all."""
    seed: int = 0
    """Seed of samples."""
    answers: str | None = None
    """File that records answers and is read before asking; by default answers.jsonl in the crosscoder's folder."""
    recorded_only: bool = False
    """Ask nothing, and fail if an answer is not recorded."""
    dry_run: bool = False
    """Print the cost, and ask nothing."""
    prompt_price: float | None = None
    """Price of a million prompt tokens."""
    answer_price: float | None = None
    """Price of a million answer tokens."""
    tokens_per_answer: int = 100
    """Expected length of an answer; models that reason first write many times as much."""
    tokenizer: str | None = None
    """Hub name or folder of a tokenizer that counts tokens for the cost; by default four bytes are one token."""

    def __post_init__(self) -> None:
        validate_config(self)
        validate_field_types(type(self), {"backend": self.backend})
        validate_minimums(self, concurrency=1, n_shown=1, n_scored=1, texts_per_prompt=1, n_windows=1)
        validate_minimums(self, n_held_out_rows=1, tokens_per_answer=1, prompt_price=0, answer_price=0)


def prepare_interpretation(cfg: InterpretConfig) -> tuple[InterpretationCases, Answers, InterpretationCost]:
    """Collect the texts of the latents and estimate the cost; asks nothing."""
    folder = Path(cfg.crosscoder)
    crosscoder = load(cfg.crosscoder)
    latents = _latents(cfg)
    embed = sentence_embedder(cfg.embedder, cfg.device)
    answers = Answers(cfg.answers or folder / ANSWERS_FILENAME, _client(cfg), recorded_only=cfg.recorded_only)
    instead = "use slc.interpretation.interpret with a pair and tokens of your own."
    held_out = held_out_run(cfg.crosscoder, cfg.n_held_out_rows, instead)
    crosscoder.to(held_out.cfg.device)
    data = replace(held_out.held_out_data(cfg.n_held_out_rows), tokenizer=held_out.tokenizer)
    path = Path(cfg.examples or folder / EXAMPLES_FILENAME)
    examples: ExamplesFile = load_examples(path) if path.exists() else collect_examples(crosscoder, data, path)
    sizes: dict[str, Any] = {
        "n_shown": cfg.n_shown,
        "n_scored": cfg.n_scored,
        "n_windows": cfg.n_windows,
        "seed": cfg.seed,
    }
    cases = interpretation_cases(crosscoder, data, examples, latents, embed, **sizes)
    cost = interpretation_cost(
        cases,
        answers,
        price_per_million_prompt_tokens=math.nan if cfg.prompt_price is None else cfg.prompt_price,
        price_per_million_answer_tokens=math.nan if cfg.answer_price is None else cfg.answer_price,
        tokens_per_answer=cfg.tokens_per_answer,
        count_tokens=_token_counter(cfg.tokenizer),
        texts_per_prompt=cfg.texts_per_prompt,
    )
    return cases, answers, cost


def _latents(cfg: InterpretConfig) -> list[int]:
    if cfg.latents:
        return cfg.latents
    table = Diagnosis.load(cfg.crosscoder).latents
    latent_ids: list[int] = table.index[table.label.isin(cfg.labels) & ~table.dead].tolist()
    if not latent_ids:
        raise ValueError(f"No live latent has one of the labels {cfg.labels}: choose from {sorted(set(table.label))}.")
    return latent_ids


def _client(cfg: InterpretConfig) -> Client:
    settings: dict[str, Any] = {}
    if cfg.settings is not None:
        try:
            settings = {"settings": json.loads(cfg.settings)}
        except ValueError as error:
            raise ValueError(f'settings={cfg.settings!r} is not valid JSON: write it like {{"seed": 1}}.') from error
    if cfg.backend == "local":
        return LocalClient(cfg.model, batch_size=cfg.concurrency, device=cfg.device, dtype=cfg.dtype, **settings)
    endpoint: dict[str, Any] = {
        "base_url": cfg.base_url,
        "api_key_variable": cfg.api_key_variable,
        "concurrency": cfg.concurrency,
    }
    return EndpointClient(cfg.model, **endpoint, **settings)


def _token_counter(name: str | None) -> Callable[[str], int]:
    if name is None:
        return about_four_bytes
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(name)
    return lambda text: len(tokenizer(text).input_ids)
