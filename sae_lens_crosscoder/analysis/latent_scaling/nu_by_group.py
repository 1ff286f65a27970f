"""Latent Scaling on each group of tokens by itself."""

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.analysis.inputs import Activations, data_source
from sae_lens_crosscoder.analysis.latent_scaling.latent_scaling import LatentScaling
from sae_lens_crosscoder.analysis.statistics.labelled_tokens import Cells, labelled_parts
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, require_inference
from sae_lens_crosscoder.crosscoders.sparse_step.kernels import indices_of
from sae_lens_crosscoder.data.token_groups import TokenGroups
from sae_lens_crosscoder.models.pair import HookedModelPair


def nu_by_group(
    crosscoder: InferenceCrosscoder,
    pair: HookedModelPair | None = None,
    tokens: Tensor | None = None,
    *,
    groups: TokenGroups,
    activations: Activations | None = None,
    significant: bool = True,
    batch_size_prompts: int = 32,
) -> pd.DataFrame:
    """The columns `nu_error_GROUP` and `nu_reconstruction_GROUP`: the nu of the chat decoder on each group's tokens.

    A latent can be an artifact on template tokens and genuine on the rest, or the other way round.

    Args:
        pair, tokens, groups, activations: as `latent_statistics` takes them.
        significant: nan where the denominator may be 0, as far as resampling blocks of 256 of the group's tokens
            tells, and so for every group of up to 256 tokens.
    """
    crosscoder = require_inference(crosscoder, "nu_by_group")
    labels = Cells.of(tokens, groups, None).labels
    source = data_source(crosscoder, pair, tokens, activations, batch_size_prompts, "nu_by_group")
    scalings = [LatentScaling(crosscoder) for _ in groups.names]
    for encoded, label in labelled_parts(source, crosscoder, labels, "Scaling"):
        for group, scaling in enumerate(scalings):
            rows = indices_of(label == group)
            scaling.add(*(part.index_select(0, rows) for part in encoded))
    columns: dict[str, Float[Tensor, " d_sae"]] = {}
    for name, scaling in zip(groups.names, scalings, strict=True):
        columns[f"nu_error_{name}"] = scaling.nu("error", significant=significant)
        columns[f"nu_reconstruction_{name}"] = scaling.nu("reconstruction", significant=significant)
    table = pd.DataFrame({name: column.cpu().numpy() for name, column in columns.items()})
    table.index.name = "latent"
    return table
