"""Verdicts on latents, from their classes, nu and q-values."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sae_lens_crosscoder.analysis.diagnosis.classes import ONE_SIDED
from sae_lens_crosscoder.analysis.latent_scaling.centred_scaling import MIN_OWN_BETA

Numbers = NDArray[Any] | Sequence[float | int] | float | int
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


def verdicts(
    labels: Sequence[str],
    n_active: Numbers,
    nu_error: Numbers,
    nu_reconstruction: Numbers,
    nu_free: Numbers = float("nan"),
    q_value: Numbers = float("nan"),
    min_active: int = MIN_ACTIVE,
    bounds: NuBounds = "signed",
    nu_reconstruction_centred: Numbers = float("nan"),
    presence: Numbers = float("nan"),
    share_of_median: Numbers = float("nan"),
    beta_centred: Numbers = float("nan"),
) -> list[str]:
    """Judge latents: the verdict is the first of these that holds.

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

    >>> verdicts(["chat_only"] * 3, [500] * 3, nu_error=[0.05, 0.4, 0.05], nu_reconstruction=[0.1, 0.1, 0.9])
    ['chat_specific', 'complete_shrinkage', 'latent_decoupling']
    >>> verdicts(["chat_only"], [500], [0.05], [0.9], nu_reconstruction_centred=0.1)
    ['chat_specific']
    >>> verdicts(["chat_only"], [500], [0.05], [0.45], presence=0.5)
    ['latent_decoupling']
    """
    validate_bounds(bounds)
    label, n_active = np.array(labels, dtype=object), np.asarray(n_active)
    errors, reconstructions, centred = map(np.asarray, (nu_error, nu_reconstruction, nu_reconstruction_centred))
    is_unknown = np.isnan(errors) | np.isnan(reconstructions) | (np.asarray(beta_centred) < MIN_OWN_BETA)
    if bounds == "absolute":
        errors, reconstructions, centred = map(np.abs, (errors, reconstructions, centred))
    is_background = centred < NU_RECONSTRUCTION_LIMIT  # False where nan
    is_decoupled = (reconstructions >= NU_RECONSTRUCTION_LIMIT) & ~is_background
    rules: list[tuple[Any, Any]] = [
        (n_active == 0, "dead"),
        (n_active < min_active, "rare"),
        ((np.asarray(share_of_median) < NEGLIGIBLE_SHARE) & (label != "undefined"), "negligible"),
        (~np.isin(label, list(ONE_SIDED)), label),
        (is_unknown, "undetermined"),
        (errors >= NU_ERROR_LIMIT, "complete_shrinkage"),
        (is_decoupled | (np.asarray(presence) >= PRESENCE_LIMIT), "latent_decoupling"),
        (np.asarray(nu_free) > NU_FREE_LIMIT, "rotated"),
        (np.asarray(q_value) >= Q_LIMIT, "undetermined"),
        (label == "chat_only", "chat_specific"),
    ]
    found = np.full(len(label), "base_specific", dtype=object)
    for holds, name in reversed(rules):
        found = np.where(holds, name, found)
    return found.tolist()


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


def nu_free_of_other(other_norm: Numbers, other_noise: Numbers, own_norm: Numbers) -> NDArray[np.float64]:
    """Ratio of the other model's free direction to that of the latent's model, noise removed.

    A direction made of noise alone has the length of its noise floor, so the floor's square is taken off.

    >>> nu_free_of_other([5.0, 5.0], [3.0, 3.0], [8.0, 0.0])
    array([0.5, nan])
    """
    other, noise, own = (np.asarray(part, dtype=np.float64) for part in (other_norm, other_noise, own_norm))
    left = np.sqrt(np.maximum(0.0, other**2 - noise**2))
    return np.divide(left, own, out=np.full(np.broadcast(left, own).shape, np.nan), where=own > 0)
