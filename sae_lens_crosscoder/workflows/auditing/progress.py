"""Stages of an audit: what each took, what is left of the budget, and what an earlier run in the folder did."""

import json
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sae_lens_crosscoder.storage.atomic import write_text_atomically
from sae_lens_crosscoder.storage.json_files import load_json
from sae_lens_crosscoder.workflows.auditing.config import AuditConfig, seconds_of

PLAN_FILENAME = "plan.json"
_FREE = ("output_path", "budget", "device", "chat_device")
"""Settings that may change when an audit is resumed."""


class Progress:
    """Times stages against the budget.

    Raises:
        ValueError: for a folder with an audit of other settings.
    """

    def __init__(self, cfg: AuditConfig, say: Callable[[str], None]) -> None:
        self.folder, self.say = Path(cfg.output_path), say
        self.folder.mkdir(parents=True, exist_ok=True)
        self._started, self._budget = time.monotonic(), seconds_of(cfg.budget)
        self.seconds: dict[str, float] = {}
        self.n_prompts: int | None = None
        self.slowest_effect = 0.0
        settings = {name: value for name, value in asdict(cfg).items() if name not in _FREE}
        path = self.folder / PLAN_FILENAME
        if path.exists():
            earlier = load_json(path)
            if differing := [name for name, value in settings.items() if earlier["settings"].get(name) != value]:
                raise ValueError(
                    f"{self.folder} has an audit with other settings: {', '.join(differing)}. Pass another "
                    "--output-path, or delete the folder."
                )
            self.n_prompts = earlier["n_prompts"]
        self._settings = settings

    def keep(self, n_prompts: int) -> None:
        """Record the number of prompts, so that a resumed audit reads the same."""
        self.n_prompts = n_prompts
        text = json.dumps({"settings": self._settings, "n_prompts": n_prompts}, indent=1)
        write_text_atomically(text + "\n", self.folder / PLAN_FILENAME)

    @property
    def left(self) -> float:
        """Seconds left of the budget."""
        return self._budget - (time.monotonic() - self._started)

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Time a stage, and say what it took."""
        start = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start
        self.say(f"{name}: {time.monotonic() - start:.0f} s, {max(0.0, self.left):.0f} s left")

    @contextmanager
    def effect(self) -> Generator[None]:
        """Time a causal check, of which there are many: the slowest says whether there is time for another."""
        start = time.monotonic()
        yield
        self.slowest_effect = max(self.slowest_effect, time.monotonic() - start)

    def facts(self) -> dict[str, Any]:
        """Seconds by stage, for the manifest."""
        return {name: round(value, 1) for name, value in self.seconds.items()}
