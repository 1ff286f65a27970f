"""Accumulators of a diagnosis."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from sae_lens_crosscoder.activations.variance import VarianceExplained
from sae_lens_crosscoder.analysis.diagnosis.columns import latent_table, one_sided_latents
from sae_lens_crosscoder.analysis.diagnosis.diagnosis import Diagnosis
from sae_lens_crosscoder.analysis.diagnosis.free_direction import FreeDirections
from sae_lens_crosscoder.analysis.diagnosis.manifest import provenance
from sae_lens_crosscoder.analysis.diagnosis.verdict import MIN_ACTIVE, NuBounds, conclusion
from sae_lens_crosscoder.analysis.inputs import Encoded
from sae_lens_crosscoder.analysis.latent_scaling.latent_scaling import LatentScaling
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.storage.accumulators import ResumableAccumulator


class DiagnosisSums:
    """Accumulates the sums of `diagnose`: Latent Scaling, free directions, variance explained.

    Args:
        block_size: consecutive tokens that the bootstrap keeps together.
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
        """Add tokens."""
        self.scaling.add(*part)
        self.free.add(*part)
        self.fve.add(part.activations, part.reconstruction)

    @property
    def parts(self) -> Mapping[str, ResumableAccumulator]:
        """Accumulators to save in a checkpoint, by name."""
        return {"scaling": self.scaling, "free": self.free, "fve": self.fve}

    def diagnosis(
        self, nulls: Sequence[Diagnosis] = (), min_active: int = MIN_ACTIVE, bounds: NuBounds = "signed"
    ) -> Diagnosis:
        """Diagnosis of all tokens so far; a ValueError if there are none."""
        if self.scaling.n_tokens == 0:
            raise ValueError("No tokens to diagnose on: the data is empty, or its mask leaves out every token.")
        null_tables = [null.latents for null in nulls]
        latents = latent_table(self.crosscoder, self.scaling, self.free, null_tables, min_active, bounds)
        manifest: dict[str, Any] = {
            "conclusion": conclusion(latents),
            **provenance(self.crosscoder),
            "n_tokens": self.scaling.n_tokens,
            "min_active": min_active,
            "bounds": bounds,
            "fve": {**self.fve.per_model(), "pooled": self.fve.pooled()},
            "l0": float(self.scaling.n_active.sum()) / self.scaling.n_tokens,
            "n_null_runs": len(nulls),
        }
        return Diagnosis(latents, manifest)
