"""Histograms of every latent's scores, and its frequency by position in the context."""

from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.activations.eval_data import EvalData
from sae_lens_crosscoder.analysis.encoding import encoded
from sae_lens_crosscoder.analysis.inputs import data_source
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, validate_inference
from sae_lens_crosscoder.crosscoders.sparse_step.pairs import pairs_of


@dataclass(frozen=True)
class ActivationProfiles:
    """Distribution of every latent's activity over its scores and over positions."""

    histogram: Int[Tensor, "d_sae bin"]
    """Active tokens by score, in bins of equal width from 0 to the latent's highest score."""
    by_position: Float[Tensor, "d_sae band"]
    """Share of the tokens in each band of positions on which the latent is active; nan without tokens."""
    first_positions: tuple[int, ...]
    """First position of each band."""
    last_position: int
    """Last position of the last band: that of the last token in use."""


@validate_arguments
@torch.no_grad()
def activation_profiles(
    crosscoder: InferenceCrosscoder,
    data: EvalData,
    max_activation: pd.Series,
    *,
    n_bins: int = 24,
    n_bands: int = 16,
) -> ActivationProfiles:
    """Histogram of scores and frequency by position of every latent, in one pass over the data.

    Args:
        data: a pair with tokens, or a cache, which know the position of each token.
        max_activation: highest score of every latent, such as the column of `diagnose` on the same data; a higher score
            is counted in the last bin.
        n_bins: bins of scores.
        n_bands: bands of positions, fewer if contexts are shorter; their widths differ by one position at most.

    Raises:
        ValueError: for a training crosscoder, another pair, or another number of highest scores.
    """
    crosscoder = validate_inference(crosscoder, "activation_profiles")
    d_sae = crosscoder.cfg.d_sae
    if len(max_activation) != d_sae:
        raise ValueError(
            f"max_activation has {len(max_activation)} entries, but the crosscoder has {d_sae} latents. Pass one entry "
            "per latent."
        )
    source = data_source(crosscoder, data)
    device = crosscoder.W_dec.device
    position = data.contexts[1].nonzero()[:, 1].to(device)
    n_positions = int(position.max()) + 1
    highest = torch.tensor(max_activation.to_numpy(dtype=float), device=device)
    n_bands = min(n_bands, n_positions)
    band_of = torch.arange(n_positions, device=device) * n_bands // n_positions
    histogram = torch.zeros(d_sae * n_bins, dtype=torch.int64, device=device)
    on_in_band = torch.zeros(d_sae * n_bands, dtype=torch.int64, device=device)
    n_in_band = torch.zeros(n_bands, dtype=torch.int64, device=device)
    n_seen = 0
    with tqdm(total=source.n_tokens, desc="Profiles", unit="token", unit_scale=True, leave=False) as bar:
        for batch in source.batches():
            bands = band_of[position[n_seen : n_seen + len(batch.ordinary)][batch.ordinary.to(device)]]
            n_in_band += bands.bincount(minlength=n_bands)
            for part in encoded(crosscoder, batch.used, n_seen):
                active, scores = pairs_of(part.feature_acts)
                bins = (scores.double() / highest[active.latent] * n_bins).clamp(max=n_bins - 1).long()
                histogram += (active.latent * n_bins + bins).bincount(minlength=len(histogram))
                on_in_band += (active.latent * n_bands + bands[active.token]).bincount(minlength=len(on_in_band))
                bands = bands[len(part.activations) :]
            n_seen += len(batch.activations)
            bar.update(len(batch.activations))
    first = torch.searchsorted(band_of, torch.arange(n_bands, device=device))
    return ActivationProfiles(
        histogram.view(d_sae, n_bins).cpu(),
        (on_in_band.view(d_sae, n_bands) / n_in_band).cpu(),
        tuple(first.tolist()),
        n_positions - 1,
    )
