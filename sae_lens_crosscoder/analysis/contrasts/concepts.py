"""concepts: the latent that carries each contrast, chosen on one part of the prompts and reported on the other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.activations.contrast_rows import ContrastRows, contrast_rows
from sae_lens_crosscoder.activations.eval_data import EvalData
from sae_lens_crosscoder.analysis.contrasts.group_differences import GroupDifferences, group_differences, separation
from sae_lens_crosscoder.analysis.contrasts.shares import delta_contrast, shares
from sae_lens_crosscoder.analysis.tables.rows import validate_rows
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, validate_inference
from sae_lens_crosscoder.crosscoders.origin import validate_pair
from sae_lens_crosscoder.crosscoders.two_models import TwoModels
from sae_lens_crosscoder.data.contrasts import Contrast
from sae_lens_crosscoder.models.pair import HookedModelPair

LEAST_SHARE = 0.1
"""A latent with a smaller share of a contrast does not carry it."""
_N_LATENTS = 20
_COPIED = ("delta_norm", "nu_free", "n_active", "q_value", "label", "verdict")


@dataclass(frozen=True)
class Concepts:
    """Carriers of contrasts."""

    table: pd.DataFrame
    """One row per contrast: see `concepts`."""
    latents: pd.DataFrame
    """One row per contrast and latent, the 20 with the largest shares on the prompts to choose on."""

    def __str__(self) -> str:
        return "\n".join(f"{name}: {text}" for name, text in self.table["summary"].items())


@validate_arguments
def concepts(
    crosscoder: InferenceCrosscoder,
    data: EvalData | HookedModelPair | None,
    contrasts: Sequence[Contrast | ContrastRows],
    latents: pd.DataFrame | None = None,
    *,
    models: Sequence[str] | None = None,
    target: Literal["model", "difference"] = "model",
) -> Concepts:
    """Find the latent that carries each contrast.

    The carrier has the largest share of the contrast on the prompts that are not held out; everything reported is
    measured on those that are. A share is how much of the difference between the groups' mean activations a latent
    writes; choosing by AUROC instead picks latents that are active everywhere and shift by a hair.

    Args:
        data: the pair of models, or data with it; None if all contrasts are `ContrastRows`.
        contrasts: contrasts whose prompts the models run on, or rows that are already harvested.
        latents: `latents` of this crosscoder's diagnosis, for the verdict and the nu of the probe that judged; of the
            same `models`.
        models: names of two models, which take the places of `base` and `chat` in contrasts and in the result; needed
            for more than two.
        target: `model` for shares of the contrast in the model that must have the concept, `difference` for shares of
            the contrast in chat - base, which show what fine-tuning added to it.

    Returns:
        `table` has a row per contrast. `latent` is the carrier, missing if the largest share is at most 0.1. `share` is
        its share, `coverage` that of all latents together, and `share_of_biases` what the decoder biases write along a
        difference (on both groups alike). `delta_contrast` is Delta_norm of what all latents write, in the trained
        space; it needs no carrier. `share_specific` is the share of all latents that are specific to the contrast's
        model by their verdict. `auroc` is in the carrier's own direction: -1 in `direction` marks a latent that goes
        off on positive prompts. `on_positive` and `on_negative` are the shares of prompts on which it is active.
        `probe` is the model whose decoder probed the nu shown. `kind_of_change` is the contrast's, if it is known.

    Raises:
        ValueError: for contrasts with one name, or without the pair that they need, more than two models without
            `models`, or a table that joins several comparisons.
    """
    crosscoder = validate_inference(crosscoder, "concepts")
    two = TwoModels.of(crosscoder, models, "concepts")
    if target not in ("model", "difference"):
        raise ValueError(f"target={target!r} must be 'model' or 'difference'.")
    if target == "difference":
        two.validate_one_width("target='difference'")
    if latents is not None:
        validate_rows(latents, crosscoder)
        if "verdict" not in latents:
            raise ValueError(
                "latents has no column 'verdict', so it is no diagnosis of two models. Of several models, pass the "
                "latents of one of diagnosis.pairs, or of slc.diagnose(..., models=(first, second))."
            )
    harvested = harvested_rows(crosscoder, data, contrasts)
    rows: dict[str, dict[str, Any]] = {}
    tables: dict[str, pd.DataFrame] = {}
    for contrast in harvested:
        rows[contrast.name], tables[contrast.name] = _carrier(two, contrast, target, latents)
    table = pd.DataFrame.from_dict(rows, orient="index").astype({"latent": "Int64"})
    table.index.name = "concept"
    return Concepts(table, pd.concat(tables, names=["concept", "latent"]))


def harvested_rows(
    crosscoder: InferenceCrosscoder,
    data: EvalData | HookedModelPair | None,
    contrasts: Sequence[Contrast | ContrastRows],
) -> list[ContrastRows]:
    """Activations of all contrasts at the crosscoder's hook; the models run only for those without.

    Raises:
        ValueError: for no contrast, contrasts with one name, or without the pair that they need.
    """
    names = [contrast.name for contrast in contrasts]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"The contrasts are named {names}. Pass at least one, each with a name of its own.")
    pair = data.pair if isinstance(data, EvalData) else data
    batch_size = data.batch_size if isinstance(data, EvalData) else 32
    harvested: list[ContrastRows] = []
    for contrast in contrasts:
        if isinstance(contrast, Contrast):
            if pair is None:
                raise ValueError(f"Contrast {contrast.name!r} needs the models. Pass the pair, or ContrastRows.")
            contrast = contrast_rows(pair, contrast, validate_pair(crosscoder, pair), batch_size)
        crosscoder.layout.split(contrast.activations)  # raises for another width
        harvested.append(contrast)
    return harvested


def validate_comparable(crosscoder: InferenceCrosscoder, purpose: str) -> None:
    """Raise a ValueError unless the crosscoder reads two models of one width."""
    layout = crosscoder.layout
    if not layout.is_pair or not layout.same_width:
        way_out = "" if layout.n_models <= 2 else " Train a crosscoder on two of the models for this."
        raise ValueError(
            f"{purpose} need two models of one width, but this crosscoder reads {layout.d_models}.{way_out}"
        )


def target_of(
    two: TwoModels, differences: GroupDifferences, model: str, target: str
) -> tuple[Float[Tensor, "d_sae _"], Float[Tensor, " _"]]:
    """Directions that latents write, and the contrast that they are to write, of a model or of chat - base."""
    decoders = [decoder.double().cpu() for decoder in two.decoders]
    parts = two.split(differences.activations)
    if target == "difference":
        return decoders[1] - decoders[0], parts[1] - parts[0]
    m = 0 if model == "base" else 1
    return decoders[m], parts[m]


def _carrier(
    two: TwoModels, contrast: ContrastRows, target: str, latents: pd.DataFrame | None
) -> tuple[dict[str, Any], pd.DataFrame]:
    """The row of one contrast, and its latents with the largest shares."""
    crosscoder = two.crosscoder
    chosen_on, held_out = (group_differences(crosscoder, *contrast.part(held)) for held in (False, True))
    on_choice = shares(chosen_on.feature_acts, *target_of(two, chosen_on, contrast.model, target))
    directions, vector = target_of(two, held_out, contrast.model, target)
    held_shares = shares(held_out.feature_acts, directions, vector)
    ids = on_choice.nan_to_num(-torch.inf).argsort(descending=True, stable=True)[:_N_LATENTS]
    area = separation(crosscoder, *contrast.part(True), ids)
    table = pd.DataFrame(
        {
            "share": held_shares[ids],
            "auroc": torch.maximum(area, 1 - area),
            "direction": torch.where(area < 0.5, -1, 1),
            "on_positive": held_out.frac_on_positive[ids],
            "on_negative": held_out.frac_on_negative[ids],
        },
        index=pd.Index(ids.tolist(), name="latent"),
    )
    best = int(ids[0])
    known = {} if contrast.kind_of_change is None else {"kind_of_change": contrast.kind_of_change}
    row: dict[str, Any] = {**known, "model": contrast.model, "coverage": float(held_shares.sum())}
    if target == "difference":
        base, chat = two.decoder_biases
        bias = (chat - base).double().cpu()
        row["share_of_biases"] = float(bias @ vector / vector.square().sum())
    scaled = crosscoder.W_dec.detach().double() * crosscoder.layout.expand(crosscoder.activation_scales).double()
    row["delta_contrast"] = delta_contrast(held_out.feature_acts, *two.split(scaled.cpu()))
    is_carried = bool(table["share"].iloc[0] > LEAST_SHARE)
    row |= {"latent": best if is_carried else pd.NA, **table.to_dict("records")[0]}  # pyright: ignore[reportAssignmentType]
    if latents is not None:
        is_specific = torch.tensor((latents["verdict"] == f"{contrast.model}_specific").tolist())
        row["share_specific"] = float(held_shares[is_specific].sum())
        diagnosed = _diagnosed(latents.loc[best].to_dict())
        row |= diagnosed if is_carried else dict.fromkeys(diagnosed, float("nan"))
    row["summary"] = _summary(row, best, is_carried)
    return row, table


def _diagnosed(latent: Mapping[Any, Any]) -> dict[str, Any]:
    """Columns of the diagnosis, with the nu of the probe that decided the verdict."""
    probe, suffix = ("base", "_base_probe") if latent["label"] == "base_only" else ("chat", "")
    nus = {f"nu_{target}": latent[f"nu_{target}{suffix}"] for target in ("error", "reconstruction")}
    return {**{name: latent[name] for name in _COPIED if name in latent}, **nus, "probe": probe}


def _summary(row: dict[str, Any], best: int, is_carried: bool) -> str:
    if not is_carried:
        return f"no latent carries it (largest share {row['share']:.2f}); all together cover {row['coverage']:.2f}"
    verdict = f", {row['verdict']}" if "verdict" in row else ""
    return (
        f"latent {best} carries {row['share']:.2f} of it{verdict} (AUROC {row['auroc']:.2f}, on at "
        f"{row['on_positive']:.0%} of positive and {row['on_negative']:.0%} of negative prompts); all together cover "
        f"{row['coverage']:.2f}"
    )
