"""Compare two sources by their weights: cosines of their directions, and Delta_norm hook by hook."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.analysis.diagnosis.classes import delta_norms, labels
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder


def cosines(crosscoder: InferenceCrosscoder, places: tuple[int, int] | None) -> dict[str, Float[Tensor, " d_sae"]]:
    """Cosine between two sources' decoders and encoders, nan where there is none, and the encoders' norm ratio.

    Args:
        places: the two sources; None for none, whose columns are nan.
    """
    layout = crosscoder.layout
    if places is None or len({layout.d_models[place] for place in places}) > 1:
        missing = torch.full((crosscoder.cfg.d_sae,), float("nan"))
        return {"cos_sim": missing, "enc_cos_sim": missing, "enc_norm_ratio": missing}

    def parts(stacked: Tensor) -> tuple[Tensor, Tensor]:
        split = layout.split(stacked.detach())
        return split[places[0]].double(), split[places[1]].double()

    decoders, encoders = parts(crosscoder.W_dec), parts(crosscoder.W_enc.T)
    return {
        "cos_sim": _cosine(*decoders),
        "enc_cos_sim": _cosine(*encoders),
        "enc_norm_ratio": encoders[1].norm(dim=-1) / encoders[0].norm(dim=-1),
    }


def delta_norm_columns(crosscoder: InferenceCrosscoder) -> dict[str, Any]:
    """Delta_norm and class of every model beside the first, hook by hook: `delta_norm_NAME`, `label_NAME`."""
    columns: dict[str, Any] = {}
    for name, delta in delta_norms(crosscoder.decoder_norms.detach().double(), crosscoder.layout).items():
        columns |= {f"delta_norm_{name}": delta.cpu().numpy(), f"label_{name}": labels(delta)}
    return columns


def _cosine(first: Float[Tensor, "d_sae _"], second: Float[Tensor, "d_sae _"]) -> Float[Tensor, " d_sae"]:
    # torch's cosine_similarity shrinks that of short vectors, which is what shrunk decoders are; 0 / 0 is nan.
    return (first * second).sum(dim=-1) / (first.norm(dim=-1) * second.norm(dim=-1))
