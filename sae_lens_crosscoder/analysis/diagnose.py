"""One table with everything that is known about every latent."""

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.activations.checks import require_finite
from sae_lens_crosscoder.activations.harvest import harvest
from sae_lens_crosscoder.activations.variance import VarianceExplained
from sae_lens_crosscoder.analysis.delta_norm import delta_norm, label
from sae_lens_crosscoder.analysis.latent_scaling import BASE, CHAT, LatentScaling
from sae_lens_crosscoder.analysis.verdict import MIN_ACTIVE, NuBounds, require_bounds, verdict
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, require_inference
from sae_lens_crosscoder.models.pair import HookedModelPair


def diagnose(
    crosscoder: InferenceCrosscoder,
    pair: HookedModelPair | None = None,
    tokens: Tensor | None = None,
    *,
    activations: Iterable[Float[Tensor, "_ d_in"]] | None = None,
    min_active: int = MIN_ACTIVE,
    bounds: NuBounds = "signed",
    batch_size_prompts: int = 32,
) -> pd.DataFrame:
    """Classify every latent and say which of the model-specific ones are genuine.

    Args:
        crosscoder: an inference crosscoder, as `CrosscoderTrainingRunner.run()` returns or `slc.load` reads.
        pair, tokens: the two models, and held-out token ids of shape (batch, pos): not those it was trained on.
        activations: instead of a pair and tokens, batches of raw stacked activations.
        min_active: latents that fire on fewer tokens get the verdict `rare`.
        bounds: whether a very negative nu also counts against a latent; see `verdict`.

    Returns:
        A row per latent. `delta_norm` says where it writes (0 base, 1 chat), `label` is its class, `nu_error` and
        `nu_reconstruction` (with 95 % bootstrap intervals `_low`, `_high`) say whether that is an artifact, `verdict`
        sums it up. Columns ending in `_base_probe` mirror the nu for base-only latents, those in `_unfiltered` keep nu
        where its denominator may be 0, and those in `_raw` (only when models were scaled differently) are in
        the space of raw activations. `.attrs` holds the manifest: versions, models, hook, number of tokens, FVE, L0.

    Raises:
        ValueError: for a training crosscoder, a pair it was not trained on, activations that are NaN, or no data.
    """
    crosscoder = require_inference(crosscoder, "diagnose")
    require_bounds(bounds)
    batches = _activation_batches(crosscoder, pair, tokens, activations, batch_size_prompts)
    scaling = LatentScaling(crosscoder)
    fve = VarianceExplained(crosscoder.layout)
    with torch.no_grad():
        for batch in tqdm(batches, desc="Diagnosing", unit="batch", leave=False):
            batch = batch.to(crosscoder.W_dec)  # which may overflow
            require_finite(batch, crosscoder.layout, f"after the first {scaling.n_tokens}")
            feature_acts = crosscoder.encode(batch)
            reconstruction = crosscoder.decode(feature_acts)
            scaling.add(batch, feature_acts, reconstruction)
            fve.add(batch, reconstruction)
    if scaling.n_tokens == 0:
        raise ValueError("There was nothing to diagnose on: the data source gave no tokens.")
    table = latent_table(crosscoder, scaling, min_active, bounds)
    table.attrs.update(_manifest(crosscoder, scaling, fve, min_active, bounds))
    return table


def latent_table(
    crosscoder: InferenceCrosscoder,
    scaling: LatentScaling,
    min_active: int = MIN_ACTIVE,
    bounds: NuBounds = "signed",
) -> pd.DataFrame:
    """The table of `diagnose`, from sums that were already streamed."""
    norms = crosscoder.decoder_norms.detach().double()
    n_active = scaling.n_active
    columns: dict[str, Tensor] = {"delta_norm": delta_norm(norms)}
    for name, norm in zip(crosscoder.layout.names, norms.unbind(dim=-1), strict=True):
        columns[f"dec_norm_{name}"] = norm
    columns |= _cosines(crosscoder)
    columns |= {
        "n_active": n_active,
        "frequency": n_active.double() / scaling.n_tokens,
        "max_activation": scaling.max_activation,
        "mean_activation": scaling.f1.sum(dim=0) / n_active,
        "dead": n_active == 0,
    }
    columns |= _scaling_columns(scaling)
    if len(set(crosscoder.activation_scales.tolist())) > 1:
        columns["delta_norm_raw"] = delta_norm(crosscoder.layout.norms(crosscoder.W_dec.detach().double()))
        for target in ("error", "reconstruction"):
            columns[f"nu_{target}_raw"] = scaling.nu(target, space="raw")
    table = pd.DataFrame({name: column.detach().cpu().numpy() for name, column in columns.items()})
    table.index.name = "latent"
    table.insert(1, "label", [label(delta) for delta in table.delta_norm])
    table.insert(2, "verdict", [_verdict(row, min_active, bounds) for row in table.to_dict("records")])
    return table


def _verdict(row: Mapping[Any, Any], min_active: int, bounds: NuBounds) -> str:
    probe = "_base_probe" if row["label"] == "base_only" else ""
    nus = (row[f"nu_error{probe}"], row[f"nu_reconstruction{probe}"])
    return verdict(row["label"], row["n_active"], *nus, min_active=min_active, bounds=bounds)


def _scaling_columns(scaling: LatentScaling) -> dict[str, Tensor]:
    columns: dict[str, Tensor] = {}
    for target in ("error", "reconstruction"):
        columns[f"nu_{target}"] = scaling.nu(target)
        columns[f"nu_{target}_low"], columns[f"nu_{target}_high"] = scaling.nu_interval(target)
    for target in ("error", "reconstruction"):
        columns[f"nu_{target}_base_probe"] = scaling.nu(target, probe=BASE)
        columns[f"nu_{target}_unfiltered"] = scaling.nu(target, significant=False)
    for target in ("activation", "reconstruction", "error"):
        for name, model in (("base", BASE), ("chat", CHAT)):
            columns[f"beta_{target}_{name}"] = scaling.beta(target, model)
    return columns


def _cosines(crosscoder: InferenceCrosscoder) -> dict[str, Tensor]:
    """Cosine between the models' decoders and encoders, nan where there is none, and the encoders' norm ratio."""
    layout = crosscoder.layout
    if not layout.same_width or layout.n_models != 2:
        missing = torch.full((crosscoder.cfg.d_sae,), float("nan"))
        return {"cos_sim": missing, "enc_cos_sim": missing, "enc_norm_ratio": missing}
    W_dec, W_enc = crosscoder.W_dec.detach().double(), crosscoder.W_enc.detach().double().T
    encoder_norms = layout.norms(W_enc)

    def cosine(stacked: Tensor) -> Tensor:
        # torch's cosine_similarity shrinks that of short vectors, which is what shrunk decoders are; 0 / 0 is nan.
        base, chat = layout.split(stacked)
        return (base * chat).sum(dim=-1) / layout.norms(stacked).prod(dim=-1)

    return {
        "cos_sim": cosine(W_dec),
        "enc_cos_sim": cosine(W_enc),
        "enc_norm_ratio": encoder_norms[:, CHAT] / encoder_norms[:, BASE],
    }


def _activation_batches(
    crosscoder: InferenceCrosscoder,
    pair: HookedModelPair | None,
    tokens: Tensor | None,
    activations: Iterable[Float[Tensor, "_ d_in"]] | None,
    batch_size_prompts: int,
) -> Iterable[Float[Tensor, "_ d_in"]]:
    if activations is not None:
        if pair is not None or tokens is not None:
            raise ValueError("Give either a pair with tokens or activations, not both.")
        return activations
    if pair is None or tokens is None:
        raise ValueError("diagnose needs data: give pair= and tokens= (batch, pos), or activations=.")
    metadata = crosscoder.cfg.metadata
    pair.require_trained_on(metadata.model_name, metadata.chat_model_name)
    if metadata.hook_name is None:
        raise ValueError(
            "This crosscoder does not say which hook it was trained on: set crosscoder.cfg.metadata.hook_name, "
            "such as 'blocks.13.hook_resid_post'."
        )
    return harvest(pair, tokens, metadata.hook_name, batch_size_prompts)


def _manifest(
    crosscoder: InferenceCrosscoder, scaling: LatentScaling, fve: VarianceExplained, min_active: int, bounds: NuBounds
) -> dict[str, Any]:
    metadata = crosscoder.cfg.metadata
    return {
        "versions": {name: version(name) for name in ("sae-lens-crosscoder", "sae-lens", "transformer-lens", "torch")},
        "architecture": crosscoder.cfg.architecture(),
        "models": [metadata.model_name, metadata.chat_model_name],
        "hook_name": metadata.hook_name,
        "dataset_path": metadata.dataset_path,
        "seed": metadata.seed,
        "space": "raw" if crosscoder.cfg.activation_scales is None else "trained (scaled)",
        "score": crosscoder.cfg.score,
        "n_tokens": scaling.n_tokens,
        "min_active": min_active,
        "bounds": bounds,
        "fve": {**fve.per_model(), "pooled": fve.pooled()},
        "l0": float(scaling.n_active.sum()) / scaling.n_tokens,
    }
