"""The conclusion of a diagnosis: one sentence on the pair of models, "undecided" unless it was earned."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from sae_lens_crosscoder.analysis.changed.changed import Changed
from sae_lens_crosscoder.analysis.diagnosis.classes import CLASS_BORDERS, ONE_SIDED
from sae_lens_crosscoder.analysis.diagnosis.null_runs import jitter_caveat
from sae_lens_crosscoder.analysis.diagnosis.verdict import MIN_ACTIVE, Q_LIMIT, nu_kind_of
from sae_lens_crosscoder.analysis.use.result import LatentUse

FVE_FLOOR = 0.5
"""A crosscoder that explains less of a model than this supports no claim that nothing differs."""
_UNTRAINED = 1e-3
"""Paired decoders start at a Delta_norm of 1/2. Even null runs leave it by more than this in a short training."""
_NOT_MODELS = ("pooled", "difference")


@dataclass(frozen=True)
class Evidence:
    """Everything that a conclusion rests on."""

    latents: pd.DataFrame
    """Rows of `diagnose`, with `delta_norm`, `label`, `verdict`, `n_active` and `q_value`."""
    fve: Mapping[str, float]
    """Fraction of variance explained of each model, and `difference`."""
    n_tokens: int
    n_null_runs: int = 0
    min_active: int = MIN_ACTIVE
    fve_floor: float = FVE_FLOOR
    models_are_identical: bool = False
    """True if both models had exactly equal activations on every token."""
    changed: Changed | None = None
    """Turned latents, if they were looked for."""
    use: LatentUse | None = None
    """How both models use the latents, if it was read."""
    null_kinds: Sequence[str] = ()
    """Kinds of the null runs."""

    @property
    def live(self) -> pd.DataFrame:
        """Latents that fired and have a class."""
        return self.latents[(self.latents.verdict != "dead") & (self.latents.label != "undefined")]

    def learned(self, latents: pd.DataFrame) -> pd.DataFrame:
        """Latents whose Delta_norm was learned: all but exclusive ones."""
        return latents[~latents.exclusive] if "exclusive" in latents else latents

    @property
    def open(self) -> pd.DataFrame:
        """One-sided live latents that could not be judged."""
        live = self.live
        # A latent that is undetermined for its q is no open question: null runs answer it.
        return live[
            live.label.isin(ONE_SIDED) & live.verdict.isin(["rare", "undetermined"]) & ~(live.q_value >= Q_LIMIT)
        ]

    @property
    def judged(self) -> pd.DataFrame:
        """Live latents that fire often enough for their verdict to count."""
        live = self.live
        return live[~live.verdict.isin(["rare", "negligible"]) & ~live.index.isin(self.open.index)]


def conclusion(evidence: Evidence) -> str:
    """Sum up the pair of models in one sentence.

    "No difference detected" is said only if both models are explained, latents were judged, none is open, and no
    contrast that fine-tuning changed is left without a latent.
    Otherwise the sentence begins with "undecided", the first reason, and what to do.

    >>> latents = pd.DataFrame({"delta_norm": [0.52, 0.47], "label": "shared", "verdict": "shared", "n_active": 500})
    >>> latents["q_value"] = float("nan")
    >>> print(conclusion(Evidence(latents, {"base": 0.31, "chat": 0.9}, n_tokens=1000)))
    undecided: the FVE of the base model is 0.310, below the floor of 0.5; train longer, with more latents or a ...
    """
    if evidence.models_are_identical:
        return f"undecided: {_identical(evidence)}"
    n_chat, n_base = ((evidence.latents.verdict == f"{side}_specific").sum() for side in ("chat", "base"))
    is_changed = evidence.changed is not None and bool(evidence.changed.named)
    if n_chat + n_base > 0 or is_changed or (evidence.use is not None and evidence.use.n_changed):
        return _difference(evidence, int(n_chat), int(n_base))
    for reason in _REASONS:
        if text := reason(evidence):
            return f"undecided: {text}{_caveats(evidence)}"
    explained = {**_models(evidence.fve), "their difference": evidence.fve.get("difference", math.nan)}
    figures = [f"{round(value, 2) + 0:.2f} for {name}" for name, value in explained.items() if not math.isnan(value)]
    return (
        f"no difference detected: none of {_count(len(evidence.judged), 'judged latent')} is specific to one model"
        f"{_chance(evidence)}; FVE is {_listed(figures)}; {_turned(evidence)}{_caveats(evidence)}"
    )


def validate_fve_floor(fve_floor: float) -> None:
    """Raise a ValueError unless `fve_floor` is in [0, 1)."""
    if not 0 <= fve_floor < 1:
        raise ValueError(
            f"fve_floor={fve_floor!r} must be a fraction of variance in [0, 1); the default is {FVE_FLOOR}."
        )


def _difference(evidence: Evidence, n_chat: int, n_base: int) -> str:
    n_live = int((evidence.latents.verdict != "dead").sum())
    latents = f"{_count(n_chat, 'latent')} {'is' if n_chat == 1 else 'are'}"
    text = f"{latents} specific to the chat model and {n_base:,} to the base model, of {n_live:,} live"
    text += f" {'one' if n_live == 1 else 'ones'}{_chance(evidence)}{_in_control(evidence, n_chat + n_base)}"
    if evidence.changed is not None:
        text = f"{evidence.changed.conclusion}; {text}" if evidence.changed.named else f"{text}; {_turned(evidence)}"
    low = _too_little_explained(evidence)
    text = f"{text}; {low}, so differences may be missed" if low else text
    return text + _caveats(evidence)


def _in_control(evidence: Evidence, n_specific: int) -> str:
    """How many of the specific latents are due to the topics, as the control pair has them too."""
    if "in_control" not in evidence.latents or n_specific == 0:
        return ""
    is_specific = evidence.latents.verdict.isin(["chat_specific", "base_specific"])
    n = int((is_specific & evidence.latents.in_control).sum())
    return f"; the control pair has {n:,} of the {n_specific:,} too"


def _turned(evidence: Evidence) -> str:
    if evidence.changed is None:
        return "latents whose direction turned were not looked for"
    return evidence.changed.conclusion


def _chance(evidence: Evidence) -> str:
    if evidence.n_null_runs == 0:
        return ", with chance not accounted for (no null runs were given)"
    caveat = jitter_caveat(evidence.null_kinds)
    return f" (q < {Q_LIMIT} against null runs {caveat})" if caveat else f" (q < {Q_LIMIT})"


def _caveats(evidence: Evidence) -> str:
    use = "" if evidence.use is None else f"; {evidence.use.conclusion}"
    return use + _by_construction(evidence) + _basis_free(evidence)


def _basis_free(evidence: Evidence) -> str:
    if nu_kind_of(evidence.latents) != "basis_free":
        return ""
    return "; verdicts are basis-free, because the models have different widths"


def _by_construction(evidence: Evidence) -> str:
    """How many latents were confined to one model by the config, for which Delta_norm says nothing."""
    if "exclusive" not in evidence.latents:
        return ""
    exclusive = evidence.latents[evidence.latents.exclusive]
    n_specific = int(exclusive.verdict.isin(["chat_specific", "base_specific"]).sum())
    return (
        f"; Delta_norm of {_count(len(exclusive), 'exclusive latent')} is 0 or 1 by construction, so only their "
        f"verdict is evidence ({n_specific:,} specific)"
    )


def _identical(evidence: Evidence) -> str:
    return (
        f"both models have exactly equal activations on all {evidence.n_tokens:,} tokens; check that the tuned weights "
        "or the adapter were loaded, and that the hook lies behind the first tuned layer"
    )


def _nothing_to_read(evidence: Evidence) -> str | None:
    if len(evidence.live):
        return None
    if (evidence.latents.verdict == "dead").all():
        return (
            f"no latent fires on the {evidence.n_tokens:,} tokens; use data like that of the training, or train longer"
        )
    return "Delta_norm is undefined for every live latent; it compares the decoder norms of two models at one hook"


def _too_little_explained(evidence: Evidence) -> str | None:
    models = _models(evidence.fve)
    name = min(models, key=lambda model: -math.inf if math.isnan(models[model]) else models[model])
    if math.isnan(models[name]):
        return f"the {name} model's activations do not vary, so its FVE is undefined"
    if models[name] >= evidence.fve_floor:
        return None
    return f"the FVE of the {name} model is {models[name]:.3f}, below the floor of {evidence.fve_floor:g}"


def _low_fve(evidence: Evidence) -> str | None:
    text = _too_little_explained(evidence)
    return text and f"{text}; train longer, with more latents or a larger k, and check the hook and the data"


def _never_trained(evidence: Evidence) -> str | None:
    learned = evidence.learned(evidence.live)
    if learned.empty or (learned.delta_norm - 0.5).abs().max() >= _UNTRAINED:
        return None
    return (
        f"Delta_norm never left its start: every live latent is within {_UNTRAINED:g} of 1/2; train longer, and check "
        "that the models differ at this hook"
    )


def _one_sided_latents_open(evidence: Evidence) -> str | None:
    rare = evidence.open[evidence.open.verdict == "rare"]
    n_other = len(evidence.open) - len(rare)
    if len(evidence.open) == 0:
        return None
    if len(rare) == 0:
        return (
            f"{_count(n_other, 'one-sided latent')} could not be judged, as nu is undefined on {evidence.n_tokens:,} "
            "tokens; diagnose on more tokens, or give null runs"
        )
    also = f", and nu is undefined for {n_other:,} more" if n_other else ""
    needed = _tokens_needed(evidence, float(rare.n_active.min()))
    return (
        f"{_count(len(rare), 'one-sided latent')} could not be judged on {evidence.n_tokens:,} tokens, firing on fewer "
        f"than {evidence.min_active:,} of them{also}; about {needed} tokens would decide"
    )


def _changed_but_not_carried(evidence: Evidence) -> str | None:
    text = "" if evidence.changed is None else evidence.changed.conclusion
    return text.removeprefix("undecided: ") if text.startswith("undecided: ") else None


def _nothing_judged(evidence: Evidence) -> str | None:
    live = evidence.live
    if len(evidence.judged):
        return None
    return (
        f"none of {_count(len(live), 'live latent')} was judged, as each fires on fewer than {evidence.min_active:,} "
        f"of {evidence.n_tokens:,} tokens; about {_tokens_needed(evidence, float(live.n_active.median()))} tokens "
        "would let half of them be judged"
    )


def _wide_and_not_judged(evidence: Evidence) -> str | None:
    judged = evidence.learned(evidence.judged)
    n_leaning = int((judged.label == "other").sum())
    if evidence.n_null_runs or judged.label.isin(ONE_SIDED).any() or n_leaning <= len(judged) / 2:
        return None
    low, high = CLASS_BORDERS[1:3]
    return (
        f"{n_leaning:,} of {_count(len(judged), 'latent')} lean to one model (Delta_norm outside {low:g} to {high:g}), "
        "but none is one-sided enough for Latent Scaling; give null runs, or train longer"
    )


_REASONS: tuple[Callable[[Evidence], str | None], ...] = (
    _nothing_to_read,
    _low_fve,
    _never_trained,
    _one_sided_latents_open,
    _nothing_judged,
    _wide_and_not_judged,
    _changed_but_not_carried,
)


def _models(fve: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in fve.items() if name not in _NOT_MODELS}


def _tokens_needed(evidence: Evidence, n_active: float) -> str:
    """Tokens on which a latent of this frequency fires `min_active` times, rounded up to two digits."""
    needed = evidence.n_tokens * evidence.min_active / n_active
    digit = 10 ** max(0, math.floor(math.log10(needed)) - 1)
    return f"{math.ceil(needed / digit) * digit:,}"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
