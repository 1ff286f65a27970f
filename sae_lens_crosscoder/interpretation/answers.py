"""Answers on disk, so that no prompt is asked, or paid for, twice."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from tqdm.auto import tqdm

from sae_lens_crosscoder.interpretation.clients import Client
from sae_lens_crosscoder.interpretation.prompts import Prompt

_LINE_START = b'{"key": "'


class Answers:
    """A client whose answers are stored in an append-only JSON-lines file, by a hash of model, settings and prompt.

    An answer is in the file as soon as it arrives, so an interrupted run resumes where it stopped.

    Args:
        path: the file; answers of earlier runs in it are used.
        recorded_only: send nothing, and raise an error for a prompt without a stored answer.

    Raises:
        ValueError: for a file of something else, or in a folder that does not exist.
    """

    def __init__(self, path: str | Path, client: Client, *, recorded_only: bool = False) -> None:
        self.path, self.client, self._recorded_only = Path(path), client, recorded_only
        if not self.path.parent.is_dir():
            raise ValueError(f"{path} is in a folder that does not exist: create the folder first.")
        self._recorded = _load(self.path)

    def recorded(self, prompt: Prompt) -> str | None:
        """The stored answer to a prompt, or None."""
        return self._recorded.get(self._key(prompt))

    def ask(self, prompts: Sequence[Prompt], description: str) -> list[str]:
        """Return the answer to every prompt, stored or new.

        Raises:
            ValueError: with `recorded_only`, if an answer is missing.
        """
        missing = list({self._key(prompt): prompt for prompt in prompts if self.recorded(prompt) is None}.values())
        if missing and self._recorded_only:
            raise ValueError(
                f"{self.path} has no answer of {self.client.model!r} with settings {dict(self.client.settings)} to "
                f"{len(missing)} of {len(prompts)} prompts, and recorded_only=True. The prompts, the model or the "
                f"settings changed: run without recorded_only. The first missing prompt:\n{missing[0]}"
            )
        if missing:
            self._ask(missing, description)
        return [self._recorded[self._key(prompt)] for prompt in prompts]

    def _ask(self, prompts: Sequence[Prompt], description: str) -> None:
        with self.path.open("ab") as file:
            if self._is_cut_off():
                file.write(b"\n")
            arriving = self.client.answers(prompts)
            for index, answer in tqdm(arriving, desc=description, total=len(prompts), unit="prompt", leave=False):
                key = self._key(prompts[index])
                self._recorded[key] = answer
                line = {"key": key, "model": self.client.model, "answer": answer}
                file.write(json.dumps(line).encode() + b"\n")
                file.flush()

    def _is_cut_off(self) -> bool:
        """True if the last line is incomplete, because a run died while writing it."""
        with self.path.open("rb") as file:
            n_bytes = file.seek(0, os.SEEK_END)
            file.seek(max(0, n_bytes - 1))
            return file.read() not in (b"", b"\n")

    def _key(self, prompt: Prompt) -> str:
        request = {"model": self.client.model, "settings": dict(self.client.settings), "messages": list(prompt)}
        return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def _load(path: Path) -> dict[str, str]:
    """Read answers by key, without incomplete lines."""
    answers: dict[str, str] = {}
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            recorded = json.loads(line)
            answers[recorded["key"]] = recorded["answer"]
        except (ValueError, TypeError, KeyError) as error:
            if not line.startswith(_LINE_START[: len(line)]):
                raise ValueError(f"{path} is not a file of recorded answers ({error}): pass another path.") from error
    return answers
