"""Crosscoders of an audit, each trained once and kept in its folder."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.analysis.audit.limits import least_sizes, plant_contrasts
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.loading.load import load
from sae_lens_crosscoder.stacking import StackedLayout
from sae_lens_crosscoder.workflows.auditing.config import AuditConfig
from sae_lens_crosscoder.workflows.auditing.rows import AuditRows, audit_recipe


@dataclass(frozen=True)
class AuditCrosscoders:
    """Crosscoders on the audit's rows at one hook."""

    cfg: AuditConfig
    rows: AuditRows
    hook_name: str

    @cached_property
    def first(self) -> InferenceCrosscoder:
        """The one that the page shows."""
        return self.of_seed(self.cfg.seed)

    @property
    def first_folder(self) -> Path:
        """Folder of the first one, once it was trained."""
        return self._folder(self.cfg.seed)

    def of_seed(self, seed: int) -> InferenceCrosscoder:
        """A crosscoder on both models' answers."""
        return self._trained(self.rows.activations, seed, self._folder(seed))

    def least_sizes(self) -> dict[float, float]:
        """By the frequency of planted changes, the least size that a crosscoder like these carries."""
        rows, seed = self.rows, self.cfg.seed
        layout = StackedLayout((rows.activations.shape[1] // 2,) * 2)

        def is_found(sizes: dict[float, float], round_number: int) -> dict[float, bool]:
            where = (rows.activations, rows.decision_rows, rows.held_out, layout)
            planted = plant_contrasts(*where, sizes, seed + round_number)
            folder = Path(self.cfg.output_path, "detection_limits", str(round_number))
            return planted.found(self._trained(planted.activations, seed, folder))

        return least_sizes(is_found)

    def _folder(self, seed: int) -> Path:
        return Path(self.cfg.output_path, f"crosscoder_{seed}")

    def _trained(self, activations: Float[Tensor, "row d_in"], seed: int, folder: Path) -> InferenceCrosscoder:
        if folder.exists():
            return load(folder, device=self.cfg.device)
        recipe = audit_recipe(activations.shape[1] // 2, self.cfg.device)
        crosscoder = recipe.train(self.rows.batches(activations, seed), seed=seed)
        metadata = crosscoder.cfg.metadata
        metadata.hook_name = self.hook_name
        metadata.model_name, metadata.chat_model_name = self.cfg.base, self.cfg.chat
        crosscoder.save_model(folder)
        return crosscoder
