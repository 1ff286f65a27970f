"""Best latent of each known concept, with its row of the latent table."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from sae_lens_crosscoder.analysis.contrasts.auroc import auroc
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, validate_inference
from sae_lens_crosscoder.models.pair import HookedModelPair


@runtime_checkable
class MatchedContrast(Protocol):
    """Pairs of prompts that differ in one concept, and the position at which the concept decides the answer."""

    @property
    def positive(self) -> Int[Tensor, "pairs pos"]: ...
    @property
    def negative(self) -> Int[Tensor, "pairs pos"]: ...
    @property
    def decision_position(self) -> int: ...
    @property
    def kind_of_change(self) -> str: ...


def concept_table(
    crosscoder: InferenceCrosscoder,
    pair: HookedModelPair,
    latents: pd.DataFrame,
    contrasts: Mapping[str, MatchedContrast],
) -> pd.DataFrame:
    """Find the best latent of every known concept, of any class.

    The latent is chosen on the first half of the prompts: of those with the highest AUROC of their activation at the
    decision position, the one whose mean differs most. `auroc` is measured on the second half.

    Args:
        latents: `latents` of this crosscoder's diagnosis.
        contrasts: by concept name; the built-in pair's are `models.tiny.matched_prompts`.
    """
    crosscoder = validate_inference(crosscoder, "concept_table")
    hook_name: str = crosscoder.cfg.metadata.hook_name  # pyright: ignore[reportAssignmentType]
    rows: dict[str, dict[Any, Any]] = {}
    for concept, contrast in contrasts.items():
        if len(contrast.positive) < 2:
            raise ValueError(
                f"Concept {concept!r} has {len(contrast.positive)} pair of prompts, but needs at least 2. Its latent "
                "is chosen on one half and evaluated on the other."
            )
        with torch.no_grad():
            positive, negative = (
                crosscoder.encode(
                    pair.activations(prompts, hook_name)[:, contrast.decision_position].to(crosscoder.W_dec)
                )
                for prompts in (contrast.positive, contrast.negative)
            )
        half = len(positive) // 2
        separates = auroc(positive[:half], negative[:half])
        effect = positive[:half].mean(dim=0) - negative[:half].mean(dim=0)
        latent = int(effect.where(separates == separates.max(), -torch.inf).argmax())
        score = auroc(positive[half:, latent : latent + 1], negative[half:, latent : latent + 1])
        columns = ["delta_norm", "nu_error", "nu_reconstruction", "nu_free", "n_active", "label", "verdict"]
        rows[concept] = {
            "kind_of_change": contrast.kind_of_change,
            "latent": latent,
            "auroc": score.item(),
            **latents.loc[latent, columns].to_dict(),
        }
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.index.name = "concept"
    return frame
