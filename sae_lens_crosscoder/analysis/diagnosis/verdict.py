"""Verdict on a latent, from its class, its nu and its q-value, and the conclusion on the pair of models."""

import math
from typing import Literal, get_args

import pandas as pd

from sae_lens_crosscoder.analysis.diagnosis.classes import ONE_SIDED

VERDICTS = (
    "chat_specific",
    "base_specific",
    "complete_shrinkage",
    "latent_decoupling",
    "rotated",
    "undetermined",
    "shared",
    "other",
    "rare",
    "dead",
    "undefined",
)
NuBounds = Literal["signed", "absolute"]
NU_ERROR_LIMIT = 0.2
NU_RECONSTRUCTION_LIMIT = 0.5
NU_FREE_LIMIT = 0.5
Q_LIMIT = 0.1
MIN_ACTIVE = 100


def verdict(
    label: str,
    n_active: int,
    nu_error: float,
    nu_reconstruction: float,
    nu_free: float = float("nan"),
    q_value: float = float("nan"),
    min_active: int = MIN_ACTIVE,
    bounds: NuBounds = "signed",
) -> str:
    """Verdict on one latent: the first of these that holds.

    `dead`: never fired on the data. `rare`: fired on fewer than `min_active` tokens. For a chat-only or base-only
    latent: `undetermined` when a nu is nan; `complete_shrinkage` when nu_error >= 0.2 (the other model has it too, its
    decoder norm was shrunk away); `latent_decoupling` when nu_reconstruction >= 0.5 (other latents write it into the
    other model); `rotated` when nu_free > 0.5 (the other model has it along another direction); `undetermined` when
    q_value >= 0.1 (null runs have latents as one-sided); else `chat_specific` or `base_specific`. Anything else is its
    class.

    Args:
        nu_error, nu_reconstruction: probed with the decoder of the model that the latent is specific to.
        nu_free: the other model's free direction over that model's, noise removed; nan when it was not measured.
        q_value: nan without null runs.
        bounds: `signed`, as the paper's figure has it, or `absolute`, which also rejects negative nu. A negative nu
            means that the other model points away from the latent, often because of a background that both models
            share, and so is no sign of either artifact.

    >>> verdict("chat_only", 500, nu_error=0.05, nu_reconstruction=0.1)
    'chat_specific'
    >>> verdict("chat_only", 500, nu_error=0.4, nu_reconstruction=0.1)
    'complete_shrinkage'
    """
    validate_bounds(bounds)
    if n_active == 0:
        return "dead"
    if n_active < min_active:
        return "rare"
    if label not in ONE_SIDED:
        return label
    if nu_error != nu_error or nu_reconstruction != nu_reconstruction:
        return "undetermined"
    if bounds == "absolute":
        nu_error, nu_reconstruction = abs(nu_error), abs(nu_reconstruction)
    if nu_error >= NU_ERROR_LIMIT:
        return "complete_shrinkage"
    if nu_reconstruction >= NU_RECONSTRUCTION_LIMIT:
        return "latent_decoupling"
    if nu_free > NU_FREE_LIMIT:
        return "rotated"
    if q_value >= Q_LIMIT:
        return "undetermined"
    return "chat_specific" if label == "chat_only" else "base_specific"


def validate_bounds(bounds: str) -> None:
    """Raise a ValueError unless `bounds` is one that `verdict` knows."""
    if bounds not in get_args(NuBounds):
        raise ValueError(f"bounds={bounds!r} must be one of {get_args(NuBounds)}; the default is 'signed'.")


def nu_free_of_other(other_norm: float, other_noise: float, own_norm: float) -> float:
    """Ratio of the other model's free direction to that of the latent's model, noise removed.

    A direction made of noise alone has the length of its noise floor, so the floor's square is taken off.

    >>> nu_free_of_other(5.0, 3.0, 8.0)
    0.5
    """
    if not own_norm > 0:
        return float("nan")
    return math.sqrt(max(0.0, other_norm**2 - other_noise**2)) / own_norm


def conclusion(table: pd.DataFrame) -> str:
    """Sum up the pair of models in one sentence, from a latent table; "undecided" if latents could not be judged.

    >>> conclusion(pd.DataFrame({"label": "shared", "verdict": ["shared", "dead"], "q_value": float("nan")}))
    'no difference detected: none of 1 live latents is specific to one model'
    """
    n_live = int((table.verdict != "dead").sum())
    # One that is undetermined for its q is no open question: null runs answer it.
    is_open = table.verdict.isin(["rare", "undetermined"]) & ~(table.q_value >= Q_LIMIT)
    n_open = int((is_open & table.label.isin(ONE_SIDED)).sum())
    n_readable = int((table.label != "undefined")[table.verdict != "dead"].sum())
    n_chat, n_base = (int((table.verdict == verdict).sum()) for verdict in ("chat_specific", "base_specific"))
    against_chance = f" (q < {Q_LIMIT})" if table.q_value.notna().any() else ""
    if n_readable == 0 or (n_chat + n_base == 0 and n_open):
        return f"undecided: {n_open:,} one-sided latents of {n_live:,} live ones could not be judged, none is specific"
    if n_chat + n_base == 0:
        return f"no difference detected: none of {n_live:,} live latents is specific to one model{against_chance}"
    return (
        f"{n_chat:,} latents are specific to the chat model and {n_base:,} to the base model, of {n_live:,} live ones"
        f"{against_chance or ', with chance not accounted for (no null runs were given)'}"
    )
