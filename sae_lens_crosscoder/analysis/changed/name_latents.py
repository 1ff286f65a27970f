"""Names the latents that carry a change: rho, energies and gates of a crosscoder, against those of decoys."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.activations.contrast_rows import ContrastRows
from sae_lens_crosscoder.analysis.changed.changed import TURNED, Changed
from sae_lens_crosscoder.analysis.changed.gate import Gate, gate
from sae_lens_crosscoder.analysis.changed.rho import rho_of
from sae_lens_crosscoder.analysis.changed.significance import Q_LIMIT, decoy_q_values
from sae_lens_crosscoder.analysis.changed.written import written_contrast, written_mean
from sae_lens_crosscoder.analysis.contrasts.concepts import target_of
from sae_lens_crosscoder.analysis.contrasts.group_differences import group_differences, separation
from sae_lens_crosscoder.analysis.contrasts.shares import shares
from sae_lens_crosscoder.analysis.diagnosis.classes import ONE_SIDED, delta_norm, labels_of
from sae_lens_crosscoder.analysis.diagnosis.manifest import provenance
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.crosscoders.two_models import TwoModels

_MOST_SEPARATIONS = 4096
"""Latents whose AUROC is measured, those with the largest shares."""


@dataclass(frozen=True)
class DecoyReading:
    """Statistics of the latents of a crosscoder trained on a decoy pair."""

    rho: Float[Tensor, " d_sae"]
    written: Mapping[str, Float[Tensor, " d_sae"]]
    """v_j by the name of the contrast."""


def decoy_reading(crosscoder: InferenceCrosscoder, contrasts: Sequence[ContrastRows]) -> DecoyReading:
    """Read a decoy's crosscoder on the contrasts as the decoy pair has them."""
    written = {contrast.name: written_contrast(crosscoder, contrast) for contrast in contrasts}
    return DecoyReading(rho_of(crosscoder), written)


def name_latents(
    crosscoder: InferenceCrosscoder,
    contrasts: Sequence[ContrastRows],
    decoys: Sequence[DecoyReading],
    size: float,
) -> Changed:
    """Name the latents that turned and carry a contrast that passes the gate.

    Args:
        decoys: readings of crosscoders trained in the same way on pairs that differ by random maps.
        size: median size of the difference of those pairs, relative to the norm.
    """
    q_rho = decoy_q_values(rho := rho_of(crosscoder), torch.cat([decoy.rho for decoy in decoys]))
    gates = {contrast.name: gate(contrast, crosscoder.layout, size) for contrast in contrasts}
    effects = {
        contrast.name: _effects(
            crosscoder, contrast, torch.cat([decoy.written[contrast.name] for decoy in decoys]), len(contrasts)
        )
        for contrast in contrasts
    }
    passed = [name for name in gates if gates[name].is_passed]
    norms = crosscoder.decoder_norms.detach().double()
    latents = pd.DataFrame({"delta_norm": delta_norm(norms).cpu().numpy(), "label": labels_of(norms)})
    latents.index.name = "latent"
    is_turned = (q_rho <= Q_LIMIT).numpy() & ~latents["label"].isin(ONE_SIDED).to_numpy()
    latents["class"] = latents["label"].where(~is_turned, TURNED)
    latents["rho"], latents["q_rho"] = rho.numpy(), q_rho.numpy()
    latents["written"] = sum((effects[name]["written"] for name in passed), start=pd.Series(0.0, latents.index))
    latents["q_written"] = (
        pd.concat([effects[name]["q_written"] for name in passed], axis=1).min(axis=1) if passed else float("nan")
    )
    latents["named"] = (latents["q_rho"] <= Q_LIMIT) & (latents["q_written"] <= Q_LIMIT)
    rows = {
        contrast.name: _contrast_row(crosscoder, contrast, gates[contrast.name], effects[contrast.name], latents, size)
        for contrast in contrasts
    }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("contrast")
    manifest = {**provenance(crosscoder), "n_decoys": len(decoys), "size": size, "q_limit": Q_LIMIT}
    named = [effect.assign(contrast=name) for name, effect in effects.items()]
    return Changed(latents, pd.concat(named), table, manifest)


def _effects(
    crosscoder: InferenceCrosscoder, contrast: ContrastRows, decoys: Float[Tensor, " _"], n_contrasts: int
) -> pd.DataFrame:
    """The effects of one contrast, a row per latent."""
    written = written_contrast(crosscoder, contrast)
    u, u_error = written_mean(crosscoder, group_differences(crosscoder, *contrast.part(held_out=False)))
    held_out = group_differences(crosscoder, *contrast.part(held_out=True))
    share = shares(held_out.feature_acts, *target_of(TwoModels.of(crosscoder), held_out, contrast.model, "difference"))
    ids = share.abs().nan_to_num(0).argsort(descending=True, stable=True)[:_MOST_SEPARATIONS]
    area = torch.full_like(share, torch.nan)
    area[ids] = separation(crosscoder, *contrast.part(held_out=True), ids)
    columns = {
        "written": written,
        "q_written": (n_contrasts * decoy_q_values(written, decoys)).clamp(max=1),
        "u": u,
        "u_standard_error": u_error,
        "share": share,
        "auroc": torch.maximum(area, 1 - area),
        "direction": torch.where(area < 0.5, -1, 1),
        "on_positive": held_out.frac_on_positive,
        "on_negative": held_out.frac_on_negative,
    }
    table = pd.DataFrame({name: column.numpy() for name, column in columns.items()})
    return table.rename_axis("latent")


def _contrast_row(
    crosscoder: InferenceCrosscoder,
    contrast: ContrastRows,
    found: Gate,
    effects: pd.DataFrame,
    latents: pd.DataFrame,
    size: float,
) -> dict[str, Any]:
    named = effects[latents["named"]]
    held_out = group_differences(crosscoder, *contrast.part(held_out=True))
    _, vector = target_of(TwoModels.of(crosscoder), held_out, contrast.model, "difference")
    base, chat = (bias.detach().double().cpu() for bias in crosscoder.decoder_biases)
    return {
        "ratio": found.times,
        "ratio_of_controls": max(found.control_ratios) / found.size,
        "p_gate": found.p_value,
        "gate": found.is_passed,
        "coverage": float(effects["share"].sum()),
        "share_named": float(named["share"].sum()),
        "share_of_biases": float((chat - base) @ vector / vector.square().sum()),
        "best_auroc": float(named["auroc"].max()),
        "n_prompts": len(contrast.positive),
        "n_positive": int(contrast.positive.sum()),
    }
