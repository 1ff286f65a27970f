"""Answers on disk: what was asked once is not asked, or paid for, again."""

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
    """A client's answers, kept in a file of JSON lines that only grows, each under the hash of what was asked.

    An answer is in the file as soon as it comes, so a run that was interrupted goes on where it was. Anything else in
    the prompt, the model's name or the settings is another question.

    Args:
        path: the file; what earlier runs left in it is used.
        recorded_only: ask nothing: a prompt that the file has no answer to is an error.

    Raises:
        ValueError: for a file that holds something else, or in a folder that does not exist.
    """

    def __init__(self, path: str | Path, client: Client, *, recorded_only: bool = False) -> None:
        self.path, self.client, self._recorded_only = Path(path), client, recorded_only
        if not self.path.parent.is_dir():
            raise ValueError(f"{path} is in a folder that does not exist: make it first.")
        self._recorded = _read(self.path)

    def recorded(self, prompt: Prompt) -> str | None:
        """The answer to a prompt, if it was asked before."""
        return self._recorded.get(self._key(prompt))

    def ask(self, prompts: Sequence[Prompt], description: str) -> list[str]:
        """The answer to every prompt, recorded or new.

        Raises:
            ValueError: with `recorded_only`, when an answer is missing.
        """
        missing = list({self._key(prompt): prompt for prompt in prompts if self.recorded(prompt) is None}.values())
        if missing and self._recorded_only:
            raise ValueError(
                f"{self.path} has no answer of {self.client.model!r} with settings {dict(self.client.settings)} to "
                f"{len(missing)} of {len(prompts)} prompts, and nothing but recorded answers may be used. The prompts, "
                f"the texts in them, the model or the settings changed. The first of them:\n{missing[0]}"
            )
        if missing:
            self._ask(missing, description)
        return [self._recorded[self._key(prompt)] for prompt in prompts]

    def _ask(self, prompts: Sequence[Prompt], description: str) -> None:
        with self.path.open("ab") as file:
            if self._is_cut_off():
                file.write(b"\n")
            came = self.client.answers(prompts)
            for index, answer in tqdm(came, desc=description, total=len(prompts), unit="prompt", leave=False):
                key = self._key(prompts[index])
                self._recorded[key] = answer
                line = {"key": key, "model": self.client.model, "answer": answer}
                file.write(json.dumps(line).encode() + b"\n")
                file.flush()

    def _is_cut_off(self) -> bool:
        """Whether the last line has no end, because a run died while it was written."""
        with self.path.open("rb") as file:
            n_bytes = file.seek(0, os.SEEK_END)
            file.seek(max(0, n_bytes - 1))
            return file.read() not in (b"", b"\n")

    def _key(self, prompt: Prompt) -> str:
        asked = {"model": self.client.model, "settings": dict(self.client.settings), "messages": list(prompt)}
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> dict[str, str]:
    """Answers by key, without those whose line was cut off while it was written."""
    answers: dict[str, str] = {}
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            recorded = json.loads(line)
            answers[recorded["key"]] = recorded["answer"]
        except (ValueError, TypeError, KeyError) as error:
            if not line.startswith(_LINE_START[: len(line)]):
                raise ValueError(f"{path} is no file of recorded answers ({error}): give another path.") from error
    return answers
