"""Latent Scaling without the background: the same factors from deviations within groups of tokens.

Latent Scaling is a regression through the origin. Whatever both models have along a latent's direction on all tokens
of a kind (one token id, one place of the chat template) counts as if the other model had the latent. Deviations from
the mean over the group do not contain it:

    beta = sum_t (f_t - fbar_g) (<d, y_t> - ybar_g) / (sum_t (f_t - fbar_g)^2 |d|^2),  g the group of token t
"""

from collections.abc import Mapping
from typing import get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.analysis.latent_scaling.latent_scaling import BASE, CHAT, LatentScaling, Target
from sae_lens_crosscoder.crosscoders.sparse_step.pairs import pairs_of
from sae_lens_crosscoder.storage.accumulators import Accumulator

MIN_VARYING = 0.01
"""Least share of `sum f^2` that must lie in deviations within groups: below it, f hardly varies in any group."""

MIN_OWN_BETA = 0.1
"""Least beta of the probe's own model (about 1 for a trained latent) by which a ratio may be divided."""


class CentredScaling(Accumulator):
    """Accumulates what Latent Scaling within groups needs beyond the sums of `LatentScaling`, in the same pass.

    These are float64 sums of f and of both targets per group: `n_groups * (d_sae + 2 * d_in)` numbers. The results do
    not depend on the order of the tokens, nor on any constant that is added to a group's activations. They are nan for
    a latent that hardly varies within groups, and where those of `LatentScaling` are undefined.

    Everything is in the space the crosscoder was trained in.

    Args:
        scaling: the sums over the same tokens. Add each batch to both.
        n_groups: number of token groups.
    """

    buffers = ("_n", "_f1", "_targets")

    def __init__(self, scaling: LatentScaling, n_groups: int) -> None:
        self.scaling = scaling
        crosscoder = scaling.crosscoder
        zeros = torch.zeros(n_groups, crosscoder.cfg.d_sae, dtype=torch.float64, device=crosscoder.W_dec.device)
        self._n = zeros.new_zeros(n_groups)
        self._f1 = zeros
        self._targets = zeros.new_zeros(2, n_groups, crosscoder.cfg.d_in if scaling.comparable else 0)
        """Sums of activations and of reconstructions, (2, group, d_in)."""

    @torch.no_grad()
    def add(
        self,
        activations: Float[Tensor, "token d_in"],
        feature_acts: Float[Tensor, "token d_sae"],
        reconstruction: Float[Tensor, "token d_in"],
        groups: Int[Tensor, " token"],
    ) -> None:
        """Add tokens: raw stacked activations, their encoding and reconstruction, and the group of each token."""
        groups = groups.to(self._n.device)
        pairs, values = pairs_of(feature_acts)
        place = groups[pairs.token] * pairs.d_sae + pairs.latent
        self._n.index_add_(0, groups, torch.ones_like(groups, dtype=torch.float64))
        self._f1.view(-1).index_add_(0, place, values.double())
        if self.scaling.comparable:
            for total, target in zip(self._targets, (activations, reconstruction), strict=True):
                total.index_add_(0, groups, target.double())

    def betas(self, probe: int = CHAT) -> dict[tuple[Target, int], Float[Tensor, " d_sae"]]:
        """Best factors within groups, by target and model; nan where they are undefined."""
        scaling, variation = self.scaling, self._variation()
        targets: tuple[Target, ...] = get_args(Target)
        if not scaling.comparable:
            return {(target, model): scaling.beta(target, model, probe) for target in targets for model in (BASE, CHAT)}
        varies = variation > MIN_VARYING * scaling.f2.sum(dim=0)
        scales = scaling.crosscoder.activation_scales.tolist()
        dots, betas = scaling.dots[probe], dict[tuple[Target, int], Tensor]()
        for model in (BASE, CHAT):
            activation, reconstruction = (
                total - self._of_means(means, model, probe)
                for total, means in zip(dots[model], self._targets, strict=True)
            )
            error = activation - reconstruction + variation * scaling.products[probe, model]
            for target, numerator in zip(targets, (activation, reconstruction, error), strict=True):
                factor = scales[model] / scales[probe] * numerator / (variation * scaling.probe_squares[probe])
                betas[target, model] = torch.where(varies, factor, torch.nan)
        return betas

    def beta(self, target: Target, model: int, probe: int = CHAT) -> Float[Tensor, " d_sae"]:
        """Best factor within groups for one target; nan where it is undefined."""
        return self.betas(probe)[target, model]

    def nu(self, target: Target, probe: int = CHAT) -> Float[Tensor, " d_sae"]:
        """Ratio of the other model's beta to that of the probe's model: see `nu_of`."""
        return nu_of(self.betas(probe), target, probe)

    def _variation(self) -> Float[Tensor, " d_sae"]:
        """`sum_t (f_t - fbar_g)^2`."""
        of_means = (self._f1.square() / self._n.clamp(min=1)[:, None]).sum(dim=0)
        return (self.scaling.f2.sum(dim=0) - of_means).clamp(min=0)

    def _of_means(self, target: Float[Tensor, "group d_in"], model: int, probe: int) -> Float[Tensor, " d_sae"]:
        """`sum_t fbar_g <d, ybar_g>`: the part of `sum_t f_t <d, y_t>` that the group means make."""
        means = self.scaling.crosscoder.layout.split(target / self._n.clamp(min=1)[:, None])[model]
        weighted = self._f1.T @ means
        return (weighted * self.scaling.probes[probe].double()).sum(dim=-1)


def nu_of(
    betas: Mapping[tuple[Target, int], Float[Tensor, " d_sae"]], target: Target, probe: int
) -> Float[Tensor, " d_sae"]:
    """Ratio of the other model's beta to that of the probe's model, both within groups.

    Of the target `activation` it is the presence: an estimate of how much of the latent the other model has, which
    needs no decomposition into error and reconstruction. nan where the own model's beta is below 0.1.
    """
    own = betas[target, probe]
    return torch.where(own >= MIN_OWN_BETA, betas[target, 1 - probe] / own, torch.nan)
