"""Judges a crosscoder against planted truth: did it find the right latents, and did it flag the wrong ones?"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from sae_lens_crosscoder.activations.planted import PlantedTokens, PlantedWorld
from sae_lens_crosscoder.analysis.latent_scaling import BASE, CHAT
from sae_lens_crosscoder.analysis.verdict import NU_ERROR_LIMIT, NU_RECONSTRUCTION_LIMIT
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder

MIN_COSINE = 0.7
SPECIFIC_BELOW = 0.2


@dataclass(frozen=True)
class ScoreCard:
    """Attribution of latents to the chat model, against the truth.

    A latent is flagged when its class is chat_only. It is right when it matches a concept of which less than a fifth is
    present in the base model; an unmatched or dead latent that is flagged is wrong, never left out. Undefined shares
    (no latent flagged) are nan.
    """

    n_flagged: int
    n_dead: int
    precision: float
    """Share of flagged latents that are right."""
    recall: float
    """Share of chat-only concepts that a flagged latent matches."""
    frac_weak_flagged: float
    """Share of weak concepts that a flagged latent matches: the Complete Shrinkage trap."""
    frac_decoupled_flagged: float
    """Share of decoupled concepts that a flagged latent matches: the Latent Decoupling trap."""
    nu_auroc_in_flagged: float
    """How well the larger of the two nu, each over its limit, tells wrong flagged latents from right ones."""
    n_flagged_after_nu: int
    precision_after_nu: float
    """Precision of the flagged latents with |nu_error| < 0.2 and |nu_reconstruction| < 0.5."""
    recall_after_nu: float


def match_concepts(world: PlantedWorld, crosscoder: InferenceCrosscoder) -> Int[Tensor, " d_sae"]:
    """The concept that each latent's longer decoder half points along (cosine above 0.7), or -1."""
    cosines = [
        normalize(decoder.detach(), dim=-1) @ directions.T.to(decoder)
        for decoder, directions in zip(crosscoder.decoders, world.directions, strict=True)
    ]
    norms = crosscoder.decoder_norms
    chat_leans = (norms[:, CHAT] >= norms[:, BASE])[:, None]
    best = torch.where(chat_leans, cosines[CHAT], cosines[BASE]).max(dim=-1)
    return torch.where(best.values > MIN_COSINE, best.indices, -1)


def base_presence(
    feature_acts: Float[Tensor, "token d_sae"], tokens: PlantedTokens, concepts: Int[Tensor, " d_sae"]
) -> Float[Tensor, " d_sae"]:
    """nu*: how much of its concept the base model has while the latent is on, relative to the chat model.

    `sum_t f_j c^base / sum_t f_j c^chat` from the planted coefficients c: what Delta_norm and nu try to estimate. nan
    for an unmatched or dead latent.
    """
    sums = torch.einsum("tj,tcm->jcm", feature_acts, tokens.coefficients.to(feature_acts))
    own = sums[torch.arange(len(concepts)), concepts.clamp(min=0)]
    return torch.where(concepts >= 0, own[:, BASE] / own[:, CHAT], torch.nan)


def score_card(
    world: PlantedWorld, crosscoder: InferenceCrosscoder, tokens: PlantedTokens, table: pd.DataFrame
) -> ScoreCard:
    """Judge a crosscoder and its latent table on tokens that training never saw."""
    with torch.no_grad():
        feature_acts = crosscoder.encode(tokens.activations.to(crosscoder.W_dec))
    concepts = match_concepts(world, crosscoder)
    specific = base_presence(feature_acts, tokens, concepts) < SPECIFIC_BELOW  # False where nan
    flagged = torch.tensor((table.label == "chat_only").to_numpy())
    nus = torch.tensor(table[["nu_error", "nu_reconstruction"]].to_numpy())
    excess = (nus.abs() / torch.tensor([NU_ERROR_LIMIT, NU_RECONSTRUCTION_LIMIT])).amax(dim=-1)
    after_nu = flagged & (excess < 1)

    def found(kind: str, among: Bool[Tensor, " d_sae"]) -> float:
        wanted = {index for index, concept in enumerate(world.concepts) if concept.kind == kind}
        return len(wanted & set(concepts[among].tolist())) / len(wanted) if wanted else float("nan")

    return ScoreCard(
        n_flagged=int(flagged.sum()),
        n_dead=int(table.dead.sum()),
        precision=_share(specific[flagged]),
        recall=found("chat_only", flagged & specific),
        frac_weak_flagged=found("weak", flagged),
        frac_decoupled_flagged=found("decoupled", flagged),
        nu_auroc_in_flagged=_auroc(excess[flagged & ~specific].numpy(), excess[flagged & specific].numpy()),
        n_flagged_after_nu=int(after_nu.sum()),
        precision_after_nu=_share(specific[after_nu]),
        recall_after_nu=found("chat_only", after_nu & specific),
    )


def _share(right: Bool[Tensor, " latents"]) -> float:
    return right.double().mean().item()  # nan for none


def _auroc(higher: Float[np.ndarray, " wrong"], lower: Float[np.ndarray, " right"]) -> float:
    """Chance that one of `higher` exceeds one of `lower`, an undefined nu counting as highest; nan if one is empty."""
    higher, lower = (np.nan_to_num(values, nan=np.inf)[:, None] for values in (higher, lower))
    if higher.size == 0 or lower.size == 0:
        return float("nan")
    return float((higher > lower.T).mean() + 0.5 * (higher == lower.T).mean())
