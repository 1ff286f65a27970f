"""What a diagnosis streams of one crosscoder, and the latent table that comes of it."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pandas as pd
import torch

from sae_lens_crosscoder.activations.variance import VarianceExplained
from sae_lens_crosscoder.analysis.diagnosis.columns import latent_table, one_sided_latents
from sae_lens_crosscoder.analysis.diagnosis.free_direction import FreeDirections
from sae_lens_crosscoder.analysis.diagnosis.manifest import provenance
from sae_lens_crosscoder.analysis.diagnosis.verdict import MIN_ACTIVE, NuBounds, conclusion
from sae_lens_crosscoder.analysis.inputs import Encoded
from sae_lens_crosscoder.analysis.latent_scaling.latent_scaling import LatentScaling
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.storage.accumulators import ResumableAccumulator


class DiagnosisSums:
    """Streams what the table of `diagnose` is made of: Latent Scaling, free directions, variance explained.

    Args:
        block_size: how many consecutive tokens a bootstrap keeps together.
    """

    def __init__(
        self,
        crosscoder: InferenceCrosscoder,
        block_size: int,
        free_directions: Literal["model_specific", "all"] = "model_specific",
    ) -> None:
        everything = torch.arange(crosscoder.cfg.d_sae)
        self.crosscoder = crosscoder
        self.scaling = LatentScaling(crosscoder, block_size=block_size)
        self.free = FreeDirections(
            crosscoder, everything if free_directions == "all" else one_sided_latents(crosscoder)
        )
        self.fve = VarianceExplained(crosscoder.layout)

    def add(self, part: Encoded) -> None:
        """Add tokens: raw stacked activations, and what the inference crosscoder makes of them."""
        self.scaling.add(*part)
        self.free.add(*part)
        self.fve.add(part.activations, part.reconstruction)

    @property
    def parts(self) -> Mapping[str, ResumableAccumulator]:
        """Everything that a checkpoint must hold, by name."""
        return {"scaling": self.scaling, "free": self.free, "fve": self.fve}

    def table(
        self, nulls: Sequence[pd.DataFrame] = (), min_active: int = MIN_ACTIVE, bounds: NuBounds = "signed"
    ) -> pd.DataFrame:
        """The table of `diagnose`, and its manifest in `.attrs`; a ValueError if nothing was added."""
        if self.scaling.n_tokens == 0:
            raise ValueError("There was nothing to diagnose on: the data source gave no tokens.")
        table = latent_table(self.crosscoder, self.scaling, self.free, nulls, min_active, bounds)
        manifest: dict[str, Any] = {
            **provenance(self.crosscoder),
            "n_tokens": self.scaling.n_tokens,
            "min_active": min_active,
            "bounds": bounds,
            "fve": {**self.fve.per_model(), "pooled": self.fve.pooled()},
            "l0": float(self.scaling.n_active.sum()) / self.scaling.n_tokens,
        }
        table.attrs.update({"conclusion": conclusion(table), **manifest, "n_null_runs": len(nulls)})
        return table
