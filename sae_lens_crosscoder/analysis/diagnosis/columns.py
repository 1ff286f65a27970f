"""Columns of the latent table, from accumulated sums."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor

from sae_lens_crosscoder.analysis.changed.rho import rho_of
from sae_lens_crosscoder.analysis.diagnosis.classes import (
    ONE_SIDED,
    delta_norm,
    labels_of,
    norms_of_pair,
)
from sae_lens_crosscoder.analysis.diagnosis.diagnosis import Diagnosis
from sae_lens_crosscoder.analysis.diagnosis.directions import cosines, delta_norm_columns
from sae_lens_crosscoder.analysis.diagnosis.free_direction import FreeDirections
from sae_lens_crosscoder.analysis.diagnosis.null_runs import largest_over_kinds, q_values
from sae_lens_crosscoder.analysis.diagnosis.verdict import (
    NuBounds,
    NuKind,
    Numbers,
    judging_nu,
    nu_free_of_other,
    nu_kind_of,
    verdicts,
)
from sae_lens_crosscoder.analysis.latent_scaling.basis_free import ReconstructedDirections
from sae_lens_crosscoder.analysis.latent_scaling.centred_scaling import CentredScaling, nu_of
from sae_lens_crosscoder.analysis.latent_scaling.latent_scaling import BASE, CHAT, LatentScaling, Target
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder

_CENTRED: dict[Target, str] = {
    "activation": "presence",
    "error": "nu_error_centred",
    "reconstruction": "nu_reconstruction_centred",
}


def one_sided_latents(
    crosscoder: InferenceCrosscoder, absent: Bool[Tensor, " d_sae"] | None = None
) -> Int[Tensor, " chosen"]:
    """Latents of class chat_only or base_only, which follow from the decoder norms alone.

    Args:
        absent: True for latents that count as writing to neither model; None for no such latent.
    """
    labels = labels_of(norms_of_pair(crosscoder.decoder_norms.detach(), crosscoder.layout, absent))
    return torch.tensor([latent for latent, name in enumerate(labels) if name in ONE_SIDED], dtype=torch.int64)


def latent_table(
    crosscoder: InferenceCrosscoder,
    centred: CentredScaling,
    free: FreeDirections,
    reconstructed: ReconstructedDirections | None,
    nulls: Sequence[Diagnosis],
    min_active: int,
    bounds: NuBounds,
    absent: Bool[Tensor, " d_sae"] | None = None,
) -> pd.DataFrame:
    """Build the table of `diagnose` from accumulated sums.

    Args:
        absent: True for latents that count as writing to neither model; None for no such latent.
        reconstructed: sums over the latents of `free`, for models without a common basis.
    """
    scaling = centred.scaling
    norms = crosscoder.decoder_norms.detach().double()
    n_active = scaling.n_active
    compared = norms_of_pair(norms, crosscoder.layout, absent)
    columns: dict[str, Tensor] = {"delta_norm": delta_norm(compared)}
    for name, norm in zip(crosscoder.layout.names, norms.unbind(dim=-1), strict=True):
        columns[f"dec_norm_{name}"] = norm
    columns |= cosines(crosscoder, (BASE, CHAT) if crosscoder.layout.is_pair else None)
    columns["rho"] = rho_of(crosscoder)
    columns |= {
        "n_active": n_active,
        "frequency": n_active.double() / scaling.n_tokens,
        "max_activation": scaling.max_activation,
        "mean_activation": scaling.f1.sum(dim=0) / n_active,
        "dead": n_active == 0,
    }
    columns |= _scaling_columns(scaling) | _centred_columns(centred)
    columns |= free.columns()
    if reconstructed is not None:
        columns |= _basis_free_columns(crosscoder, free, reconstructed)
    if len(set(crosscoder.activation_scales.tolist())) > 1 or crosscoder.cfg.activation_means is not None:
        raw = crosscoder.layout.norms(crosscoder.W_dec.detach().double())
        columns["delta_norm_raw"] = delta_norm(norms_of_pair(raw, crosscoder.layout, absent))
        for target in ("error", "reconstruction"):
            columns[f"nu_{target}_raw"] = scaling.nu(target, space="raw")
    table = pd.DataFrame({name: column.detach().cpu().numpy() for name, column in columns.items()})
    table.index.name = "latent"
    table.insert(1, "label", labels_of(compared))
    table["nu_kind"] = nu_kind(crosscoder)
    if hook_names := crosscoder.layout.hook_names:
        table.insert(2, "hook_read", [hook_names[hook] for hook in crosscoder.hooks_read.tolist()])
        table = table.assign(**delta_norm_columns(crosscoder))
    if (partition := crosscoder.cfg.partition) is not None:
        table.insert(2, "exclusive", partition.is_exclusive(len(table)).numpy())
    table["q_value"] = float("nan")
    if nulls:
        table["q_value"] = largest_over_kinds(
            nulls, lambda runs: q_values(table, [run.latents for run in runs], min_active)
        )
    shares = _shares_of_median(table.max_activation, norms)
    table.insert(2, "verdict", _verdicts(table, min_active, bounds, shares))
    table.insert(3, "probe", table.label.map({"chat_only": "chat", "base_only": "base"}))
    return table


def _shares_of_median(max_activation: pd.Series, norms: Tensor) -> pd.Series:
    """The most that each latent writes on a token, in decoder norms, over the median of all that fire."""
    written = max_activation * norms.sum(dim=-1).cpu().numpy()
    return written / written[written > 0].median()


def nu_kind(crosscoder: InferenceCrosscoder) -> NuKind:
    """Return how nu is measured for the models of this crosscoder."""
    if not crosscoder.layout.is_pair:
        return "undefined"
    return "along_decoder" if crosscoder.layout.same_width else "basis_free"


def _verdicts(table: pd.DataFrame, min_active: int, bounds: NuBounds, share_of_median: pd.Series) -> list[str]:
    is_base = (table.label == "base_only").to_numpy()

    def judging(of_chat: str, of_base: str) -> NDArray[np.float64]:
        """A number of each latent, from the column that its class is judged by."""
        own = table[of_chat].to_numpy()
        return np.where(is_base, table[of_base], own) if is_base.any() else own

    kind = nu_kind_of(table)
    nu_error, nu_reconstruction = map(judging, judging_nu(kind, "chat_only"), judging_nu(kind, "base_only"))
    nu_free: Numbers = float("nan")
    if "free_norm_chat" in table:  # as for every pair of models
        other_norm, other_noise = (judging(f"free_{name}_base", f"free_{name}_chat") for name in ("norm", "noise"))
        nu_free = nu_free_of_other(other_norm, other_noise, judging("free_norm_chat", "free_norm_base"))
    centred = [
        judging(name, f"{name}_base_probe") for name in ("nu_reconstruction_centred", "presence", "beta_centred")
    ]
    return verdicts(
        table.label.tolist(),
        table.n_active.to_numpy(),
        nu_error,
        nu_reconstruction,
        nu_free=nu_free,
        q_value=table.q_value.to_numpy(),
        min_active=min_active,
        bounds=bounds,
        nu_reconstruction_centred=centred[0],
        presence=centred[1],
        share_of_median=share_of_median.to_numpy(),
        beta_centred=centred[2],
    )


def _scaling_columns(scaling: LatentScaling) -> dict[str, Tensor]:
    columns: dict[str, Tensor] = {}
    for probe, suffix in ((CHAT, ""), (BASE, "_base_probe")):
        for target in ("error", "reconstruction"):
            name = f"nu_{target}{suffix}"
            columns[name] = scaling.nu(target, probe)
            columns[f"{name}_low"], columns[f"{name}_high"] = scaling.nu_interval(target, probe)
    for target in ("error", "reconstruction"):
        columns[f"nu_{target}_unfiltered"] = scaling.nu(target, significant=False)
    for target in ("activation", "reconstruction", "error"):
        for name, model in (("base", BASE), ("chat", CHAT)):
            columns[f"beta_{target}_{name}"] = scaling.beta(target, model)
    return columns


def _basis_free_columns(
    crosscoder: InferenceCrosscoder, free: FreeDirections, reconstructed: ReconstructedDirections
) -> dict[str, Tensor]:
    """The other model's length over that of the latent's own model, the one with the larger decoder norm."""
    own = crosscoder.decoder_norms[free.latents].argmax(dim=-1).cpu().numpy()
    rows = np.arange(len(own))
    columns: dict[str, Tensor] = {}
    for target, sums in (("error", free), ("reconstruction", reconstructed)):
        lengths, noises = sums.norms().cpu().numpy(), sums.noise().cpu().numpy()
        ratios = nu_free_of_other(lengths[rows, 1 - own], noises[rows, 1 - own], lengths[rows, own])
        ratios[~(lengths[rows, own] > noises[rows, own])] = np.nan
        column = torch.full((crosscoder.cfg.d_sae,), torch.nan, dtype=torch.float64)
        column[free.latents.cpu()] = torch.from_numpy(ratios)
        columns[f"nu_{target}_basis_free"] = column
    return columns


def _centred_columns(centred: CentredScaling) -> dict[str, Tensor]:
    columns: dict[str, Tensor] = {}
    for probe, suffix in ((CHAT, ""), (BASE, "_base_probe")):
        betas = centred.betas(probe)
        columns[f"beta_centred{suffix}"] = betas["activation", probe]
        for target, name in _CENTRED.items():
            columns[f"{name}{suffix}"] = nu_of(betas, target, probe)
    return columns
