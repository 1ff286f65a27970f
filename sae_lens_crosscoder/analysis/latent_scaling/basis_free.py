"""Basis-free Latent Scaling: how long a latent's direction is in each model, for models without a common basis.

Between models of different width no direction of one exists in the other, so nothing can be probed along a decoder.
Lengths can still be compared: each model has a direction `v_j^m` of its own that follows latent j, and the verdict
needs only |v^other| / |v^own|.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.analysis.latent_scaling.centred_scaling import MIN_VARYING
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.crosscoders.sparse_step.kernels import gather_sum
from sae_lens_crosscoder.crosscoders.sparse_step.pairs import pairs_of
from sae_lens_crosscoder.storage.accumulators import Accumulator


class ReconstructedDirections(Accumulator):
    """Accumulates `v_j^m = Cov(f_j, hhat^m) / Var(f_j)`: what all latents together write into model m when j is on.

    It contains what other latents write on the same tokens, so it presumes that latents fire independently of each
    other. Where they do not, as in real models, it is too long in the other model, never too short: latents are
    acquitted too rarely.

    Args:
        latents: the chosen ones. Two float64 numbers per latent and activation coordinate are kept.
    """

    buffers = ("n_tokens", "_y", "_f_y", "_f2_y", "_f1", "_f2", "_f2_y2")

    def __init__(self, crosscoder: InferenceCrosscoder, latents: Int[Tensor, " chosen"]) -> None:
        self.crosscoder = crosscoder
        device = crosscoder.W_dec.device
        self._position = torch.full((crosscoder.cfg.d_sae,), -1, device=device)
        self._position[latents.to(device)] = torch.arange(len(latents), device=device)
        self.n_tokens = 0
        # Reconstructions are counted from the decoder bias, which drops out of a covariance and would cost digits.
        self._y = torch.zeros(crosscoder.cfg.d_in, dtype=torch.float64, device=device)
        self._f_y, self._f2_y = (self._y.new_zeros(len(latents), crosscoder.cfg.d_in) for _ in range(2))
        self._f1, self._f2 = (self._y.new_zeros(len(latents), 1) for _ in range(2))
        self._f2_y2 = self._y.new_zeros(len(latents), crosscoder.layout.n_sources)

    @torch.no_grad()
    def add(
        self,
        activations: Float[Tensor, "token d_in"],
        feature_acts: Float[Tensor, "token d_sae"],
        reconstruction: Float[Tensor, "token d_in"],
    ) -> None:
        """Add tokens: raw stacked activations, their encoding and their reconstruction."""
        pairs, values = pairs_of(feature_acts)
        chosen, inside = pairs.of_chosen(self._position, len(self._f1))
        order, token, starts = chosen.by_latent
        position, f = chosen.latent[order], values[inside][order].double()
        y = reconstruction.double() - self.crosscoder.b_dec.double()
        self.n_tokens += len(y)
        self._y += y.sum(dim=0)
        self._f_y += gather_sum(y, token, starts, f)
        self._f2_y += gather_sum(y, token, starts, f.square())
        squares = self.crosscoder.layout.norms(y).square()[token]
        f = f[:, None]
        for total, parts in ((self._f1, f), (self._f2, f.square()), (self._f2_y2, f.square() * squares)):
            total.index_add_(0, position, parts)

    def norms(self) -> Float[Tensor, "chosen model"]:
        """|v^m| in the space the crosscoder was trained in; nan for a latent that hardly varies."""
        covariance = self._f_y - self._f1 * self._mean()
        return self._in_trained_space(self.crosscoder.layout.norms(covariance))

    def noise(self) -> Float[Tensor, "chosen model"]:
        """Noise floor of |v^m|, `sqrt(sum f^2 |hhat^m - mean|^2) / (n Var f)`, in the same space."""
        layout, mean = self.crosscoder.layout, self._mean()
        cross = [part.sum(dim=-1) for part in layout.split(self._f2_y * mean)]
        squares = self._f2_y2 - 2 * torch.stack(cross, dim=-1) + self._f2 * layout.norms(mean).square()
        return self._in_trained_space(squares.clamp(min=0).sqrt())

    def _mean(self) -> Float[Tensor, " d_in"]:
        return self._y / max(self.n_tokens, 1)

    def _in_trained_space(self, lengths: Float[Tensor, "chosen model"]) -> Float[Tensor, "chosen model"]:
        """Divide by `n Var f`, and scale as training did."""
        variation = self._f2 - self._f1.square() / max(self.n_tokens, 1)
        varies = variation > MIN_VARYING * self._f2
        return torch.where(varies, lengths / variation, torch.nan) * self.crosscoder.activation_scales.double()
