"""Audit: the answer to the question what a fine-tune changed."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sae_lens_crosscoder.analysis.audit.finding import Finding
from sae_lens_crosscoder.analysis.audit.limits import NullPhrases
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.storage.atomic import write_text_atomically

AUDIT_FILENAME = "audit.json"
MOST_FINDINGS = 10


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of what the audit could have seen."""

    n_prompts: int
    n_held_out: int
    least_frequency: float
    """The rarest new answer, as a share of prompts like these, that is found with a probability of 0.9."""
    null_phrases: NullPhrases | None = None
    """None if the audit ended before."""
    hook_name: str | None = None
    n_rows: int = 0
    """Activations that each crosscoder was trained on."""
    fve: tuple[float, ...] = ()
    """Of each model, by the first crosscoder."""
    least_sizes: dict[float, float] | None = None
    """By the frequency of planted changes, the least size that a crosscoder like these carries, relative to the
    activations' norm. None if it was not measured."""

    @property
    def sentences(self) -> list[str]:
        """The limits in words."""
        said = [
            f"A new answer is found with a probability of 0.9 if at least {self.least_frequency:.3f} of prompts like "
            f"these get it ({self.n_prompts:,} prompts, {self.n_held_out:,} of them held out).",
            "Behaviours on prompts of another kind, in later turns or beyond the length of the answers read here were "
            "not looked for.",
        ]
        if self.null_phrases is not None:
            said.append(
                "Between two samples of the base model's own answers, the same search calls "
                f"{self.null_phrases.n_found} of {self.null_phrases.n_tested} phrases new."
            )
        if self.hook_name is not None:
            fve = " and ".join(f"{value:.3f}" for value in self.fve)
            said.append(
                f"Latents were looked for at {self.hook_name} only, on {self.n_rows:,} activations; the first "
                f"crosscoder explains {fve} of the variance of base and chat."
            )
        for frequency, size in (self.least_sizes or {}).items():
            traced = f"from {size:g} of the activations' norm on" if size == size else "at no size tried"
            said.append(f"Changes planted at {frequency:g} of the prompts were traced {traced}.")
        return said


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Findings, what was looked for without result, and the limits of the search."""

    findings: tuple[Finding, ...]
    """At most ten: differences of the answers that are traced to latents, the most frequent first."""
    answers_only: tuple[Finding, ...]
    """Differences of the answers that are not traced to latents."""
    in_control: tuple[Finding, ...]
    """Differences of the answers that the control shows too."""
    not_found: tuple[str, ...]
    """What was looked for without result."""
    limits: Limits
    explorer: str | None = None
    """File of the explorer beside the page; None if none was made."""
    manifest: dict[str, Any]
    """Models, settings, versions, seconds by stage, and the stage at which an interrupted audit ended."""

    @property
    def conclusion(self) -> str:
        """One sentence."""
        n, only, in_control = len(self.findings), len(self.answers_only), len(self.in_control)
        rest = f"; {only} more {_of_answers(only)} not traced to latents" if only else ""
        if in_control:
            rest += f"; {in_control} {'is' if in_control == 1 else 'are'} the control's too"
        if n:
            return f"{n} {'change' if n == 1 else 'changes'} of behaviour found{rest}."
        if only:
            rest = rest.removeprefix(f"; {only} more {_of_answers(only)} not traced to latents")
            return f"No change was traced to latents; {only} {_of_answers(only)} seen{rest}."
        return (
            f"No change of behaviour found: none that shows in at least {self.limits.least_frequency:.3f} of prompts "
            "like these."
        )

    def __str__(self) -> str:
        lines = [self.conclusion, *(f"{i}. {finding.sentence}" for i, finding in enumerate(self.findings, 1))]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Everything that the page shows, as JSON can hold it; undefined numbers are None."""
        limits = self.limits
        sizes = limits.least_sizes or {}
        return _without_nan(
            {
                "conclusion": self.conclusion,
                "findings": [finding.to_dict() for finding in self.findings],
                "answers_only": [finding.to_dict() for finding in self.answers_only],
                "in_control": [finding.to_dict() for finding in self.in_control],
                "not_found": list(self.not_found),
                "limits": {
                    "sentences": limits.sentences,
                    "n_prompts": limits.n_prompts,
                    "n_held_out": limits.n_held_out,
                    "least_frequency": limits.least_frequency,
                    "null_phrases": None if limits.null_phrases is None else asdict(limits.null_phrases),
                    "hook_name": limits.hook_name,
                    "n_rows": limits.n_rows,
                    "fve": list(limits.fve),
                    "least_sizes": [{"frequency": f, "size": size} for f, size in sizes.items()],
                },
                "explorer": self.explorer,
                "manifest": self.manifest,
            }
        )

    @validate_arguments
    def save(self, folder: str | Path) -> Path:
        """Write `audit.json` into a folder, which is created."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False, ensure_ascii=False)
        write_text_atomically(text + "\n", Path(folder, AUDIT_FILENAME))
        return Path(folder, AUDIT_FILENAME)


def _of_answers(n: int) -> str:
    return "difference of the answers was" if n == 1 else "differences of the answers were"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]  # pyright: ignore[reportUnknownVariableType]
    return None if isinstance(value, float) and not math.isfinite(value) else value
