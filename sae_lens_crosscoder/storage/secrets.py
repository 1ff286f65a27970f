"""Keys of Hugging Face, W&B or OpenAI stay in the environment: never in saved configs, logs or messages."""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

_VARIABLES = re.compile(r"(^|_)(API_KEY|TOKEN|SECRET|PASSWORD)$")
_FIELDS = re.compile(r"(.*api_?key|((use_)?auth_|access_|hf_)?token|.*secret|.*password)", re.IGNORECASE)
_KEY_PATTERN = re.compile(r"\b(hf_|sk-)[A-Za-z0-9_-]{16,}")
_MIN_KEY_LENGTH = 8  # a shorter value is more likely a word than a key


def redact_secrets(text: str) -> str:
    """Replace every key in the environment, and everything that looks like a key, with ***.

    >>> redact_secrets("401 for hf_abcdefghijklmnopqrstuvwx")
    '401 for ***'
    """
    for name, value in os.environ.items():
        if _VARIABLES.search(name) and len(value) >= _MIN_KEY_LENGTH:
            text = text.replace(value, "***")
    return _KEY_PATTERN.sub("***", text)


def validate_no_secrets(config: Mapping[str, Any]) -> None:
    """Raise a ValueError naming the config field that contains a key, without repeating the key.

    >>> validate_no_secrets({"model_from_pretrained_kwargs": {"token": "my key"}})
    Traceback (most recent call last):
    ValueError: model_from_pretrained_kwargs.token contains a key, but configs are saved and logged: set HF_TOKEN ...
    """
    for name, text in _texts(config, ""):
        if _FIELDS.fullmatch(name.rpartition(".")[2]) or redact_secrets(text) != text:
            raise ValueError(
                f"{redact_secrets(name)} contains a key, but configs are saved and logged: set HF_TOKEN or "
                "WANDB_API_KEY instead, or log in with `hf auth login` or `wandb login`."
            )


def _texts(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield every string in nested configs with its dotted name."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _texts(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part, name)
