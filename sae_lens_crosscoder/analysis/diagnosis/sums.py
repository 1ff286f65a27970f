"""Accumulators of a diagnosis."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.activations.variance import VarianceExplained
from sae_lens_crosscoder.analysis.changed.changed import CHANGED_COLUMNS, Changed
from sae_lens_crosscoder.analysis.diagnosis.columns import latent_table, nu_kind, one_sided_latents
from sae_lens_crosscoder.analysis.diagnosis.conclusion import FVE_FLOOR, Evidence, conclusion
from sae_lens_crosscoder.analysis.diagnosis.control import ControlSums, with_control
from sae_lens_crosscoder.analysis.diagnosis.diagnosis import Diagnosis
from sae_lens_crosscoder.analysis.diagnosis.free_direction import FreeDirections
from sae_lens_crosscoder.analysis.diagnosis.manifest import provenance
from sae_lens_crosscoder.analysis.diagnosis.null_runs import null_kinds
from sae_lens_crosscoder.analysis.diagnosis.verdict import MIN_ACTIVE, NuBounds
from sae_lens_crosscoder.analysis.encoding import Encoded, of_compared
from sae_lens_crosscoder.analysis.latent_scaling.background_groups import BackgroundGroups
from sae_lens_crosscoder.analysis.latent_scaling.basis_free import ReconstructedDirections
from sae_lens_crosscoder.analysis.latent_scaling.centred_scaling import CentredScaling
from sae_lens_crosscoder.analysis.latent_scaling.latent_scaling import LatentScaling
from sae_lens_crosscoder.analysis.use.result import LatentUse
from sae_lens_crosscoder.crosscoders.compared import ComparedSources
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.storage.accumulators import ResumableAccumulator


class DiagnosisSums:
    """Accumulates the sums of `diagnose`: Latent Scaling, free directions, variance explained.

    Args:
        block_size: consecutive tokens that the bootstrap keeps together.
        background: groups of the tokens, within which centred nu is measured.
        compared: two of more sources, for a diagnosis of these; None for a crosscoder of a pair.
        with_control: measure the presence in a control model as well.
    """

    def __init__(
        self,
        crosscoder: InferenceCrosscoder,
        block_size: int,
        background: BackgroundGroups,
        free_directions: Literal["model_specific", "all"] = "model_specific",
        compared: ComparedSources | None = None,
        with_control: bool = False,
    ) -> None:
        everything = torch.arange(crosscoder.cfg.d_sae)
        self._whole, self._compared = crosscoder, compared
        self._absent = None if compared is None else compared.absent
        n_sources = crosscoder.layout.n_sources
        crosscoder = crosscoder if compared is None else compared.crosscoder
        self.crosscoder = crosscoder
        """The crosscoder of the pair: the given one, or two of its sources."""
        self.scaling = LatentScaling(crosscoder, block_size=block_size)
        self.background = background
        self.centred = CentredScaling(self.scaling, background.n_groups)
        self.free = FreeDirections(
            crosscoder,
            everything if free_directions == "all" else one_sided_latents(crosscoder, self._absent),
            n_sources,
        )
        is_basis_free = nu_kind(crosscoder) == "basis_free"
        self.reconstructed = ReconstructedDirections(crosscoder, self.free.latents) if is_basis_free else None
        self.control = ControlSums(crosscoder, background.n_groups) if with_control else None
        self.fve, self.fve_left_out = VarianceExplained(crosscoder.layout), VarianceExplained(crosscoder.layout)

    def add(
        self, part: Encoded, places: Int[Tensor, " token"], control: Float[Tensor, "token d_model"] | None = None
    ) -> None:
        """Add tokens, with the place of each in the stream that `background` labels.

        Args:
            control: the control model's activations; needed with a control.
        """
        part = of_compared(part, self._whole, self._compared)
        if self.control is not None:
            assert control is not None
            self.control.add(part, control, self.background.at(places))
        self.centred.add(*part, self.background.at(places))
        self.scaling.add(*part)
        self.free.add(*part)
        if self.reconstructed is not None:
            self.reconstructed.add(*part)
        self.fve.add(part.activations, part.reconstruction)

    def add_left_out(self, part: Encoded) -> None:
        """Add tokens that dominate, which only the FVE over all tokens includes."""
        part = of_compared(part, self._whole, self._compared)
        self.fve_left_out.add(part.activations, part.reconstruction)

    @property
    def parts(self) -> Mapping[str, ResumableAccumulator]:
        """Accumulators to save in a checkpoint, by name."""
        parts: dict[str, ResumableAccumulator] = {
            "scaling": self.scaling,
            "centred": self.centred,
            "free": self.free,
            "fve": self.fve,
            "fve_left_out": self.fve_left_out,
        }
        if self.reconstructed is not None:
            parts["reconstructed"] = self.reconstructed
        if self.control is not None:
            parts["control"] = self.control
        return parts

    def diagnosis(
        self,
        dominant: Mapping[str, Any],
        nulls: Sequence[Diagnosis] = (),
        min_active: int = MIN_ACTIVE,
        bounds: NuBounds = "signed",
        fve_floor: float = FVE_FLOOR,
        changed: Changed | None = None,
        use: LatentUse | None = None,
    ) -> Diagnosis:
        """Diagnosis of all tokens so far; a ValueError if there are none.

        Args:
            dominant: manifest entries on the tokens that were left out, see `DataSource.manifest`.
        """
        if self.scaling.n_tokens == 0:
            raise ValueError(
                "No tokens to diagnose on: the data is empty, its mask leaves out every token, or all of them dominate "
                "(see EvalData.max_norm_ratio)."
            )
        latents = latent_table(
            self.crosscoder, self.centred, self.free, self.reconstructed, nulls, min_active, bounds, self._absent
        )
        if self.control is not None:
            latents = with_control(latents, self.control)
        if changed is not None:
            latents = latents.join(changed.latents[[*CHANGED_COLUMNS]])
        if use is not None:
            latents = latents.join(use.latents[[*use.columns]])
        n_tokens, fve = self.scaling.n_tokens, self.fve.all_figures()
        identical = self.fve.models_are_identical
        kinds = null_kinds(nulls)
        evidence = Evidence(latents, fve, n_tokens, len(nulls), min_active, fve_floor, identical, changed, use, kinds)
        manifest: dict[str, Any] = {
            "conclusion": self._named(conclusion(evidence)),
            **provenance(self._whole),
            **({} if self._compared is None else {"compared": list(self._compared.names)}),
            "n_tokens": n_tokens,
            "min_active": min_active,
            "bounds": bounds,
            "nu_kind": nu_kind(self.crosscoder),
            "fve": fve,
            "fve_all_tokens": self.fve.joined(self.fve_left_out).all_figures(),
            **dominant,
            "fve_floor": fve_floor,
            "l0": float(self.scaling.n_active.sum()) / n_tokens,
            "n_null_runs": len(nulls),
            "null_kinds": kinds,
            **self.background.manifest(),
        }
        return Diagnosis(latents, manifest)

    def _named(self, text: str) -> str:
        """The conclusion, after the names of the compared models."""
        if self._compared is None:
            return text
        base, chat = self._compared.trained_names
        return f"{chat} (as the chat model) beside {base} (as the base model): {text}"
