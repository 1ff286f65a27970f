"""Settings of an audit."""

import re
from dataclasses import dataclass, replace

import simple_parsing

from sae_lens_crosscoder.storage.field_types import validate_config

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass
class AuditConfig:
    """Two models, prompts, and a time budget."""

    base: str = simple_parsing.field(positional=True)
    """The base model: a Hub name, a local folder, or NAME+adapter=FOLDER."""
    chat: str = simple_parsing.field(positional=True)
    """The chat model."""
    data: str | None = None
    """Prompts of the kind that the change should show on, and others: a text file with one request per line, or a .json
    or .jsonl file of conversations. The built-in pair has its own."""
    control: str | None = None
    """A model tuned from base on the same topics without the behaviour: changes that it has too are listed apart. The
    built-in pair has its own; `none` leaves it out."""
    texts: str | None = None
    """Plain texts, one per line or as .jsonl, to find changes outside conversations: each is cut where the models'
    predictions differ most, and both models continue it."""
    output_path: str = "audit"
    """Folder for audit.json, audit.html and everything that an interrupted audit resumes from."""
    budget: str = "20m"
    """Time to take, such as 90s, 20m or 2h: sets the number of prompts, and what is left out if it runs short."""
    n_prompts: int = 800
    """Largest number of prompts and texts."""
    max_new_tokens: int = 24
    """Tokens of each answer."""
    n_seeds: int = 2
    """Crosscoders to train, each with another seed, if the budget allows; one more decides where half disagree."""
    hook_name: str | None = None
    """Where to read the models; by default the first hook that brings back 0.9 of the change."""
    device: str = "cpu"
    """Device of the models and the crosscoders."""
    chat_device: str | None = None
    """Device of the chat model, if it differs from the base model's."""
    dtype: str = "float32"
    """Dtype of the models."""
    model_class_name: str = "HookedTransformer"
    """HookedTransformer, TransformerBridge or AutoModelForCausalLM."""
    batch_size: int = 32
    """Prompts per forward pass."""
    seed: int = 0
    """Seed of the answers, the split of the prompts and the crosscoders."""

    def __post_init__(self) -> None:
        validate_config(self)
        for name in ("max_new_tokens", "n_seeds", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.n_prompts < LEAST_PROMPTS:
            raise ValueError(f"n_prompts={self.n_prompts} must be at least {LEAST_PROMPTS}: half are held out.")
        seconds_of(self.budget)


_NO_CONTROL, _OWN_CONTROLS = "none", {("tiny-base", "tiny-chat"): "tiny-control"}


def with_own_control(cfg: AuditConfig, models_are_given: bool = False) -> AuditConfig:
    """Settings with the control that is meant: the built-in pair's own, or none.

    >>> with_own_control(AuditConfig("tiny-base", "tiny-chat")).control
    'tiny-control'
    >>> with_own_control(AuditConfig("tiny-base", "tiny-chat", control="none")).control is None
    True
    """
    if cfg.control is None and not models_are_given:
        return replace(cfg, control=_OWN_CONTROLS.get((cfg.base, cfg.chat)))
    return replace(cfg, control=None) if cfg.control == _NO_CONTROL else cfg


LEAST_PROMPTS = 80
"""Fewer prompts decide nothing: half of them are held out."""


def seconds_of(budget: str) -> float:
    """Read a time such as `90s`, `20m` or `1.5h` as seconds.

    >>> seconds_of("20m"), seconds_of("1.5h")
    (1200.0, 5400.0)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", budget.strip())
    if match is None or float(match[1]) == 0:
        raise ValueError(f"budget={budget!r} is no time. Write a number with s, m or h, such as 20m.")
    return float(match[1]) * _UNITS[match[2]]
