"""Share of each target's mean squared error that Latent Scaling explains, on data it was not fitted to."""

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.analysis.latent_scaling.latent_scaling import BASE, CHAT, LatentScaling, Target
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder


class TargetEnergies:
    """Accumulates `sum |y|^2` of every model's activation, reconstruction and error, over all tokens.

    In the space the crosscoder was trained in: activations and reconstructions are centred and scaled as it was. The
    sums are float64, one per model.
    """

    def __init__(self, crosscoder: InferenceCrosscoder) -> None:
        self.crosscoder = crosscoder
        zeros = torch.zeros(crosscoder.layout.n_sources, dtype=torch.float64, device=crosscoder.W_dec.device)
        self.activation, self.reconstruction, self.error = zeros, zeros.clone(), zeros.clone()

    @torch.no_grad()
    @validate_arguments
    def add(self, activations: Float[Tensor, "token d_in"], reconstruction: Float[Tensor, "token d_in"]) -> None:
        """Add tokens: raw stacked activations and their reconstruction."""
        h, hhat = activations.double(), reconstruction.double()
        mean, scales = self.crosscoder.activation_means.double(), self.crosscoder.activation_scales.double()
        for total, y in ((self.activation, h - mean), (self.reconstruction, hhat - mean), (self.error, h - hhat)):
            total += (scales * self.crosscoder.layout.norms(y)).square().sum(dim=0)


@validate_arguments
def mse_improvement(fitted: LatentScaling, evaluated: LatentScaling, energies: TargetEnergies) -> pd.DataFrame:
    """Share by which `beta f d` reduces the mean squared error of predicting each target as 0.

    `(2 beta S - beta^2 F2 |d|^2) / sum |y|^2`, with beta of the fitting data and the sums of the evaluation data. At
    most 1, below 0 where the factor does harm.

    Args:
        fitted: sums on the fitting data, which give beta.
        evaluated, energies: sums over one and the same evaluation data, which may be those of `fitted`.

    Returns:
        One row per latent and a column `TARGET_MODEL` for the targets activation, reconstruction and error (with the
        latent put back) of base and chat, probed with the chat model's decoder; nan where a beta is.

    Raises:
        ValueError: for sums of other crosscoders, or with other probes than the decoders.
    """
    crosscoder = evaluated.crosscoder
    if fitted.crosscoder is not crosscoder or energies.crosscoder is not crosscoder:
        raise ValueError("fitted, evaluated and energies belong to different crosscoders. Pass sums of the same one.")
    if fitted.is_control or evaluated.is_control:
        raise ValueError("These sums probe directions other than the decoders. Construct LatentScaling without probes.")
    f2 = evaluated.f2.sum(dim=0)
    # Energy of latent j's contribution f d^m, per model.
    energy = f2[:, None] * crosscoder.decoder_norms.detach().double().square()
    columns: dict[str, Tensor] = {}
    targets: tuple[Target, ...] = ("activation", "reconstruction", "error")
    for target in targets:
        for model, name in ((BASE, "base"), (CHAT, "chat")):
            total = getattr(energies, target)[model]
            if target == "error":
                # |eps + f d|^2 summed: beta of the model's own decoder is 1 + sum f <d, eps> / energy.
                excess = energy[:, model] * (2 * evaluated.beta("error", model, probe=model) - 1)
                total = total + torch.where(energy[:, model] > 0, excess, 0)
            old, new = fitted.beta(target, model), evaluated.beta(target, model)
            columns[f"{target}_{name}"] = (2 * old * new - old.square()) * energy[:, CHAT] / total
    table = pd.DataFrame({name: column.cpu().numpy() for name, column in columns.items()})
    table.index.name = "latent"
    return table
