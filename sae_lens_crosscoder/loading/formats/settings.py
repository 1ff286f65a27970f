"""Config files beside published weights, read flat, with a record of the keys that a reader used."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from sae_lens_crosscoder.storage.json_files import load_json, parse_json

SETTINGS_NAMES = ("config.json", "trainer_config.json", "cfg.json", "hparams.json", "lm_config.json", "model_cfg.yaml")
_MAX_YAML_BYTES = 2**20
# Keys whose text says how latents are selected, unlike names of runs, models and folders.
_KIND_OF_LATENTS = re.compile(r"arch|activation|act_fn|class|type|nonlinearity|sparsity")
_SELECTIONS = ("topk", "jumprelu", "groupmax")


class Settings:
    """The keys of all config files beside a weights file; it remembers which were read.

    Nested keys are joined with dots, without the `trainer` that the paper's authors put around theirs.

    >>> settings = Settings({"k": 8, "trainer": {"layer": 13}, "activation_fn": {"classname": "TopkActivation"}})
    >>> settings.get("layer"), settings.selection(), settings.unread()
    (13, 'activation_fn.classname=TopkActivation', ['k'])
    """

    def __init__(
        self, values: Mapping[str, Any] | None = None, conflicts: Iterable[str] = (), path: Path | None = None
    ) -> None:
        self._path = path
        self._values = _flat(values or {})
        self._read: set[str] = set()
        self.conflicts = list(conflicts)
        """Sentences about keys to which two config files give different values."""

    @classmethod
    def beside(cls, path: Path) -> "Settings":
        """Read the config files beside a weights file, or in its folder."""
        folder = path if path.is_dir() else path.parent
        values: dict[str, Any] = {}
        origin: dict[str, str] = {}
        conflicts: list[str] = []
        for name in (*SETTINGS_NAMES, f"{path.stem}_cfg.json"):
            if not (folder / name).exists():
                continue
            for key, value in _flat(_load(folder / name)).items():
                if key in values and values[key] != value:
                    conflicts.append(
                        f"{origin[key]} and {name} disagree on {key!r:.80}, {values[key]!r:.80} and {value!r:.80}: the "
                        "latter is used"
                    )
                values[key], origin[key] = value, name
        return cls(values, conflicts, path)

    def add(self, values: Mapping[str, Any]) -> None:
        """Add settings that a weights file holds."""
        self._values |= values

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, which then counts as read."""
        self._read.add(key)
        return self._values.get(key, default)

    def text(self, key: str) -> str | None:
        """The printable text of a key; None without it.

        Raises:
            ValueError: for a value that is no such text.
        """
        value = self._unless_an_object(key)
        if value is not None and not (isinstance(value, str) and value.isprintable() and 0 < len(value) < 200):
            raise ValueError(f"The config beside {self._path} has {key}={value!r:.80}, expected a short text.")
        return value

    def texts(self, key: str) -> tuple[str, ...] | None:
        """The printable texts of a key that is a list; None without it.

        Raises:
            ValueError: for a value that is no list of such texts.
        """
        value = self._unless_an_object(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(part, str) and part.isprintable() for part in value):
            raise ValueError(f"The config beside {self._path} has {key}={value!r:.80}, expected a list of names.")
        return tuple(value)

    def _unless_an_object(self, key: str) -> Any:
        """The value of a key; a ValueError if it holds further keys, which would be taken for other settings."""
        if any(name.startswith(f"{key}.") for name in self._values):
            raise ValueError(f"The config beside {self._path} has an object as {key}, expected a name or names.")
        return self.get(key)

    def unread(self) -> list[str]:
        """The keys that no reader has asked for."""
        return [key for key in self._values if key not in self._read]

    def selection(self) -> str | None:
        """The entry that says that latents are selected by TopK, BatchTopK or JumpReLU; None if there is none."""
        for key, value in self._values.items():
            if _KIND_OF_LATENTS.search(key.lower()) and isinstance(value, str):
                plain = re.sub(r"[^a-z]", "", value.lower())
                if any(name in plain for name in _SELECTIONS):
                    self._read.add(key)
                    return f"{key}={value:.80}"
        return None


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, prefix if key == "trainer" else f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _load(path: Path) -> dict[str, Any]:
    if path.suffix == ".json":
        return load_json(path)
    if path.stat().st_size > _MAX_YAML_BYTES:
        raise ValueError(f"{path} is too large for a config: more than {_MAX_YAML_BYTES} bytes.")
    try:
        text = path.read_text(encoding="utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise ValueError("it repeats parts of itself with aliases")
        return parse_json(json.dumps(yaml.safe_load(text)))
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a plain YAML config: {error!s:.200}") from error
