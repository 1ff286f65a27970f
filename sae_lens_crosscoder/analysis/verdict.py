"""What to believe about a latent, from its class and its two nu."""

from typing import Literal, get_args

VERDICTS = (
    "chat_specific",
    "base_specific",
    "complete_shrinkage",
    "latent_decoupling",
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
MIN_ACTIVE = 100


def verdict(
    label: str,
    n_active: int,
    nu_error: float,
    nu_reconstruction: float,
    min_active: int = MIN_ACTIVE,
    bounds: NuBounds = "signed",
) -> str:
    """What to believe about one latent: the first of these that holds.

    `dead`: never fired on the data. `rare`: fired on fewer than `min_active` tokens. For a chat-only or base-only
    latent: `undetermined` when a nu is nan; `complete_shrinkage` when nu_error >= 0.2 (the other model has it too, its
    decoder norm was shrunk away); `latent_decoupling` when nu_reconstruction >= 0.5 (other latents write it into the
    other model); else `chat_specific` or `base_specific`. Anything else is its class.

    Args:
        nu_error, nu_reconstruction: probed with the decoder of the model that the latent is specific to.
        bounds: `signed`, as the paper's figure has it, or `absolute`, which also rejects negative nu. A negative nu
            means that the other model points away from the latent, often because of a background that both models
            share, and so is no sign of either artifact.

    >>> verdict("chat_only", 500, nu_error=0.05, nu_reconstruction=0.1)
    'chat_specific'
    >>> verdict("chat_only", 500, nu_error=0.4, nu_reconstruction=0.1)
    'complete_shrinkage'
    """
    require_bounds(bounds)
    if n_active == 0:
        return "dead"
    if n_active < min_active:
        return "rare"
    if label not in ("chat_only", "base_only"):
        return label
    if nu_error != nu_error or nu_reconstruction != nu_reconstruction:
        return "undetermined"
    if bounds == "absolute":
        nu_error, nu_reconstruction = abs(nu_error), abs(nu_reconstruction)
    if nu_error >= NU_ERROR_LIMIT:
        return "complete_shrinkage"
    if nu_reconstruction >= NU_RECONSTRUCTION_LIMIT:
        return "latent_decoupling"
    return "chat_specific" if label == "chat_only" else "base_specific"


def require_bounds(bounds: str) -> None:
    """Raise a ValueError unless `bounds` is one that `verdict` knows."""
    if bounds not in get_args(NuBounds):
        raise ValueError(f"bounds={bounds!r} is not one of {get_args(NuBounds)}; the default is 'signed'.")
