"""Keys of Hugging Face, W&B or OpenAI stay in the environment: out of configs on disk, logs and messages."""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

_VARIABLES = re.compile(r"(^|_)(API_KEY|TOKEN|SECRET|PASSWORD)$")
_FIELDS = re.compile(r"(.*api_?key|((use_)?auth_|access_|hf_)?token|.*secret|.*password)", re.IGNORECASE)
_LOOKS_LIKE_ONE = re.compile(r"\b(hf_|sk-)[A-Za-z0-9_-]{16,}")
_SHORTEST = 8  # a shorter value is more likely a word than a key


def without_keys(text: str) -> str:
    """The text with *** for every key that the environment holds, and whatever else looks like one.

    >>> without_keys("401 for hf_abcdefghijklmnopqrstuvwx")
    '401 for ***'
    """
    for name, value in os.environ.items():
        if _VARIABLES.search(name) and len(value) >= _SHORTEST:
            text = text.replace(value, "***")
    return _LOOKS_LIKE_ONE.sub("***", text)


def refuse_keys(config: Mapping[str, Any]) -> None:
    """Raise a ValueError that names the field of a config, which will be saved, that holds a key; never the key.

    >>> refuse_keys({"model_from_pretrained_kwargs": {"token": "my key"}})
    Traceback (most recent call last):
    ValueError: model_from_pretrained_kwargs.token holds a key, and configs are saved and logged: set HF_TOKEN ...
    """
    for name, text in _texts(config, ""):
        if _FIELDS.fullmatch(name.rpartition(".")[2]) or without_keys(text) != text:
            raise ValueError(
                f"{without_keys(name)} holds a key, and configs are saved and logged: set HF_TOKEN or WANDB_API_KEY "
                "instead, or log in with `hf auth login` or `wandb login`."
            )


def _texts(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Every text in nested configs, with the dotted name of where it is."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _texts(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part, name)
