"""changed: trains decoys, and names the latents that carry what fine-tuning changed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.activations.contrast_rows import ContrastRows
from sae_lens_crosscoder.activations.drawn_batches import DrawnBatches
from sae_lens_crosscoder.activations.eval_data import EvalData
from sae_lens_crosscoder.analysis.changed.changed import Changed
from sae_lens_crosscoder.analysis.changed.decoys import RANKS, RandomMap, size_of_difference
from sae_lens_crosscoder.analysis.changed.gate import validate_enough_splits
from sae_lens_crosscoder.analysis.changed.name_latents import DecoyReading, decoy_reading, name_latents
from sae_lens_crosscoder.analysis.contrasts.concepts import harvested_rows, validate_comparable
from sae_lens_crosscoder.analysis.inputs import data_source
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, validate_inference
from sae_lens_crosscoder.data.contrasts import Contrast
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.storage.checksums import digest, fingerprint
from sae_lens_crosscoder.storage.tensor_files import load_tensors, save_tensors
from sae_lens_crosscoder.training.recipe import TrainingRecipe

MAX_ROWS = 200_000


@validate_arguments
def changed(
    crosscoder: InferenceCrosscoder,
    data: EvalData,
    contrasts: Sequence[Contrast | ContrastRows],
    *,
    pair: HookedModelPair | None = None,
    recipe: TrainingRecipe | None = None,
    weights: Float[Tensor, " _"] | None = None,
    n_decoys: int = 3,
    seed: int = 0,
    folder: str | Path | None = None,
    max_rows: int = MAX_ROWS,
) -> Changed:
    """Name the latents that turned and carry a contrast that fine-tuning changed.

    A fine-tune moves activations by a few percent of their norm, which decoder norms cannot show. Three pieces of
    evidence are needed: `rho` of the latent stands out from decoys, the contrast is changed more than splits of its
    other prompts (the gate), and the latent writes more of it than those of decoys. Decoys are crosscoders trained in
    the same way on base activations against the same turned by a random map, whose difference is as large but has no
    aim. Each costs one training, and no forward pass.

    Args:
        data: activations or tokens like those that the crosscoder was trained on.
        contrasts: prompts that show the change against prompts that do not, or such rows. Several contrasts, such as
            the decision and the answers, are corrected for.
        pair: the models, if `data` are activations and a contrast needs them.
        recipe: config and schedule of the training; None for the one in the crosscoder's metadata.
        weights: how often each row of the data is drawn, as in the training of the crosscoder; None for equally often.
        n_decoys: number of decoys.
        folder: keeps what is known of each decoy, so that an interrupted call resumes.
        max_rows: only the first rows of the data are held in memory and trained on.

    Raises:
        ValueError: before anything is trained, for models of different width, too few prompts, models that do not
            differ, or a crosscoder without a recipe.
    """
    crosscoder = validate_inference(crosscoder, "changed")
    validate_comparable(crosscoder, "Turned latents")
    if n_decoys < 1:
        raise ValueError(f"n_decoys={n_decoys} must be at least 1; without decoys there are no q-values.")
    recipe = recipe or TrainingRecipe.of(crosscoder, str(crosscoder.W_dec.device))
    harvested = harvested_rows(crosscoder, pair or data, contrasts)
    for contrast in harvested:
        validate_enough_splits(contrast, crosscoder.layout)
    rows, used = _rows(crosscoder, data, max_rows)
    if weights is not None:
        weights = _of_used_rows(weights, used)
    size = size_of_difference(rows, harvested, crosscoder.layout)
    decoys = _Decoys(recipe, crosscoder.layout.split(rows)[0].clone(), weights, harvested, size, seed, folder)
    del rows
    readings = [decoys.reading(i) for i in tqdm(range(n_decoys), desc="Decoys", leave=False)]
    found = name_latents(crosscoder, harvested, readings, size)
    record = {"n_rows": len(decoys.base), "decoy_seed": seed, "recipe": recipe.to_dict()}
    return replace(found, manifest={**found.manifest, **record})


@dataclass(frozen=True)
class _Decoys:
    """Trains decoys one after the other."""

    recipe: TrainingRecipe
    base: Float[Tensor, "row d_model"]
    weights: Float[Tensor, " row"] | None
    contrasts: Sequence[ContrastRows]
    size: float
    seed: int
    folder: str | Path | None

    def reading(self, index: int) -> DecoyReading:
        """Statistics of decoy `index`, from its file if it was trained before."""
        path = None if self.folder is None else Path(self.folder, f"decoy_{index}.safetensors")
        if path is not None and path.exists():
            tensors, metadata = load_tensors(path)
            if metadata.get("origin") == self._origin:
                names = [contrast.name for contrast in self.contrasts]
                return DecoyReading(tensors["rho"], {name: tensors[f"written/{name}"] for name in names})
        reading = self._trained(index)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            written = {f"written/{name}": values for name, values in reading.written.items()}
            save_tensors({"rho": reading.rho, **written}, path, {"origin": self._origin})
        return reading

    def _trained(self, index: int) -> DecoyReading:
        seed = 1000 * (self.seed + 1) + index
        turned = RandomMap.draw(self.base, self.size, RANKS[index % len(RANKS)], seed)
        drawn = DrawnBatches(self.base, self.recipe.trainer.train_batch_size_samples, seed, self.weights)
        crosscoder = self.recipe.train((turned.stack(batch) for batch in drawn), seed=seed)
        layout = crosscoder.layout
        return decoy_reading(crosscoder, [turned.of_contrast(contrast, layout) for contrast in self.contrasts])

    @cached_property
    def _origin(self) -> str:
        """Digest of everything that a decoy depends on."""
        tensors = [self.base, *([] if self.weights is None else [self.weights])]
        for contrast in self.contrasts:
            tensors += [contrast.activations, contrast.positive, contrast.held_out]
        names = [contrast.name for contrast in self.contrasts]
        return digest([fingerprint(tensors), names, self.recipe.to_dict(), self.size, self.seed])


def _rows(
    crosscoder: InferenceCrosscoder, data: EvalData, max_rows: int
) -> tuple[Float[Tensor, "row d_in"], Bool[Tensor, " _"]]:
    """The first rows of the data without tokens that dominate, and which of the rows read these are."""
    parts: list[Tensor] = []
    masks: list[Tensor] = []
    n_read = 0
    for batch, ordinary in data_source(crosscoder, data).batches():
        parts.append(batch[: max_rows - n_read].cpu())
        masks.append(ordinary[: max_rows - n_read].cpu())
        n_read += len(parts[-1])
        if n_read >= max_rows:
            break
    if not parts:
        raise ValueError("The data have no rows. Pass activations or tokens like those of the training.")
    used = torch.cat(masks)
    return torch.cat(parts)[used], used


def _of_used_rows(weights: Float[Tensor, " _"], used: Bool[Tensor, " _"]) -> Float[Tensor, " row"]:
    if len(weights) < len(used):
        raise ValueError(f"Got {len(weights)} weights for {len(used)} rows of the data. Pass one weight per row.")
    return weights[: len(used)][used]
