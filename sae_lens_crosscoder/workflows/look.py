"""The command `look`: load two models, take a first look, and write its tables and page."""

from dataclasses import dataclass
from pathlib import Path

import simple_parsing

from sae_lens_crosscoder.activations.dominant_tokens import MAX_NORM_RATIO
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.causal.localisation.first_look import FirstLook
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.report.pages.first_look import write_first_look
from sae_lens_crosscoder.storage.field_types import validate_config, validate_minimums
from sae_lens_crosscoder.workflows.first_look import first_look
from sae_lens_crosscoder.workflows.given_prompts import given_prompts

PAGE_FILENAME = "first_look.html"


@dataclass
class LookConfig:
    """Two models, and the prompts to look at them on."""

    base: str = simple_parsing.field(positional=True)
    """The base model: a Hub name, a local folder, or NAME+adapter=FOLDER."""
    chat: str = simple_parsing.field(positional=True)
    """The chat model."""
    prompts: str | None = None
    """A text file with one user request per line, or a .json or .jsonl file of conversations: some on which the models
    should differ, and some on which they should not. The built-in pair has its own prompts."""
    output_path: str = "look"
    """Folder for the tables and first_look.html."""
    n_prompts: int = 200
    """Largest number of prompts to use, from the first."""
    every: int | None = None
    """Look at each n-th block; by default at all, or at about 32 of a deeper model."""
    max_norm_ratio: float | None = MAX_NORM_RATIO
    """Tokens with a norm above this many times the median are left out of sizes and components; None keeps them."""
    batch_size: int = 8
    """Prompts per forward pass."""
    device: str = "cpu"
    """Device of the models."""
    chat_device: str | None = None
    """Device of the chat model, if it differs from the base model's."""
    dtype: str = "float32"
    """Dtype of the models."""
    model_class_name: str = "HookedTransformer"
    """HookedTransformer, TransformerBridge or AutoModelForCausalLM."""
    seed: int = 0
    """Seed of the intervals and the built-in prompts."""

    def __post_init__(self) -> None:
        validate_config(self)
        validate_minimums(self, n_prompts=1, every=1, batch_size=1)


@validate_arguments
def run_look(cfg: LookConfig) -> FirstLook:
    """Take a first look at two models, and write its tables and `first_look.html` into `output_path`.

    Raises:
        ValueError: without prompts, but for the built-in pair.
    """
    if cfg.n_prompts < 1:
        raise ValueError(f"n_prompts={cfg.n_prompts} must be at least 1: it is the number of prompts to use.")
    prompts = given_prompts(cfg.prompts, (cfg.base, cfg.chat), "prompts", 96, cfg.seed)[: cfg.n_prompts]
    pair = HookedModelPair.from_pretrained(
        cfg.base,
        cfg.chat,
        device=cfg.device,
        chat_device=cfg.chat_device,
        dtype=cfg.dtype,
        model_class_name=cfg.model_class_name,
    )
    look = first_look(
        pair, prompts, every=cfg.every, max_norm_ratio=cfg.max_norm_ratio, batch_size=cfg.batch_size, seed=cfg.seed
    )
    look.save(cfg.output_path)
    write_first_look(look, Path(cfg.output_path, PAGE_FILENAME), f"First look: {cfg.base} and {cfg.chat}")
    return look
