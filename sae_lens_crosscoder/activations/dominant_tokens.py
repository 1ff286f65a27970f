"""Tokens that dominate, such as attention sinks: the one rule that leaves them out, and how much they hold.

Their norm is tens to hundreds of times the median (Sun et al. 2024, arXiv 2402.17762). One of them outweighs hundreds
of ordinary tokens in the loss, in the scores that BatchTopK selects among, and in every variance.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lens_crosscoder.stacking import StackedLayout
from sae_lens_crosscoder.storage.accumulators import Accumulator

MAX_NORM_RATIO = 10.0
"""Norm, relative to the model's median, above which a token is left out."""
_LARGEST_SHARE = 0.25


@dataclass(frozen=True)
class NormLimits:
    """The rule: a token is left out if its norm exceeds the limit of any source.

    >>> limits = NormLimits(StackedLayout((1, 1)), max_norms=(5.0, 50.0))
    >>> limits.ordinary(torch.tensor([[1.0, 60.0], [-6.0, 1.0], [5.0, 50.0]]))
    tensor([False, False,  True])
    """

    layout: StackedLayout
    max_norms: tuple[float, ...] | None
    """Largest norm of a used token per source, in raw units; 0 for one without limit, None for no limits at all."""

    def __post_init__(self) -> None:
        limits = self.max_norms
        if limits is not None and (len(limits) != self.layout.n_sources or not all(0 <= n < torch.inf for n in limits)):
            raise ValueError(
                f"max_norms={limits} must have one finite number, at least 0, for each of {self.layout.n_sources} "
                "sources. Use None to keep all tokens."
            )

    @classmethod
    def measured(
        cls, layout: StackedLayout, norms: Float[Tensor, "token model"], max_norm_ratio: float
    ) -> "NormLimits":
        """Limits of `max_norm_ratio` times each model's median norm, over tokens whose activation is not zero.

        Raises:
            ValueError: if they would leave out more than a quarter of the tokens, which then are no exceptions.
        """
        known = [column[(column > 0) & column.isfinite()] for column in norms.unbind(dim=-1)]
        limits = cls(layout, tuple(max_norm_ratio * float(part.median()) if len(part) else 0.0 for part in known))
        n_left_out = int((~limits.ordinary_norms(norms)).sum())
        if n_left_out > _LARGEST_SHARE * len(norms):
            raise ValueError(
                f"max_norm_ratio={max_norm_ratio:g} would leave out {n_left_out} of {len(norms)} tokens, so the median "
                "norm is no measure of these activations. Use None to keep all tokens, or a larger ratio."
            )
        return limits

    def ordinary(self, stacked: Float[Tensor, "*rows d_in"]) -> Bool[Tensor, "*rows"]:
        """True for the tokens that are used; NaN and infinity are left for `validate_activations` to name."""
        return self.ordinary_norms(token_norms(stacked, self.layout))

    def ordinary_norms(self, norms: Float[Tensor, "*rows model"]) -> Bool[Tensor, "*rows"]:
        """The same from the tokens' norms."""
        if self.max_norms is None:
            return torch.ones(norms.shape[:-1], dtype=torch.bool, device=norms.device)
        limits = torch.tensor([limit or torch.inf for limit in self.max_norms], dtype=norms.dtype, device=norms.device)
        return ~((norms > limits) & norms.isfinite()).any(dim=-1)


def token_norms(stacked: Float[Tensor, "*rows d_in"], layout: StackedLayout) -> Float[Tensor, "*rows model"]:
    """Norm of each model's activation, at least in float32."""
    precision = torch.promote_types(stacked.dtype, torch.float32)
    parts = layout.split(stacked.detach())
    return torch.stack([torch.linalg.vector_norm(part, dim=-1, dtype=precision) for part in parts], dim=-1)


def validate_max_norm_ratio(max_norm_ratio: float | None) -> None:
    """Raise a ValueError unless the ratio is above 1, or None."""
    if max_norm_ratio is not None and not 1 < max_norm_ratio < torch.inf:
        raise ValueError(
            f"max_norm_ratio={max_norm_ratio} must be above 1, such as {MAX_NORM_RATIO:g}: it is a multiple of the "
            "median norm. Use None to keep all tokens."
        )


class DominantTokens(Accumulator):
    """Counts the tokens that were left out, and their share of each model's energy (its summed squared norms).

    >>> found = DominantTokens(StackedLayout((1, 1)))
    >>> found.add(torch.tensor([[3.0, 1.0], [1.0, 1.0]]), torch.tensor([False, True]))
    >>> found.n_tokens, found.n_left_out, found.frac_energy
    (2, 1, {'base': 0.9, 'chat': 0.5})
    """

    buffers = ("n_tokens", "n_left_out", "_energy")

    def __init__(self, layout: StackedLayout) -> None:
        self.layout = layout
        self.n_tokens = self.n_left_out = 0
        self._energy = torch.zeros(2, layout.n_sources, dtype=torch.float64)
        """Of all tokens, and of those left out."""

    @torch.no_grad()
    def add(self, norms: Float[Tensor, "token model"], ordinary: Bool[Tensor, " token"]) -> None:
        """Add tokens with their norms, and True for those that are used."""
        squared = norms.double().square()
        self._energy += torch.stack([squared.sum(dim=0), squared[~ordinary].sum(dim=0)]).cpu()
        self.n_tokens += len(norms)
        self.n_left_out += int((~ordinary).sum())

    def scale(self, ratio: float) -> None:
        """Multiply all counts, such as by one process's share."""
        self.n_tokens, self.n_left_out = round(ratio * self.n_tokens), round(ratio * self.n_left_out)
        self._energy *= ratio

    @property
    def frac_energy(self) -> dict[str, float]:
        """Share of each model's energy, by the layout's names; nan for a model without any."""
        return dict(zip(self.layout.names, (self._energy[1] / self._energy[0]).tolist(), strict=True))

    def summary(self) -> dict[str, Any]:
        """The numbers, as JSON can hold them; an undefined share is None."""
        defined = {name: None if share != share else share for name, share in self.frac_energy.items()}
        return {"n_tokens": self.n_tokens, "n_left_out": self.n_left_out, "frac_energy": defined}


def describe_dominant_tokens(summary: dict[str, Any], max_norms: tuple[float, ...] | list[float] | None) -> str:
    """Say in one sentence how many tokens were left out, and how much they hold.

    >>> found = {"n_tokens": 2000, "n_left_out": 2, "frac_energy": {"base": 0.9, "chat": 0.91}}
    >>> describe_dominant_tokens(found, (5.0, 7.0))
    'Tokens that dominate: left out 2 of 2,000 (0.1 %), with norms above 5 (base) or 7 (chat); they hold 90 % ...
    """
    if max_norms is None:
        return "Tokens that dominate: none is left out (max_norm_ratio=None)."
    n_tokens, n_left_out, shares = summary["n_tokens"], summary["n_left_out"], summary["frac_energy"]
    above = " or ".join(f"{limit:.4g} ({name})" for name, limit in zip(shares, max_norms, strict=True))
    share = 100 * n_left_out / n_tokens if n_tokens else 0.0
    text = f"Tokens that dominate: left out {n_left_out:,} of {n_tokens:,} ({share:.2g} %), with norms above {above}"
    if n_left_out == 0:
        return f"{text}."
    held = " and ".join(f"{100 * part:.3g} % ({name})" for name, part in shares.items() if part is not None)
    return f"{text}; they hold {held} of the energy."
