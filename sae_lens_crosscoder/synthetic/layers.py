"""Planted concepts that start at a layer of a model and stay from there on, and the layers at which they are found."""

from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, validate_inference
from sae_lens_crosscoder.stacking import StackedLayout

# As in `planted.py`: far from the small seeds that a crosscoder starts from.
_SEEDS = 1_800_000_000


@dataclass(frozen=True)
class LayeredTokens:
    """Sampled activations with the planted coefficients behind them."""

    activations: Float[Tensor, "token d_in"]
    coefficients: Float[Tensor, "token concept"]


class LayeredWorld:
    """Equally many concepts start at every layer. A concept writes its layer and all later ones, turning as it goes.

    >>> world = LayeredWorld(n_per_layer=2, n_layers=3, d_model=8)
    >>> world.starts.tolist(), tuple(world.sample(5, seed=0).activations.shape)
    ([0, 0, 1, 1, 2, 2], (5, 24))

    Args:
        n_per_layer: concepts that start at each layer.
        firing_probability: of every concept on a token, independent of the others.
        turn_degrees: angle by which a concept's direction turns from a layer to the next.
        noise: standard deviation of the Gaussian noise on every coordinate.
    """

    def __init__(
        self,
        n_per_layer: int = 16,
        n_layers: int = 4,
        d_model: int = 32,
        *,
        seed: int = 0,
        firing_probability: float = 0.04,
        turn_degrees: float = 30.0,
        noise: float = 0.02,
    ) -> None:
        if min(n_per_layer, n_layers - 1, d_model) < 1:
            raise ValueError(
                f"n_per_layer={n_per_layer} and d_model={d_model} must be at least 1, n_layers={n_layers} at least 2."
            )
        if not 0 < firing_probability < 1:
            raise ValueError(f"firing_probability={firing_probability} must lie between 0 and 1.")
        hook_names = tuple(f"blocks.{layer}.hook_resid_post" for layer in range(n_layers))
        self.layout = StackedLayout((d_model,) * n_layers, hook_names)
        self.starts: Int[Tensor, " concept"] = torch.arange(n_layers).repeat_interleave(n_per_layer)
        """The layer at which each concept starts, counted from 0."""
        self.firing_probability, self.noise = firing_probability, noise
        generator = torch.Generator().manual_seed(_SEEDS + seed)
        angle = torch.tensor(turn_degrees).deg2rad()
        direction = _units(len(self.starts), d_model, generator)
        parts: list[Tensor] = []
        for layer in range(n_layers):
            parts.append(direction * (self.starts <= layer)[:, None])
            aside = _units(len(self.starts), d_model, generator)
            aside = torch.nn.functional.normalize(aside - (aside * direction).sum(-1, keepdim=True) * direction, dim=-1)
            direction = angle.cos() * direction + angle.sin() * aside
        self.directions: Float[Tensor, "concept d_in"] = self.layout.stack(parts)
        """The direction that a concept writes at every layer, 0 before it starts."""

    @validate_arguments
    def sample(self, n_tokens: int, seed: int) -> LayeredTokens:
        """Draw tokens; one seed always gives the same ones."""
        generator = torch.Generator().manual_seed(_SEEDS + seed)
        shape = (n_tokens, len(self.starts))
        fires = torch.rand(shape, generator=generator) < self.firing_probability
        coefficients = fires * (1 + 0.25 * torch.randn(shape, generator=generator)).clamp(min=0.2)
        noise = self.noise * torch.randn(n_tokens, self.layout.d_in, generator=generator)
        return LayeredTokens(coefficients @ self.directions + noise, coefficients)


@validate_arguments
def layers_found(crosscoder: InferenceCrosscoder, world: LayeredWorld, min_cosine: float = 0.9) -> pd.DataFrame:
    """Find the latent of every planted concept, and the layer at which it says that the concept starts.

    Args:
        min_cosine: cosine between a concept and a latent's decoder over all layers, from which it counts as found.

    Returns:
        A row per concept: `start`, `latent` (the nearest), `cosine`, `found`, `reads` (the layer at which the latent's
        encoder is longest, which with weak causality is the only one), and `right`, False for concepts not found.

    Raises:
        ValueError: for a crosscoder of other widths or hooks.
    """
    crosscoder = validate_inference(crosscoder, "layers_found")
    if crosscoder.layout != world.layout:
        raise ValueError(
            f"The crosscoder reads widths {crosscoder.layout.d_models} at hooks {crosscoder.layout.hook_names}, but "
            f"the world has {world.layout.d_models} at {world.layout.hook_names}. Train it on samples of this world."
        )
    decoders = torch.nn.functional.normalize(crosscoder.W_dec.detach().cpu().float(), dim=-1)
    cosines = torch.nn.functional.normalize(world.directions, dim=-1) @ decoders.T
    cosine, latent = cosines.max(dim=-1)
    reads = crosscoder.hooks_read[latent.to(crosscoder.W_enc.device)].cpu()
    table = pd.DataFrame(
        {
            "start": world.starts.numpy(),
            "latent": latent.numpy(),
            "cosine": cosine.numpy(),
            "found": (cosine >= min_cosine).numpy(),
            "reads": reads.numpy(),
        }
    ).rename_axis("concept")
    return table.assign(right=table.found & (table.start == table.reads))


def _units(n: int, d_model: int, generator: torch.Generator) -> Float[Tensor, "n d_model"]:
    return torch.nn.functional.normalize(torch.randn(n, d_model, generator=generator), dim=-1)
