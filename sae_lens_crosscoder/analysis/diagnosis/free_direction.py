"""Free directions: the direction of a latent in each model that the data prefer, whatever its decoder.

Latent Scaling probes both models along one direction. A concept that fine-tuning turned to another direction is then
absent from the base model, although it is there. Here each model's direction is the one that the data prefer.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.crosscoders.sparse_step.kernels import gather_sum
from sae_lens_crosscoder.crosscoders.sparse_step.pairs import pairs_of
from sae_lens_crosscoder.storage.accumulators import Accumulator


class FreeDirections(Accumulator):
    """Accumulates `v_j^m = sum_t f_j y^m / sum_t f_j^2` for chosen latents; y is the error with the latent put back.

    v is the least-squares answer to "what does model m write when latent j is on?", and equals the decoder direction
    when the crosscoder has converged and the decoder was free to follow.

    Args:
        latents: the chosen ones. Two float64 numbers per latent and activation coordinate are kept.
        n_sources: number of sources that the loss averaged over; None for those of the crosscoder.
    """

    buffers = ("_f_error", "_f3_error", "_f1", "_f2", "_f4", "_f2_error2", "_f2_per_error")

    def __init__(
        self, crosscoder: InferenceCrosscoder, latents: Int[Tensor, " chosen"], n_sources: int | None = None
    ) -> None:
        self.crosscoder = crosscoder
        self._n_sources = n_sources or crosscoder.layout.n_sources
        self.latents = latents.to(crosscoder.W_dec.device)
        self._position = torch.full((crosscoder.cfg.d_sae,), -1, device=self.latents.device)
        self._position[self.latents] = torch.arange(len(latents), device=self.latents.device)
        zeros = torch.zeros(len(latents), crosscoder.cfg.d_in, dtype=torch.float64, device=self.latents.device)
        self._f_error, self._f3_error = zeros, zeros.clone()
        self._f1, self._f2, self._f4 = (torch.zeros_like(zeros[:, :1]) for _ in range(3))
        self._f2_error2 = zeros.new_zeros(len(latents), crosscoder.layout.n_sources)
        self._f2_per_error = torch.zeros_like(self._f2_error2)

    @torch.no_grad()
    def add(
        self,
        activations: Float[Tensor, "token d_in"],
        feature_acts: Float[Tensor, "token d_sae"],
        reconstruction: Float[Tensor, "token d_in"],
    ) -> None:
        """Add tokens: raw stacked activations, their encoding and their reconstruction."""
        pairs, values = pairs_of(feature_acts)
        chosen, inside = pairs.of_chosen(self._position, len(self.latents))
        order, token, starts = chosen.by_latent
        position, f = chosen.latent[order], values[inside][order].double()
        precision = torch.promote_types(activations.dtype, torch.float32)  # half-precision sums lose digits
        error = activations.to(precision) - reconstruction.to(precision)
        for power, total in ((1, self._f_error), (3, self._f3_error)):
            total += gather_sum(error, token, starts, f.pow(power).to(precision))
        f, lengths = f[:, None], self.crosscoder.layout.norms(error).double()[token]
        for total, parts in (
            (self._f1, f),
            (self._f2, f.square()),
            (self._f4, f.pow(4)),
            (self._f2_error2, (f * lengths).square()),
            (self._f2_per_error, f.square() / lengths),
        ):
            total.index_add_(0, position, parts)

    def directions(self) -> tuple[Float[Tensor, "chosen d_model"], ...]:
        """v^m of every model, in the units of the saved decoder; nan for a latent that never fires."""
        return self.crosscoder.layout.split(self.crosscoder.W_dec[self.latents].detach().double() + self._excess())

    def norms(self) -> Float[Tensor, "chosen model"]:
        """|v^m| in the space the crosscoder was trained in."""
        scales = self.crosscoder.activation_scales.double()
        return self.crosscoder.layout.norms(self.crosscoder.layout.stack(self.directions())) * scales

    def noise(self) -> Float[Tensor, "chosen model"]:
        """Noise floor of |v^m|: root mean square length of v under noise alone.

        `sqrt(sum f^2 |y - f v|^2) / sum f^2`, in the space the crosscoder was trained in.
        """
        layout, excess = self.crosscoder.layout, self._excess()
        # y - f v is the error less f times the excess, so no residual per latent is formed.
        dots = [g * e for g, e in zip(layout.split(excess), layout.split(self._f3_error), strict=True)]
        cross = torch.stack([dot.sum(dim=-1) for dot in dots], dim=-1)
        squares = self._f2_error2 - 2 * cross + self._f4 * layout.norms(excess).square()
        return squares.clamp(min=0).sqrt() / self._f2 * self.crosscoder.activation_scales.double()

    def angles(self) -> Float[Tensor, " chosen"]:
        """Degrees between the models' v: nan where either is below its noise floor, and unless two widths are equal."""
        layout = self.crosscoder.layout
        if not layout.is_pair or not layout.same_width:
            return self._f2.new_full((len(self.latents),), torch.nan)
        base, chat = self.directions()
        cosine = torch.nn.functional.normalize(base, dim=-1) * torch.nn.functional.normalize(chat, dim=-1)
        degrees = cosine.sum(dim=-1).clamp(-1, 1).arccos().rad2deg()
        return torch.where((self.norms() > self.noise()).all(dim=-1), degrees, torch.nan)

    def rho_limit(self) -> Float[Tensor, " chosen"]:
        """Limit of rho below which a zero decoder norm is uninformative, for L1 crosscoders of a pair.

        If the other model has the latent at a share rho of its own model's, a zero norm there is stationary up to this
        rho: the penalty for writing at all outweighs what writing would explain. From the stationarity condition of
        `(1/M) sum_m |eps^m| + mu f (n_base + n_chat)`, or of its squared form, taking the rest of the error as
        independent of the latent. nan for other architectures, 0 for scores in which a zero norm costs nothing.
        """
        details = getattr(self.crosscoder.cfg.metadata, "training_architecture_details", None) or {}
        mu, layout = details.get("l1_coefficient"), self.crosscoder.layout
        if mu is None or not layout.is_pair:
            return self._f2.new_full((len(self.latents),), torch.nan)
        if self.crosscoder.cfg.score != "sum":
            return self._f2.new_zeros(len(self.latents))
        own = self.crosscoder.decoder_norms[self.latents].argmax(dim=-1, keepdim=True)
        gain = 2 * self._f2
        if details.get("reconstruction_loss") == "l2_norm":
            gain = self._f2_per_error.gather(-1, 1 - own) / self._n_sources
            gain = gain / self.crosscoder.activation_scales.double()[1 - own]
        return (mu * self._f1 / (gain * self.norms().gather(-1, own)))[:, 0]

    def columns(self) -> Mapping[str, Float[Tensor, " d_sae"]]:
        """Columns of the latent table; nan for latents that were not chosen."""
        norms, noise = self.norms(), self.noise()
        of_pair = 1.0 if self.crosscoder.layout.is_pair else torch.nan
        parts = {
            "nu_free": norms[:, 0] / norms[:, -1] * of_pair,
            "angle_degrees": self.angles(),
            "rho_limit": self.rho_limit(),
        }
        for m, name in enumerate(self.crosscoder.layout.names):
            parts |= {f"free_norm_{name}": norms[:, m], f"free_noise_{name}": noise[:, m]}
        return {name: self._spread(part) for name, part in parts.items()}

    def _excess(self) -> Float[Tensor, "chosen d_in"]:
        """Difference of v and the decoder; 0 / 0 is nan, as it should be."""
        return self._f_error / self._f2

    def _spread(self, chosen: Float[Tensor, " chosen"]) -> Float[Tensor, " d_sae"]:
        column = chosen.new_full((self.crosscoder.cfg.d_sae,), torch.nan)
        column[self.latents] = chosen
        return column
