"""Save a crosscoder in the layout of the paper's authors, for their library and tools."""

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.canonical import Weights, fold_activation_scales
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, validate_inference
from sae_lens_crosscoder.crosscoders.scores import score_norms
from sae_lens_crosscoder.loading.formats.dictionary_learning import NORM_IDS, NORM_NAMES
from sae_lens_crosscoder.loading.formats.exported import FILENAME, exported_settings
from sae_lens_crosscoder.storage.atomic import write_text_atomically
from sae_lens_crosscoder.storage.tensor_files import save_tensors

_NONE_ID = 4


@validate_arguments
@torch.no_grad()
def save_dictionary_learning(crosscoder: InferenceCrosscoder, folder: str | Path, k: int | None = None) -> Path:
    """Save `model.safetensors` and its configs for `dictionary_learning`, and return the folder.

    Their `CrossCoder.from_pretrained(folder, from_hub=True)` loads it (`BatchTopKCrossCoder` if there is a threshold),
    and so does `slc.load`. Activation scales and means become their normaliser, with one factor per model, for which
    they need their library of July 2025 or later; without a normaliser any version loads it. They have no norm `max`:
    such a crosscoder is saved with the norm `none`, which selects the same latents. `trainer_config.json` keeps what
    their layout has no place for: hook, models, dropped tokens and the partition; `slc.load` reads it back.

    Args:
        k: the k of a BatchTopK crosscoder, part of their file; by default that of its training.

    Raises:
        ValueError: unless it is an inference crosscoder of two models of equal width with a known k, and with the same
            threshold for all latents in the norm of its training.
    """
    crosscoder = validate_inference(crosscoder, "save_dictionary_learning")
    cfg = crosscoder.cfg
    if cfg.metadata.scales_given_after_training:
        raise ValueError(
            f"activation_scales={cfg.activation_scales} were given after training, and dictionary_learning would "
            "select in the scaled space. Export the crosscoder as it was loaded, without activation_scales."
        )
    if not cfg.layout.is_pair or not cfg.layout.same_width:
        raise ValueError(
            f"d_models={cfg.d_models} cannot be saved: dictionary_learning needs two models of equal width."
        )
    weights, theta = _in_trained_units(crosscoder)
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
        "code_normalization": NORM_NAMES[norm_id],
        "target_rms": 1.0,
    }
    if theta is not None:
        settings["k"] = _k(crosscoder, k)
        tensors |= {"k": torch.tensor(settings["k"], dtype=torch.int), "threshold": torch.tensor(theta)}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(tensors, folder / "model.safetensors")
    write_text_atomically(json.dumps(settings, indent=2), folder / "config.json")
    write_text_atomically(json.dumps(exported_settings(crosscoder), indent=2), folder / FILENAME)
    return folder


def _norm_id(crosscoder: InferenceCrosscoder) -> int:
    """Their id of the norm; `none` for `max`, as both compare the same activations with the threshold."""
    return next((norm_id for norm_id, name in NORM_IDS.items() if name == crosscoder.cfg.score_norm), _NONE_ID)


def _in_trained_units(crosscoder: InferenceCrosscoder) -> tuple[Weights, float | None]:
    """Return weights in the space of training, and the threshold on scores there (None: ReLU)."""
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
                "Some thresholds of this crosscoder are 0 and others are not: dictionary_learning stores one for all "
                "latents."
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
            f"The thresholds of this crosscoder, in units of its norm (score_norm={cfg.score_norm!r}), are between "
            f"{of_latents.min():g} and {of_latents.max():g}; dictionary_learning stores one for all latents."
        )
    return weights, theta.item()


def _normaliser(crosscoder: InferenceCrosscoder) -> dict[str, Tensor]:
    """Return the tensors of their normaliser; none if activations are read raw, so that every version loads the file.

    Only the factor is used. The std, which is unknown, is set so that its sum of squares agrees with the factor.
    """
    if crosscoder.cfg.activation_scales is None and crosscoder.cfg.activation_means is None:
        return {}
    scales = crosscoder.activation_scales
    width = crosscoder.cfg.layout.d_models[0]
    return {
        "activation_mean": torch.stack(crosscoder.layout.split(crosscoder.activation_means)),
        "activation_std": (1 / (scales * width**0.5))[:, None].expand(2, width),
        "activation_global_scale": scales,
        "target_rms": torch.tensor(1.0),
    }


def _k(crosscoder: InferenceCrosscoder, k: int | None) -> int:
    metadata = crosscoder.cfg.metadata
    known = k or metadata.k or (metadata.training_architecture_details or {}).get("k")
    if known is None:
        raise ValueError("The k of this BatchTopK crosscoder is unknown, but dictionary_learning stores it: pass k=...")
    return round(known)
