"""Writes a crosscoder in the layout of the paper's authors, for their library and their tools."""

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from sae_lens_crosscoder.crosscoders.canonical import Weights, fold_activation_scales
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, require_inference
from sae_lens_crosscoder.crosscoders.scores import score_norms
from sae_lens_crosscoder.loading.formats.dictionary_learning import NORM_IDS

_NORM_NAMES = {1: "CROSSCODER", 2: "SAE", 3: "MIXED", 4: "NONE"}
_NONE_ID = 4


@torch.no_grad()
def save_dictionary_learning(crosscoder: InferenceCrosscoder, folder: str | Path, k: int | None = None) -> Path:
    """Write `model.safetensors` and `config.json`, which `dictionary_learning` loads as the same function; the folder.

    Their `CrossCoder.from_pretrained(folder, from_hub=True)` reads it (`BatchTopKCrossCoder` where there is a
    threshold), and so does `slc.load`. Activation scales and means become their normaliser; with different scales
    for the two models, only versions of their library from 2026 on read it. They have no norm `max`: such a crosscoder
    is written with the norm `none`, which selects the same latents.

    Args:
        k: the k of a BatchTopK crosscoder, which their file holds; by default the one it was trained with.

    Raises:
        ValueError: unless it is an inference crosscoder of two models of equal width, whose k is known, and whose
            threshold is one number in the norm it was trained with.
    """
    crosscoder = require_inference(crosscoder, "save_dictionary_learning")
    cfg = crosscoder.cfg
    if cfg.layout.n_models != 2 or not cfg.layout.same_width:
        raise ValueError(
            f"dictionary_learning stores two models of equal width, but this crosscoder's are {cfg.d_models}."
        )
    weights, theta = _in_their_units(crosscoder)
    norm_id = _norm_id(crosscoder)
    split = crosscoder.layout.split
    tensors: dict[str, Tensor] = {
        "encoder.weight": torch.stack([part.T for part in split(weights.W_enc.T)]),
        "encoder.bias": weights.b_enc,
        "decoder.weight": torch.stack(split(weights.W_dec)),
        "decoder.bias": torch.stack(split(weights.b_dec)),
        **_normaliser(crosscoder),
    }
    tensors = {key: tensor.detach().float().contiguous() for key, tensor in tensors.items()}
    tensors["code_normalization_id"] = torch.tensor(norm_id)
    settings: dict[str, Any] = {
        "activation_dim": cfg.d_model,
        "dict_size": cfg.d_sae,
        "num_layers": 2,
        "code_normalization": _NORM_NAMES[norm_id],
        "target_rms": 1.0,
    }
    if theta is not None:
        settings["k"] = _k(crosscoder, k)
        tensors |= {"k": torch.tensor(settings["k"], dtype=torch.int), "threshold": torch.tensor(theta)}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(settings, indent=2))
    return folder


def _norm_id(crosscoder: InferenceCrosscoder) -> int:
    """Their id of the norm; `none` for `max`, as saved activations meet the threshold as they are under either."""
    return next((norm_id for norm_id, name in NORM_IDS.items() if name == crosscoder.cfg.score_norm), _NONE_ID)


def _in_their_units(crosscoder: InferenceCrosscoder) -> tuple[Weights, float | None]:
    """Weights in the trained space, and the threshold on scores there (None: ReLU)."""
    cfg, layout = crosscoder.cfg, crosscoder.layout
    weights = Weights(*(getattr(crosscoder, name) for name in Weights._fields))
    scales, means = crosscoder.activation_scales, crosscoder.activation_means
    weights = fold_activation_scales(weights, layout, 1 / scales, -layout.expand(scales) * means)
    thresholds: Float[Tensor, " d_sae"] | None = getattr(crosscoder, "threshold", None)
    if thresholds is None:
        return weights, None
    if _norm_id(crosscoder) == _NONE_ID:
        theta = thresholds.max()
        if theta > 0 and thresholds.min() == 0:
            raise ValueError(
                "Some thresholds of this crosscoder are 0 and others not: no one threshold can stand for them."
            )
        factors = thresholds / theta if theta > 0 else torch.ones_like(thresholds)
        # The smaller a latent's threshold, the larger its raw activation must be to meet the common one.
        weights = Weights(
            weights.W_enc / factors, weights.b_enc / factors, weights.W_dec * factors[:, None], weights.b_dec
        )
        return weights, theta.item()
    writes = crosscoder.decoder_norms.sum(dim=-1) > 0
    of_latents = (thresholds * score_norms(weights.W_dec, layout, cfg.score_norm))[writes]
    theta = of_latents.median() if len(of_latents) else thresholds.new_zeros(())
    if not torch.allclose(of_latents, theta.expand_as(of_latents), rtol=1e-4):
        raise ValueError(
            f"The thresholds of this crosscoder are not one number times its norm (score_norm={cfg.score_norm!r}), but "
            f"between {of_latents.min():g} and {of_latents.max():g} of it: the authors' layout stores only one."
        )
    return weights, theta.item()


def _normaliser(crosscoder: InferenceCrosscoder) -> dict[str, Tensor]:
    """Their normaliser's tensors, NaN where activations are read raw.

    Their std is not known any more; any will do, as only the factor is used. Its sum of squares agrees with that.
    """
    shape = (2, crosscoder.cfg.d_model)
    off = torch.full(shape, torch.nan)
    scales = crosscoder.activation_scales
    scale = scales[0] if bool((scales == scales[0]).all()) else scales
    rms = torch.tensor(1.0)
    if crosscoder.cfg.activation_scales is None and crosscoder.cfg.activation_means is None:
        return {
            "activation_mean": off,
            "activation_std": off.clone(),
            "activation_global_scale": scale,
            "target_rms": rms,
        }
    return {
        "activation_mean": torch.stack(crosscoder.layout.split(crosscoder.activation_means)),
        "activation_std": (1 / (scales * crosscoder.cfg.d_in**0.5))[:, None].expand(shape),
        "activation_global_scale": scale,
        "target_rms": rms,
    }


def _k(crosscoder: InferenceCrosscoder, k: int | None) -> int:
    metadata = crosscoder.cfg.metadata
    known = k or metadata.k or (metadata.training_architecture_details or {}).get("k")
    if known is None:
        raise ValueError(
            "dictionary_learning stores the k of a BatchTopK crosscoder, and this one's is not known: say k=..."
        )
    return round(known)
