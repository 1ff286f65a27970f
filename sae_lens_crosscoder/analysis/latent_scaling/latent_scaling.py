"""Latent Scaling: how much of a latent is present in each model's activations, for all latents in one pass.

For a probe direction d_j and a target y, `beta = sum_i f_ij <d_j, y_i> / (sum_i f_ij^2 |d_j|^2)` is the factor by which
latent j, scaled, explains y best. Targets per model are the activation, the reconstruction, and the error with latent j
put back. Only the dot products of active (token, latent) pairs are formed, and their sums for the first two targets:
no per-latent residual is ever needed.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.crosscoders.sparse_step.kernels import gather_dot
from sae_lens_crosscoder.crosscoders.sparse_step.pairs import pairs_of
from sae_lens_crosscoder.resampling import bootstrap_counts, quantiles, standard_deviation
from sae_lens_crosscoder.storage.accumulators import Accumulator, zeros_on_demand

BASE, CHAT = 0, 1
Target = Literal["activation", "reconstruction", "error"]
Space = Literal["trained", "raw"]
# Latents whose resamples are formed at a time.
_CHUNK = 1024


class LatentScaling(Accumulator):
    """Accumulates the sums of Latent Scaling: add tokens with `add`, then read `beta` and `nu`.

    Sums are float64, in `n_shards` shards to which blocks of consecutive tokens are assigned in turn: resampling the
    shards gives standard errors and intervals.

    `nu_error` near 0 means that nothing of the latent is in the other model's error: it is specific. A high
    `nu_error` means Complete Shrinkage, a high `nu_reconstruction` Latent Decoupling.

    Everything is in the space the crosscoder was trained in; `space="raw"` gives that of the raw activations.
    For models of different width, or more than two, every beta and nu is nan: there is no common direction to probe.
    `ReconstructedDirections` and `FreeDirections` compare lengths instead.

    Args:
        probes: directions to probe instead of the decoders, one array per model, as controls do.
    """

    buffers = ("n_tokens", "f1", "f2", "n_active", "max_activation", "_dots")

    def __init__(
        self,
        crosscoder: InferenceCrosscoder,
        n_shards: int = 50,
        block_size: int = 256,
        probes: Sequence[Float[Tensor, "d_sae d_model"]] | None = None,
    ) -> None:
        self.crosscoder = crosscoder
        self.is_control = probes is not None
        """True if directions other than the decoders are probed."""
        self.probes = [probe.detach() for probe in (crosscoder.decoders if probes is None else probes)]
        self.comparable = crosscoder.layout.same_width and crosscoder.layout.is_pair
        self.n_tokens = 0
        self._block_size = block_size
        d_sae = crosscoder.cfg.d_sae
        device = crosscoder.W_dec.device
        self.f1, self.f2 = (zeros_on_demand(n_shards, d_sae, device=device) for _ in range(2))
        """sum f and sum f^2, (shard, d_sae)."""
        self.n_active = torch.zeros_like(self.f1[0], dtype=torch.int64)
        self.max_activation = torch.zeros_like(self.f1[0])
        self._dots = zeros_on_demand(2, 2, 2, n_shards, d_sae, device=device)
        """sum f <d^probe, y^model>: (probe, model, activation or reconstruction, shard, d_sae)."""
        self.products = self.f1.new_full((2, 2, d_sae), torch.nan)
        """<d^probe, d^model>: (probe, model, d_sae)."""
        self.probe_squares = self.products[0].clone()
        """|d^probe|^2: (probe, d_sae)."""
        self._mean_products = self.products.clone()
        """<d^probe, mean^model>, of what was subtracted from the activations in training."""
        if self.comparable:
            decoders = crosscoder.layout.split(crosscoder.W_dec.detach().double())
            means = crosscoder.layout.split(crosscoder.activation_means.double())
            for probe, direction in enumerate(direction.double() for direction in self.probes):
                self.probe_squares[probe] = direction.square().sum(dim=-1)
                for model, (decoder, mean) in enumerate(zip(decoders, means, strict=True)):
                    self.products[probe, model] = (direction * decoder).sum(dim=-1)
                    self._mean_products[probe, model] = direction @ mean

    @property
    def dots(self) -> Float[Tensor, "probe model target d_sae"]:
        """`sum f <d^probe, y^model>` over all tokens, in raw units; the targets are activation and reconstruction."""
        return self._dots.sum(dim=-2)

    @torch.no_grad()
    @validate_arguments
    def add(
        self,
        activations: Float[Tensor, "token d_in"],
        feature_acts: Float[Tensor, "token d_sae"],
        reconstruction: Float[Tensor, "token d_in"],
    ) -> None:
        """Add tokens: raw stacked activations, their encoding and their reconstruction.

        The work is that of the active pairs when `feature_acts` are sparse, as `encode_sparse` returns them.
        """
        pairs, values = pairs_of(feature_acts)
        f = values.double()
        # Blocks are counted over the whole stream, so that the shards do not depend on how it was cut into calls.
        tokens = torch.arange(self.n_tokens, self.n_tokens + len(activations), device=f.device)
        shard = tokens // self._block_size % len(self.f1)
        place = shard[pairs.token] * pairs.d_sae + pairs.latent
        self.f1.view(-1).index_add_(0, place, f)
        self.f2.view(-1).index_add_(0, place, f.square())
        self.n_active.index_add_(0, pairs.latent, torch.ones_like(pairs.latent))
        self.max_activation.scatter_reduce_(0, pairs.latent, f, "amax")
        self.n_tokens += len(activations)
        if not self.comparable:
            return
        # Dot products of half-precision numbers lose digits.
        precision = torch.promote_types(torch.promote_types(activations.dtype, self.crosscoder.dtype), torch.float32)
        probes = [direction.to(precision) for direction in self.probes]
        for t, target in enumerate((activations, reconstruction)):
            for model, part in enumerate(self.crosscoder.layout.split(target.to(precision))):
                for probe, direction in enumerate(probes):
                    dots = gather_dot(part, direction, pairs.token, pairs.latent)
                    self._dots[probe, model, t].view(-1).index_add_(0, place, f * dots)

    @validate_arguments
    def beta(self, target: Target, model: int, probe: int = CHAT, space: Space = "trained") -> Float[Tensor, " d_sae"]:
        """Best factor for one target; nan where the latent never fires or the probe direction is 0."""
        every_shard = torch.ones(1, self._n_filled, dtype=self.f1.dtype, device=self.f1.device)
        return self._beta(every_shard, target, model, probe, slice(None), space)[:, 0]

    @validate_arguments
    def nu(
        self, target: Target, probe: int = CHAT, space: Space = "trained", significant: bool = True
    ) -> Float[Tensor, " d_sae"]:
        """Ratio of the other model's beta to that of the probe's model; near 0 means specific to the probe's model.

        With the chat model's decoder as probe this is the paper's nu_error or nu_reconstruction.

        Args:
            significant: nan where the denominator is below twice its bootstrap standard error, and so may be 0, or
                where there is no standard error: on a single block of tokens, or when so few shards hold the latent
                that a resample may miss it.
        """
        denominator = self.beta(target, probe, probe, space)
        ratio = self.beta(target, 1 - probe, probe, space) / denominator
        if not significant:
            return ratio
        return torch.where(denominator.abs() >= 2 * self._standard_error(target, probe, space), ratio, torch.nan)

    @validate_arguments
    def nu_interval(
        self, target: Target, probe: int = CHAT, coverage: float = 0.95, n_resamples: int = 400, seed: int = 0
    ) -> tuple[Float[Tensor, " d_sae"], Float[Tensor, " d_sae"]]:
        """Bootstrap interval of nu over shards, in the trained space; nan where `nu` has no standard error."""
        counts = self._resamples(n_resamples, seed)
        factor = self._space_factor(1 - probe, probe, "trained")
        tails = ((1 - coverage) / 2, (1 + coverage) / 2)
        bounds: list[Tensor] = []
        for latents in self._latent_chunks():
            # Both betas have the same denominator, which cancels.
            numerators = (self._numerators(target, model, probe, latents, "trained") for model in (1 - probe, probe))
            above, below = (numerator.T @ counts.T for numerator in numerators)
            bounds.append(quantiles(factor * above / below, tails))
        low, high = torch.cat(bounds, dim=-1)
        return low, high

    def _standard_error(self, target: Target, probe: int, space: Space) -> Float[Tensor, " d_sae"]:
        counts = self._resamples(200, seed=0)
        parts = [self._beta(counts, target, probe, probe, chunk, space) for chunk in self._latent_chunks()]
        return torch.cat([standard_deviation(part) for part in parts])

    @property
    def _n_filled(self) -> int:
        """Shards with tokens, which come first."""
        return min(len(self.f1), -(-self.n_tokens // self._block_size))

    def _resamples(self, n_resamples: int, seed: int) -> Float[Tensor, "resample filled"]:
        """Count the draws of each shard when as many are drawn, with replacement, as have tokens."""
        return bootstrap_counts(self._n_filled, n_resamples, seed).to(self.f1.device)

    def _latent_chunks(self) -> list[slice]:
        return [slice(start, start + _CHUNK) for start in range(0, self.f1.shape[1], _CHUNK)]

    def _beta(
        self,
        counts: Float[Tensor, "resample filled"],
        target: Target,
        model: int,
        probe: int,
        latents: slice,
        space: Space,
    ) -> Float[Tensor, "latent resample"]:
        """beta of resampled shards; 0 / 0 is nan, as it should be."""
        energy = self.f2[: self._n_filled, latents].T @ counts.T * self.probe_squares[probe, latents, None]
        numerator = self._numerators(target, model, probe, latents, space).T @ counts.T
        return self._space_factor(model, probe, space) * numerator / energy

    def _numerators(
        self, target: Target, model: int, probe: int, latents: slice, space: Space
    ) -> Float[Tensor, "filled latent"]:
        """`sum f <d^probe, y>`, with y in raw units but centred as in the space, in the shards with tokens."""
        if target not in get_args(Target):
            raise ValueError(f"target={target!r} is not one of {get_args(Target)}.")
        filled = slice(self._n_filled)
        activation, reconstruction = self._dots[probe, model, :, filled, latents]
        if space == "trained":
            shift = self.f1[filled, latents] * self._mean_products[probe, model, latents]
            activation, reconstruction = activation - shift, reconstruction - shift
        match target:
            case "activation":
                return activation
            case "reconstruction":
                return reconstruction
            case "error":
                put_back = self.f2[filled, latents] * self.products[probe, model, latents]
                return activation - reconstruction + put_back

    def _space_factor(self, model: int, probe: int, space: Space) -> float:
        scales = self.crosscoder.activation_scales.tolist()
        return scales[model] / scales[probe] if space == "trained" else 1.0
