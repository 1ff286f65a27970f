"""Latent Scaling: how much of a latent is present in each model's activations, for all latents in one pass.

For a probe direction d_j and a target y, `beta = sum_i f_ij <d_j, y_i> / (sum_i f_ij^2 |d_j|^2)` is the factor by which
latent j, scaled, explains y best. Targets per model are the activation, the reconstruction, and the error with latent j
put back. Only sums over active (token, latent) pairs are formed, `sum_i f_ij y_i` per latent, whose product with d_j is
the numerator: no per-latent residual is ever needed.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.analysis.active_sums import ActivePairs, active_pairs, sums_over_active
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder

BASE, CHAT = 0, 1
Target = Literal["activation", "reconstruction", "error"]


class LatentScaling:
    """Streams the sums that Latent Scaling needs. Feed it with `add`; ask `beta` and `nu`.

    Sums are float64 and kept in `n_shards` parts, to which blocks of consecutive tokens go in turn: resampling
    the parts gives standard errors and intervals.

    `nu_error` near 0 means that nothing of the latent is in the other model's error: it is specific. A high
    `nu_error` means Complete Shrinkage, a high `nu_reconstruction` Latent Decoupling.

    Everything is in the space the crosscoder was trained in; `space="raw"` gives that of the raw activations.
    For models of different width, or more than two, every beta and nu is nan: there is no common direction to probe.
    """

    def __init__(self, crosscoder: InferenceCrosscoder, n_shards: int = 50, block_size: int = 256) -> None:
        self.crosscoder = crosscoder
        self.comparable = crosscoder.layout.same_width and crosscoder.layout.n_models == 2
        self.n_tokens = 0
        self._block_size = block_size
        d_sae = crosscoder.cfg.d_sae
        zeros = torch.zeros(n_shards, d_sae, dtype=torch.float64, device=crosscoder.W_dec.device)
        self.f1, self.f2 = zeros, zeros.clone()
        """sum f and sum f^2, (shard, d_sae)."""
        self.n_active = torch.zeros_like(zeros[0], dtype=torch.int64)
        self.max_activation = torch.zeros_like(zeros[0])
        self._dots = zeros.new_zeros(2, 2, 2, n_shards, d_sae)
        """sum f <d^probe, y^model>: (probe, model, activation or reconstruction, shard, d_sae)."""

    @torch.no_grad()
    def add(
        self,
        activations: Float[Tensor, "token d_in"],
        feature_acts: Float[Tensor, "token d_sae"],
        reconstruction: Float[Tensor, "token d_in"],
    ) -> None:
        """Add tokens: raw stacked activations, and what the inference crosscoder makes of them."""
        pairs = active_pairs(feature_acts)
        start = 0
        while start < len(activations):
            # Blocks are counted over the whole stream, so that the shards do not depend on how it was cut into calls.
            stop = min(len(activations), start + self._block_size - self.n_tokens % self._block_size)
            self._add_block(pairs.of_tokens(start, stop), activations[start:stop], reconstruction[start:stop])
            self.n_tokens += stop - start
            start = stop

    def _add_block(self, pairs: ActivePairs, activations: Tensor, reconstruction: Tensor) -> None:
        shard = self.n_tokens // self._block_size % len(self.f1)
        f = pairs.value.double()
        self.f1[shard].index_add_(0, pairs.latent, f)
        self.f2[shard].index_add_(0, pairs.latent, f.square())
        self.n_active.index_add_(0, pairs.latent, torch.ones_like(pairs.latent))
        self.max_activation.scatter_reduce_(0, pairs.latent, f, "amax")
        if not self.comparable:
            return
        decoders = self.crosscoder.decoders
        for t, target in enumerate((activations, reconstruction)):
            latents, sums = sums_over_active(pairs, target)
            for model, part in enumerate(self.crosscoder.layout.split(sums)):
                for probe in (BASE, CHAT):
                    dots = (part * decoders[probe][latents].to(part)).sum(dim=-1)
                    self._dots[probe, model, t, shard].index_add_(0, latents, dots.double())

    def beta(
        self, target: Target, model: int, probe: int = CHAT, space: Literal["trained", "raw"] = "trained"
    ) -> Float[Tensor, " d_sae"]:
        """The best factor for one target; nan where the latent never fires or the probe direction is 0."""
        return self._beta(torch.ones(1, len(self.f1)), target, model, probe, slice(None), space)[0]

    def nu(
        self,
        target: Target,
        probe: int = CHAT,
        space: Literal["trained", "raw"] = "trained",
        significant: bool = True,
    ) -> Float[Tensor, " d_sae"]:
        """beta of the OTHER model over beta of the probe's own model; near 0 means specific to the probe's model.

        With the chat model's decoder as probe this is the paper's nu_error or nu_reconstruction.

        Args:
            significant: nan where the denominator is below twice its bootstrap standard error, and so may be 0, or
                where there is no standard error: on a single block of tokens, or when so few shards hold the latent
                that a resample may miss it.
        """
        ratio = self.beta(target, 1 - probe, probe, space) / self.beta(target, probe, probe, space)
        if not significant:
            return ratio
        own = self.beta(target, probe, probe, space)
        return torch.where(own.abs() >= 2 * self._standard_error(target, probe, space), ratio, torch.nan)

    def nu_interval(
        self, target: Target, probe: int = CHAT, coverage: float = 0.95, n_resamples: int = 400, seed: int = 0
    ) -> tuple[Float[Tensor, " d_sae"], Float[Tensor, " d_sae"]]:
        """Bootstrap interval of nu over shards, in the trained space; nan where `nu` has no standard error."""
        tails = torch.tensor([(1 - coverage) / 2, (1 + coverage) / 2], dtype=torch.float64)
        bounds: list[Tensor] = []
        for latents in self._latent_chunks():
            counts = self._resamples(n_resamples, seed)
            own = self._beta(counts, target, probe, probe, latents, "trained")
            other = self._beta(counts, target, 1 - probe, probe, latents, "trained")
            bounds.append(torch.quantile(other / own, tails.to(own.device), dim=0))
        low, high = torch.cat(bounds, dim=-1)
        return low, high

    def _standard_error(self, target: Target, probe: int, space: Literal["trained", "raw"]) -> Float[Tensor, " d_sae"]:
        counts = self._resamples(200, seed=0)
        parts = [self._beta(counts, target, probe, probe, chunk, space).std(dim=0) for chunk in self._latent_chunks()]
        return torch.cat(parts)

    def _resamples(self, n_resamples: int, seed: int) -> Float[Tensor, "resample shard"]:
        """How often each shard is drawn when as many are drawn, with replacement, as hold any tokens."""
        n_filled = min(len(self.f1), -(-self.n_tokens // self._block_size))
        if n_filled < 2:  # one block, drawn again and again, would seem to be without error
            return torch.zeros(n_resamples, len(self.f1))
        generator = torch.Generator().manual_seed(seed)
        draws: Int[Tensor, "resample shard"] = torch.randint(n_filled, (n_resamples, n_filled), generator=generator)
        counts = torch.zeros(n_resamples, len(self.f1))
        return counts.scatter_add(1, draws, torch.ones_like(draws, dtype=counts.dtype))

    def _latent_chunks(self) -> list[slice]:
        return [slice(start, start + 8192) for start in range(0, self.f1.shape[1], 8192)]

    @torch.no_grad()
    def _beta(
        self,
        weights: Float[Tensor, "resample shard"],
        target: Target,
        model: int,
        probe: int,
        latents: slice,
        space: Literal["trained", "raw"],
    ) -> Float[Tensor, "resample latent"]:
        """beta from weighted shard sums, with no per-latent residual."""
        weights = weights.to(self.f1)
        energy = weights @ self.f2[:, latents]
        if not self.comparable:
            return torch.full_like(energy, torch.nan)
        decoders = [decoder[latents].double() for decoder in self.crosscoder.decoders]
        direction = decoders[probe]
        norm_square = direction.square().sum(dim=-1)
        dots = [weights @ self._dots[probe, model, t, :, latents] for t in range(2)]
        per_target = [dot / (energy * norm_square) for dot in dots]
        match target:
            case "activation":
                beta = per_target[0]
            case "reconstruction":
                beta = per_target[1]
            case "error":
                own_share = (direction * decoders[model]).sum(dim=-1) / norm_square
                beta = per_target[0] - per_target[1] + own_share
        silent = (energy == 0) | (norm_square == 0)
        scales = self.crosscoder.activation_scales.double()
        factor = scales[model] / scales[probe] if space == "trained" else torch.ones_like(scales[0])
        return torch.where(silent, torch.nan, beta * factor)
