"""Diagnoses of more than two models: which sources are compared, and one table of all comparisons."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sae_lens_crosscoder.analysis.diagnosis.diagnosis import Diagnosis
from sae_lens_crosscoder.analysis.diagnosis.manifest import provenance
from sae_lens_crosscoder.crosscoders.compared import ComparedSources
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder

_OF_ALL = ("n_active", "frequency", "max_activation", "mean_activation", "dead")
_OF_PAIRS = ("label", "verdict", "delta_norm", "rho", "nu_kind")


def comparisons(
    crosscoder: InferenceCrosscoder, models: Sequence[str] | None
) -> dict[str, ComparedSources] | dict[str, None]:
    """The pairs of sources to diagnose, by the name of the second; None for a crosscoder of one pair.

    Args:
        models: names of the two to compare; None for all models with the first.

    Raises:
        ValueError: for names that are not two sources, or several hooks of more than two models without names.
    """
    layout = crosscoder.layout
    if models is not None:
        compared = ComparedSources.of(crosscoder, models)
        return {compared.names[1]: compared}
    if layout.n_models <= 2:
        return {"": None}
    if layout.hook_names:
        raise ValueError(
            f"The crosscoder reads {layout.n_models} models at {len(layout.hook_names)} hooks. Pass the two sources to "
            f"compare as models=, such as {(layout.names[0], layout.names[len(layout.hook_names)])}."
        )
    first, *others = layout.names
    return {name: ComparedSources.of(crosscoder, (first, name)) for name in others}


def family_diagnosis(crosscoder: InferenceCrosscoder, pairs: Mapping[str, Diagnosis]) -> Diagnosis:
    """Join the diagnoses of every model beside the first: one row per latent, columns per model."""
    first = next(iter(pairs.values()))
    norms = crosscoder.decoder_norms.detach().double().cpu().numpy()
    with np.errstate(invalid="ignore"):
        shares = norms / norms.sum(axis=1, keepdims=True)  # 0 / 0 is nan
    columns: dict[str, Any] = {name: first.latents[name] for name in _OF_ALL}
    for m, name in enumerate(crosscoder.layout.names):
        columns |= {f"dec_norm_{name}": norms[:, m], f"norm_share_{name}": shares[:, m]}
    for name, each in pairs.items():
        columns |= {f"{column}_{name}": each.latents[column] for column in _OF_PAIRS}
    own = {"conclusion", "compared", "fve", "fve_all_tokens", "nu_kind"}
    shared = {name: value for name, value in first.manifest.items() if name not in own}
    manifest = {
        "conclusion": ". ".join(each.conclusion for each in pairs.values()),
        **shared,
        **provenance(crosscoder),
        "pairs": list(pairs),
        "fve": {name: each.manifest["fve"] for name, each in pairs.items()},
    }
    return Diagnosis(pd.DataFrame(columns, index=first.latents.index), manifest, pairs=dict(pairs))


def validate_evidence(compared: Mapping[str, ComparedSources | None], evidence: Mapping[str, object]) -> None:
    """Raise a ValueError for evidence on one pair, such as null runs, when several pairs are diagnosed."""
    given = [name for name, value in evidence.items() if value is not None]
    if len(compared) > 1 and given:
        raise ValueError(
            f"{' and '.join(given)} is evidence on one pair, but every model is compared with the first. Name the pair "
            f"as models=, such as models={next(each.names for each in compared.values() if each is not None)}."
        )


def validate_use_of(names: Sequence[str], compared: ComparedSources | None) -> None:
    """Raise a ValueError for a use of latents by other models than the compared ones."""
    if compared is not None and tuple(names) != compared.names:
        raise ValueError(
            f"use is that of {' and '.join(names)}, but the diagnosis compares {' and '.join(compared.names)}. Read "
            f"it with slc.latent_use(..., models={compared.names})."
        )
