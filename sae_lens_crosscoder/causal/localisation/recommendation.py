"""Recommendation: the hook to train a crosscoder at, how sure it is, and why."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.causal.localisation.changed_prompts import ChangedPrompts
from sae_lens_crosscoder.causal.localisation.hooks import short_name
from sae_lens_crosscoder.causal.localisation.localisation import Localisation, share_brought_back
from sae_lens_crosscoder.resampling import bootstrap_counts, quantiles

KL_FLOOR = 0.05
"""Mean KL over the changed prompts, in nats, below which models count as hardly different."""
SHARE_OF_BEST = 0.99
"""The first hook that brings back this part of the best share is recommended.

0.9 is too early: 0.98 of the KL at one token can be 0.83 of whole answers."""
_MIN_SHARE = 0.1
_N_FOR_HIGH, _N_FOR_MEDIUM = 8, 4

Confidence = Literal["high", "medium", "low", "none"]


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The first hook that brings back 0.99 of the best share of KL on the changed prompts, or none with the reason."""

    hook_name: str | None
    confidence: Confidence
    """`high`: at least 8 changed prompts, and at least 90 % of resamples choose this hook or a neighbour. `medium`: at
    least 4 prompts, and the interval spans few hooks. `none` without a hook."""
    reason: str
    """Why, in plain words."""
    kl_nats: float
    """Mean KL at the last token of the changed prompts."""
    share: float
    """Share of it that patching chat's activation at the last token brings back at the hook; nan without a hook."""
    half_hook: str | None
    """The first hook that brings back half of the best share."""
    first_hook: str | None
    """With `last_hook` the 95 % interval of the hook over resamples of the changed prompts."""
    last_hook: str | None
    frac_same: float
    """Fraction of resamples that choose the same hook; nan without a hook."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them."""
        return {name: None if value != value else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Recommendation":
        """The inverse of `to_dict`."""
        undefined: dict[str, Any] = {name: float("nan") for name in ("share", "frac_same") if fields[name] is None}
        return cls(**{**fields, **undefined})


@validate_arguments
def recommend(
    located: Localisation, changed: ChangedPrompts, *, n_resamples: int = 1000, seed: int = 0
) -> Recommendation:
    """Recommend a hook.

    Args:
        located: measurements on the prompts.
        changed: the prompts to judge by.
        n_resamples: bootstrap resamples of the changed prompts.
    """
    kl = located.kl_last[changed.changed]
    mean_kl = float(kl.mean())
    if mean_kl < KL_FLOOR:
        return _no_hook(
            mean_kl,
            f"The models hardly differ on this text: mean KL {mean_kl:.2g} nats at the last token of the "
            f"{len(kl)} most changed of {len(changed.changed)} prompts. Give prompts on which they should differ.",
        )
    shares = shares_at_last(located, changed)
    if float(shares.max()) < _MIN_SHARE:
        return _no_hook(
            mean_kl,
            f"The models differ by {mean_kl:.2g} nats, but patching chat's activation brings back at most "
            f"{float(shares.max()):.2f} of it. The change lies after these hooks, in the final norm or the "
            "unembedding, or in other layers than those looked at.",
        )
    chosen = first_hook_with(shares[None], SHARE_OF_BEST)[0]
    resampled = resampled_shares(located, changed, n_resamples, seed)
    picks = first_hook_with(resampled, SHARE_OF_BEST) if len(kl) > 1 else chosen[None]
    low, high = (int(end) for end in quantiles(picks.double()[None])[:, 0].round())
    near = float(((picks - chosen).abs() <= 1).double().mean())
    return Recommendation(
        hook_name=located.hook_names[int(chosen)],
        confidence=_confidence(len(kl), near, high - low, len(shares)),
        reason=_reason(located.hook_names, shares, int(chosen), mean_kl, changed, (low, high), n_resamples),
        kl_nats=mean_kl,
        share=float(shares[chosen]),
        half_hook=located.hook_names[int(first_hook_with(shares[None], 0.5)[0])],
        first_hook=located.hook_names[low],
        last_hook=located.hook_names[high],
        frac_same=float((picks == chosen).double().mean()),
    )


def shares_at_last(located: Localisation, changed: ChangedPrompts) -> Float[Tensor, " hook"]:
    """Share of the KL of the changed prompts that each hook brings back, patched at the last token."""
    return share_brought_back(located.patched_last, located.kl_last, changed.changed.double())


def resampled_shares(
    located: Localisation, changed: ChangedPrompts, n_resamples: int, seed: int
) -> Float[Tensor, "resample hook"]:
    """Shares at the last token over resamples of the changed prompts; nan for a single prompt."""
    counts = bootstrap_counts(int(changed.changed.sum()), n_resamples, seed)
    kl, patched = located.kl_last[changed.changed], located.patched_last[:, changed.changed]
    return torch.where(counts.sum(dim=-1, keepdim=True) > 0, share_brought_back(patched, kl, counts), torch.nan)


def first_hook_with(shares: Float[Tensor, "resample hook"], part: float) -> Int[Tensor, " resample"]:
    """Index of the first hook that reaches this part of the resample's best share."""
    return (shares >= part * shares.max(dim=-1, keepdim=True).values).long().argmax(dim=-1)


def _confidence(n_changed: int, near: float, span: int, n_hooks: int) -> Confidence:
    if n_changed >= _N_FOR_HIGH and near >= 0.9:
        return "high"
    return "medium" if n_changed >= _N_FOR_MEDIUM and span <= max(2, n_hooks // 8) else "low"


def _no_hook(mean_kl: float, reason: str) -> Recommendation:
    nan = float("nan")
    hooks = {"hook_name": None, "half_hook": None, "first_hook": None, "last_hook": None}
    return Recommendation(confidence="none", reason=reason, kl_nats=mean_kl, share=nan, frac_same=nan, **hooks)


def _reason(
    names: tuple[str, ...],
    shares: Float[Tensor, " hook"],
    chosen: int,
    mean_kl: float,
    changed: ChangedPrompts,
    interval: tuple[int, int],
    n_resamples: int,
) -> str:
    here, best, n = float(shares[chosen]), float(shares.max()), int(changed.changed.sum())
    start = int(first_hook_with(shares[None], 0.1)[0])
    low, high = (short_name(names[end]) for end in interval)
    choice = low if low == high else f"{low} to {high}"
    if chosen == 0:
        rise = "All of it is there from the first hook on."
    elif start < chosen:
        rise = f"The share rises from {float(shares[start]):.3g} at {short_name(names[start])}."
    else:
        rise = f"Before it, at {short_name(names[chosen - 1])}, the share is {float(shares[chosen - 1]):.3g}."
    sure = "One prompt gives no interval." if n == 1 else f"95 % of {n_resamples:,} resamples of the prompts: {choice}."
    return (
        f"{names[chosen]} is the first of {len(names)} hooks with {SHARE_OF_BEST} of the best share: chat's "
        f"activation, patched into base at the last token, brings back {here:.3g} of the KL ({mean_kl:.3g} nats, {n} "
        f"prompts); the best hook brings back {best:.3g}. {rise} {sure}"
    )
