"""Latent Scaling on the tokens of each group."""

from collections.abc import Sequence

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.activations.eval_data import EvalData
from sae_lens_crosscoder.analysis.encoding import of_compared
from sae_lens_crosscoder.analysis.inputs import data_source
from sae_lens_crosscoder.analysis.latent_scaling.latent_scaling import LatentScaling
from sae_lens_crosscoder.analysis.statistics.labelled_tokens import Cells, labelled_parts
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.compared import compared_of
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, validate_inference
from sae_lens_crosscoder.crosscoders.sparse_step.kernels import indices_of


@validate_arguments
def nu_by_group(
    crosscoder: InferenceCrosscoder, data: EvalData, *, models: Sequence[str] | None = None, significant: bool = True
) -> pd.DataFrame:
    """Columns `nu_error_GROUP` and `nu_reconstruction_GROUP`: nu of the chat decoder on each group's tokens.

    A latent can be an artifact on template tokens and genuine on the rest, or the other way round.

    Args:
        data: held-out data with `groups`.
        models: names of the two models to compare, as in `diagnose`; needed for more than two.
        significant: nan where the denominator may be 0, as far as resampling blocks of 256 of the group's tokens
            tells, and so for every group of up to 256 tokens.

    Raises:
        ValueError: for more than two models without names, data without groups, or groups that do not fit the tokens.
    """
    crosscoder = validate_inference(crosscoder, "nu_by_group")
    compared = compared_of(crosscoder, models, "nu_by_group")
    if data.groups is None:
        raise ValueError(
            "nu_by_group needs the group of each token. Pass EvalData with groups, as token_groups returns."
        )
    labels = Cells.of(data, by_source=False).labels
    source = data_source(crosscoder, data)
    scalings = [LatentScaling(crosscoder if compared is None else compared.crosscoder) for _ in data.groups.names]
    for encoded, label in labelled_parts(source, crosscoder, labels, "Scaling"):
        of_two = of_compared(encoded, crosscoder, compared)
        for group, scaling in enumerate(scalings):
            rows = indices_of(label == group)
            scaling.add(*(part.index_select(0, rows) for part in of_two))
    columns: dict[str, Float[Tensor, " d_sae"]] = {}
    for name, scaling in zip(data.groups.names, scalings, strict=True):
        columns[f"nu_error_{name}"] = scaling.nu("error", significant=significant)
        columns[f"nu_reconstruction_{name}"] = scaling.nu("reconstruction", significant=significant)
    table = pd.DataFrame({name: column.cpu().numpy() for name, column in columns.items()})
    table.index.name = "latent"
    return table
