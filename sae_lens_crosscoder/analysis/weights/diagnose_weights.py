"""diagnose_weights: read from the weights all that they tell, without models and data."""

from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.analysis.changed.rho import rho_of
from sae_lens_crosscoder.analysis.decoupling.decoder_pairs import decoupled_pairs
from sae_lens_crosscoder.analysis.diagnosis.classes import delta_norm, norms_of_pair, pairs_by_name
from sae_lens_crosscoder.analysis.diagnosis.directions import cosines, delta_norm_columns
from sae_lens_crosscoder.analysis.diagnosis.manifest import provenance
from sae_lens_crosscoder.analysis.weights.needs import needs_of
from sae_lens_crosscoder.analysis.weights.result import WeightDiagnosis
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, validate_inference
from sae_lens_crosscoder.stacking import StackedLayout

_NO_PAIRS = {"chat_latent": "int64", "base_latent": "int64", "cosine": "float64", "isolated": "bool"}


@validate_arguments
@torch.no_grad()
def diagnose_weights(crosscoder: InferenceCrosscoder, *, min_cosine: float = 0.9) -> WeightDiagnosis:
    """Classify latents by the weights alone: no model is loaded, and no data is needed.

    Delta_norm and the classes that it defines are exact. Whether a one-sided latent is genuine, and everything about
    how often latents fire, is not in the weights: `needs` lists it.

    Args:
        crosscoder: an inference crosscoder, as `slc.load` reads it from any published layout.
        min_cosine: threshold for decoupled pairs, see `decoupled_pairs`.

    Returns:
        Tables. `latents` has `dec_norm_NAME` for every source, `threshold` (0 for ReLU) and `b_enc` in units of scores,
        `dead` (its decoder is 0; others may never fire either), and for two models at one hook `delta_norm`, `label`,
        `cos_sim` and `enc_cos_sim` (of the two decoders, and encoders), `enc_norm_ratio` (chat over base), `rho`, and
        `delta_norm_raw` if models were scaled differently. With more models or hooks, `delta_norm_NAME`, `label_NAME`
        and `cos_sim_NAME` compare source NAME with the first model at the same hook; of one model at several hooks,
        `cos_sim_NAME` compares NAME with the hook before it. `hook_read` is the hook that a latent reads most.

    Raises:
        ValueError: for a training crosscoder, a plain SAE, or a `min_cosine` outside (0, 1).
    """
    crosscoder = validate_inference(crosscoder, "diagnose_weights")
    latents = _latents(crosscoder)
    compared = list(pairs_by_name(crosscoder.layout))
    if crosscoder.layout.is_pair and crosscoder.layout.same_width:
        pairs = decoupled_pairs(crosscoder, latents, min_cosine)
    else:
        pairs = pd.DataFrame({name: pd.Series(dtype=dtype) for name, dtype in _NO_PAIRS.items()})
    metadata, threshold = crosscoder.cfg.metadata, latents["threshold"]
    manifest: dict[str, Any] = {
        "layout": metadata.converted_from or "sae_lens_crosscoder",
        **provenance(crosscoder),
        "compared": compared,
        "n_latents": len(latents),
        "threshold": {"lowest": threshold.min(), "median": threshold.median(), "highest": threshold.max()},
        "min_cosine": min_cosine,
        "needs": needs_of(crosscoder),
    }
    for name in ("k", "dropped_tokens", "causality", "frac_written_to_earlier_layers"):
        if getattr(metadata, name, None) is not None:
            manifest[name] = getattr(metadata, name)
    return WeightDiagnosis(latents, _sources(crosscoder), pairs, manifest)


def _latents(crosscoder: InferenceCrosscoder) -> pd.DataFrame:
    layout, norms = crosscoder.layout, crosscoder.decoder_norms.detach().double().cpu()
    columns: dict[str, Any] = {}
    if layout.is_pair:
        of_pair = delta_norm_columns(crosscoder)
        columns |= {name.removesuffix("_chat"): column for name, column in of_pair.items()}
        columns |= _numpy({**cosines(crosscoder, (0, 1)), "rho": rho_of(crosscoder)})
        if len(set(crosscoder.activation_scales.tolist())) > 1:
            raw = layout.norms(crosscoder.W_dec.double())
            columns |= _numpy({"delta_norm_raw": delta_norm(norms_of_pair(raw, layout))})
    else:
        columns |= delta_norm_columns(crosscoder)
        for name, places in _compared_directions(layout).items():
            columns |= _numpy({f"cos_sim_{name}": cosines(crosscoder, places)["cos_sim"]})
    if layout.hook_names:
        columns["hook_read"] = [layout.hook_names[hook] for hook in crosscoder.hooks_read.tolist()]
    if (partition := crosscoder.cfg.partition) is not None:
        columns["exclusive"] = partition.is_exclusive(len(norms)).numpy()
    columns |= _numpy({f"dec_norm_{name}": norms[:, place] for place, name in enumerate(layout.names)})
    columns |= _numpy({"threshold": crosscoder.thresholds.double(), "b_enc": crosscoder.b_enc.double()})
    return pd.DataFrame({**columns, "dead": (norms.sum(dim=-1) == 0).numpy()}).rename_axis("latent")


def _compared_directions(layout: StackedLayout) -> dict[str, tuple[int, int]]:
    """Sources whose decoders are compared, by the name of the second; of one model, every hook with the one before."""
    if layout.n_models > 1:
        return pairs_by_name(layout)
    return {layout.names[place]: (place - 1, place) for place in range(1, layout.n_sources)}


def _sources(crosscoder: InferenceCrosscoder) -> pd.DataFrame:
    layout, norms = crosscoder.layout, crosscoder.decoder_norms.detach().double()
    n_hooks = max(1, len(layout.hook_names))
    largest = norms.argmax(dim=-1)[norms.sum(dim=-1) > 0].bincount(minlength=layout.n_sources)
    biases = [bias.detach().double() for bias in crosscoder.decoder_biases]
    first = {places[1]: places[0] for places in _compared_directions(layout).values()}
    rows = {
        name: {
            "model": crosscoder.model_names[place // n_hooks],
            "d_model": layout.d_models[place],
            "activation_scale": float(crosscoder.activation_scales[place]),
            "mean_dec_norm": float(norms[:, place].mean()),
            "median_dec_norm": float(norms[:, place].median()),
            "n_largest": int(largest[place]),
            "b_dec_norm": float(biases[place].norm()),
            "b_dec_cos": _cosine(biases[place], biases[first[place]]) if place in first else float("nan"),
        }
        for place, name in enumerate(layout.names)
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("source")


def _cosine(one: Float[Tensor, " d_one"], other: Float[Tensor, " d_other"]) -> float:
    if len(one) != len(other):
        return float("nan")
    return float(one @ other / (one.norm() * other.norm()))  # 0 / 0 is nan


def _numpy(columns: dict[str, Tensor]) -> dict[str, Any]:
    return {name: column.detach().cpu().numpy() for name, column in columns.items()}
