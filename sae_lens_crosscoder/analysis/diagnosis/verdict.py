"""Verdict on a latent, from its class, its nu and its q-value."""

import math
from typing import Literal, get_args

import pandas as pd

from sae_lens_crosscoder.analysis.diagnosis.classes import ONE_SIDED
from sae_lens_crosscoder.analysis.latent_scaling.centred_scaling import MIN_OWN_BETA

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
    "negligible",
    "dead",
    "undefined",
)
NuBounds = Literal["signed", "absolute"]
NuKind = Literal["along_decoder", "basis_free", "undefined"]
"""How nu is measured: along the decoders of a pair of equal width, by lengths alone for a pair of different widths, or
not at all (more than two models)."""
BASIS_FREE = (
    "The models have different widths, so no direction of one exists in the other: these verdicts are basis-free. They "
    "compare the lengths of directions, and presume that latents fire independently of each other."
)
"""Sentence that stands wherever basis-free verdicts are shown."""
NU_ERROR_LIMIT = 0.2
NU_RECONSTRUCTION_LIMIT = 0.5
NU_FREE_LIMIT = 0.5
PRESENCE_LIMIT = 0.4
"""Between true differences, with a presence below 0.2 up to errors of about 0.1, and concepts that fire in both models
half of the time. nu_reconstruction lets the latter pass when other latents write them incompletely."""
Q_LIMIT = 0.1
MIN_ACTIVE = 100
NEGLIGIBLE_SHARE = 1e-3
"""A latent that never writes more than this share of what the median latent writes at most is negligible."""


def verdict(
    label: str,
    n_active: int,
    nu_error: float,
    nu_reconstruction: float,
    nu_free: float = float("nan"),
    q_value: float = float("nan"),
    min_active: int = MIN_ACTIVE,
    bounds: NuBounds = "signed",
    nu_reconstruction_centred: float = float("nan"),
    presence: float = float("nan"),
    share_of_median: float = float("nan"),
    beta_centred: float = float("nan"),
) -> str:
    """Verdict on one latent: the first of these that holds.

    `dead`: never fired on the data. `rare`: fired on fewer than `min_active` tokens. `negligible`: at its strongest it
    writes less than 1/1000 of what the median latent does. For a chat-only or base-only latent: `undetermined` when a
    nu is nan or beta_centred < 0.1 (the latent's own model hardly has it); `complete_shrinkage` when nu_error >= 0.2
    (the other model has it too, its decoder norm was shrunk away); `latent_decoupling` when nu_reconstruction >= 0.5
    and the centred one is not below 0.5, or presence >= 0.4 (other latents write it into the other model); `rotated`
    when nu_free > 0.5 (the other model has it along another direction); `undetermined` when q_value >= 0.1 (null runs
    have latents as one-sided); else `chat_specific` or `base_specific`. Anything else is its class.

    Args:
        nu_error, nu_reconstruction: probed with the decoder of the model that the latent is specific to.
        nu_free: the other model's free direction over that model's, noise removed; nan when it was not measured.
        q_value: nan without null runs.
        bounds: `signed`, as the paper's figure has it, or `absolute`, which also rejects negative nu. A negative nu
            means that the other model points away from the latent, often because of a background that both models
            share, and so is no sign of either artifact.
        nu_reconstruction_centred: the same within groups of tokens, without what both models have on all tokens of a
            group. nan, if undefined, leaves the decision to nu_reconstruction.
        presence: how much of the latent the other model has, from deviations within groups; nan decides nothing.
        share_of_median: the most that the latent writes on a token, over the median live latent's; nan if unknown.
        beta_centred: beta of the activation of the model that the latent is specific to, within groups; about 1 for a
            latent that a model has, near 0 for one that only cancels what other latents write. nan decides nothing.

    >>> verdict("chat_only", 500, nu_error=0.05, nu_reconstruction=0.1)
    'chat_specific'
    >>> verdict("chat_only", 500, nu_error=0.4, nu_reconstruction=0.1)
    'complete_shrinkage'
    >>> verdict("chat_only", 500, nu_error=0.05, nu_reconstruction=0.9, nu_reconstruction_centred=0.1)
    'chat_specific'
    >>> verdict("chat_only", 500, nu_error=0.05, nu_reconstruction=0.45, presence=0.5)
    'latent_decoupling'
    """
    validate_bounds(bounds)
    if n_active == 0:
        return "dead"
    if n_active < min_active:
        return "rare"
    if share_of_median < NEGLIGIBLE_SHARE and label != "undefined":
        return "negligible"
    if label not in ONE_SIDED:
        return label
    if nu_error != nu_error or nu_reconstruction != nu_reconstruction or beta_centred < MIN_OWN_BETA:
        return "undetermined"
    if bounds == "absolute":
        nu_error, nu_reconstruction = abs(nu_error), abs(nu_reconstruction)
        nu_reconstruction_centred = abs(nu_reconstruction_centred)
    if nu_error >= NU_ERROR_LIMIT:
        return "complete_shrinkage"
    is_background = nu_reconstruction_centred < NU_RECONSTRUCTION_LIMIT  # False where nan
    is_decoupled = nu_reconstruction >= NU_RECONSTRUCTION_LIMIT and not is_background
    if is_decoupled or presence >= PRESENCE_LIMIT:
        return "latent_decoupling"
    if nu_free > NU_FREE_LIMIT:
        return "rotated"
    if q_value >= Q_LIMIT:
        return "undetermined"
    return "chat_specific" if label == "chat_only" else "base_specific"


def nu_kind_of(latents: pd.DataFrame) -> NuKind:
    """Return how nu of a latent table was measured; tables without the column are of pairs of equal width."""
    return latents["nu_kind"].iloc[0] if "nu_kind" in latents and len(latents) else "along_decoder"


def judging_nu(nu_kind: NuKind, label: str = "chat_only") -> tuple[str, str]:
    """Return the columns of the nu_error and nu_reconstruction that judge a latent of this class.

    >>> judging_nu("along_decoder"), judging_nu("basis_free", "base_only")
    (('nu_error', 'nu_reconstruction'), ('nu_error_basis_free', 'nu_reconstruction_basis_free'))
    """
    if nu_kind == "basis_free":
        return "nu_error_basis_free", "nu_reconstruction_basis_free"
    probe = "_base_probe" if label == "base_only" else ""
    return f"nu_error{probe}", f"nu_reconstruction{probe}"


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
