"""Score a crosscoder against planted truth: which latents it found, and which it flagged wrongly."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from sae_lens_crosscoder.analysis.diagnosis.verdict import NU_ERROR_LIMIT, NU_RECONSTRUCTION_LIMIT
from sae_lens_crosscoder.analysis.latent_scaling.latent_scaling import BASE, CHAT
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.compared import ComparedSources, validate_two_models
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, validate_inference
from sae_lens_crosscoder.synthetic.planted import PlantedTokens, PlantedWorld

MIN_COSINE = 0.7
MIN_HIT_RATE = 0.1
SPECIFIC_BELOW = 0.2
_SIDES = {"chat_only": "chat_specific", "base_only": "base_specific"}


@dataclass(frozen=True)
class Attribution:
    """Precision and recall of the latents that were called specific to one model."""

    n: int
    """Number of latents called specific."""
    precision: float
    """Share of them that are right (nan if n is 0)."""
    recall: float
    """Share of the concepts of that model alone that a right latent among them carries."""


@dataclass(frozen=True)
class ScoreCard:
    """Scores of a crosscoder against the truth. Every share lies in [0, 1], or is nan if its denominator is 0.

    A latent is right if less than a fifth of its concept is present in the model that it is not specific to. A flagged
    latent that matches no concept, or never fires, counts as wrong.
    """

    n_dead: int
    n_unmatched: int
    """Number of latents that fire but point along no concept."""
    frac_recovered: float
    """Share of all concepts that some latent carries."""
    chat_delta_norm: Attribution
    """Latents of class chat_only, by Delta_norm alone."""
    base_delta_norm: Attribution
    chat_absolute_nu: Attribution
    """Latents of class chat_only with |nu_error| < 0.2 and |nu_reconstruction| < 0.5."""
    base_absolute_nu: Attribution
    """The same for class base_only, with the base model's decoder as the probe."""
    chat_verdict: Attribution
    """Latents with the verdict chat_specific."""
    base_verdict: Attribution
    frac_weak_flagged: float
    """Share of weak concepts that a wrong chat-only latent matches: the Complete Shrinkage trap."""
    frac_decoupled_flagged: float
    """The same for decoupled concepts: the Latent Decoupling trap. A latent that fires only where such a concept is in
    the chat model alone is right, and does not count."""
    frac_weakened_flagged: float
    """Share of weakened concepts (weak in the chat model) that a wrong base-only latent matches."""
    frac_rotated_specific: float
    """Share of rotated concepts matched by a latent with verdict chat_specific or base_specific."""
    nu_auroc_in_flagged: float
    """AUROC with which the larger of the two nu, each divided by its limit, separates wrong chat-only latents from
    right ones."""
    delta_norm_spearman: float
    """Rank correlation, over matched latents, of Delta_norm with minus the presence in base (1 is ideal)."""
    nu_error_spearman: float
    """Rank correlation, over matched latents, of nu_error with the presence in base (1 is ideal)."""


def match_concepts(world: PlantedWorld, crosscoder: InferenceCrosscoder) -> Int[Tensor, " d_sae"]:
    """Return the concept that each latent's longer decoder half points along (cosine above 0.7), or -1.

    Concepts of equal support match as one, by the cosine to the span of their directions. The result is then the first
    of them.
    """
    cosines = [
        _cosines(normalize(decoder.detach(), dim=-1), directions.to(decoder), world.support_groups)
        for decoder, directions in zip(crosscoder.decoders, world.directions, strict=True)
    ]
    norms = crosscoder.decoder_norms
    chat_leans = (norms[:, CHAT] >= norms[:, BASE])[:, None]
    best = torch.where(chat_leans, cosines[CHAT], cosines[BASE]).max(dim=-1)
    return torch.where(best.values > MIN_COSINE, best.indices, -1)


def _cosines(
    decoder: Float[Tensor, "d_sae d_model"],
    directions: Float[Tensor, "concept d_model"],
    groups: Int[Tensor, " concept"],
) -> Float[Tensor, "d_sae concept"]:
    """Return each unit row's cosine to the span of every group, in the column of the group's first concept.

    Columns of the other members are -1. A row that points away from the sum of a group's directions has a negative
    cosine, as it has to a single direction.
    """
    cosines = decoder @ directions.T
    for first in groups.unique().tolist():
        members = (groups == first).nonzero().squeeze(1)
        if len(members) > 1:
            basis = torch.linalg.qr(directions[members].T).Q
            sign = cosines[:, members].sum(dim=1).sign()
            cosines[:, members] = -1
            cosines[:, first] = sign * (decoder @ basis).norm(dim=-1)
    return cosines


def base_presence(
    feature_acts: Float[Tensor, "token d_sae"],
    tokens: PlantedTokens,
    concepts: Int[Tensor, " d_sae"],
    groups: Int[Tensor, " concept"],
) -> Float[Tensor, " d_sae"]:
    """Return nu*: the amount of a latent's concept in base, relative to chat, while the latent is on.

    `sum_t f_j c^base / sum_t f_j c^chat` from the planted coefficients c, those of concepts with equal support summed.
    Delta_norm and nu try to estimate it. It is 0 for a concept of the chat model alone, infinite for the base model
    alone, nan for an unmatched or dead latent.

    Args:
        concepts: from `match_concepts`.
        groups: `PlantedWorld.support_groups`.
    """
    coefficients = tokens.coefficients.to(feature_acts.device).double()
    coefficients = torch.zeros_like(coefficients).index_add_(1, groups.to(coefficients.device), coefficients)
    sums = torch.stack([feature_acts.double().T @ coefficients[..., model] for model in (BASE, CHAT)], dim=-1)
    own = sums[torch.arange(len(concepts)), concepts.clamp(min=0)]
    return torch.where(concepts >= 0, own[:, BASE] / own[:, CHAT], torch.nan)


@validate_arguments
def truth_table(
    world: PlantedWorld,
    crosscoder: InferenceCrosscoder,
    tokens: PlantedTokens,
    *,
    models: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Build the table of planted truth per latent, with the same index as the table of `diagnose`.

    Sinks are left out, as `diagnose` leaves them out: with 100 times the activation, they would decide the truth alone.

    Args:
        models: names of the two models that were compared, as in `diagnose`; needed for a world of more than two.

    Returns:
        A frame with `concept` (-1 for none; the first of several with equal support, which count as one), its `kind`,
        `base_presence`, and `hit_rate`: the share of the concept's firings, in either model, on which the latent fires.
    """
    crosscoder = validate_inference(crosscoder, "truth_table")
    if crosscoder.layout.d_models != world.layout.d_models:
        raise ValueError(
            f"The crosscoder reads widths {crosscoder.layout.d_models}, but the world has {world.layout.d_models}. "
            "Pass one that was trained on this world."
        )
    tokens = tokens.without_sinks()
    with torch.no_grad():
        feature_acts = crosscoder.encode(tokens.activations.to(crosscoder.W_dec))
    if models is None:
        validate_two_models(crosscoder, "truth_table without models=")
    else:
        compared = ComparedSources.of(crosscoder, models)
        crosscoder, world = compared.crosscoder, world.of(*compared.places)
        tokens = replace(tokens, coefficients=tokens.coefficients[..., list(compared.places)])
    concepts = match_concepts(world, crosscoder)
    presence = base_presence(feature_acts, tokens, concepts, world.support_groups)
    present = (tokens.coefficients > 0).any(dim=-1).to(feature_acts)
    hits = ((feature_acts > 0).to(feature_acts).T @ present)[torch.arange(len(concepts)), concepts.clamp(min=0)]
    truth = pd.DataFrame(
        {
            "concept": concepts.cpu().numpy(),
            "kind": [world.concepts[index].kind if index >= 0 else "none" for index in concepts.tolist()],
            "base_presence": presence.cpu().numpy(),
            "hit_rate": torch.where(concepts >= 0, hits / present.sum(dim=0)[concepts], torch.nan).cpu().numpy(),
        }
    )
    truth.index.name = "latent"
    return truth


@validate_arguments
def concept_recovery(world: PlantedWorld, truth: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """List every concept with its firing probability, the latent that carries it best, and that latent's verdict.

    A latent carries a concept if it points along it and fires on at least a tenth of its firings. `latent` is -1 if
    no latent does. The column `firing_probability` shows how rare a concept can be and still be found.
    """
    carrying = _carrying(truth).sort_values("hit_rate").drop_duplicates("concept", keep="last")
    latents = carrying.reset_index().set_index("concept").latent.reindex(world.support_groups.tolist(), fill_value=-1)
    diagnosed = table.reindex(latents.to_numpy())
    return pd.DataFrame(
        {
            "kind": [concept.kind for concept in world.concepts],
            "firing_probability": [world.firing_probability(index) for index in range(len(world.concepts))],
            "rho": [concept.rho for concept in world.concepts],
            "q": [concept.q for concept in world.concepts],
            "angle_degrees": [concept.angle_degrees for concept in world.concepts],
            "latent": latents.to_numpy(),
            **{name: diagnosed[name].to_numpy() for name in ("delta_norm", "label", "verdict", "nu_error")},
        },
        index=pd.RangeIndex(len(world.concepts), name="concept"),
    )


@validate_arguments
def score_card(world: PlantedWorld, truth: pd.DataFrame, table: pd.DataFrame) -> ScoreCard:
    """Score the table of `diagnose` against the planted truth.

    Args:
        truth: from `truth_table`, on tokens that were not used in training.
        table: `Diagnosis.latents` of the same crosscoder.
    """
    frame = table.join(truth)
    presence = {"chat_only": frame.base_presence, "base_only": 1 / frame.base_presence}
    right = {side: presence[side] < SPECIFIC_BELOW for side in _SIDES}  # False where nan
    flagged = {side: frame.label == side for side in _SIDES}
    excess = {"chat_only": _excess(frame, ""), "base_only": _excess(frame, "_base_probe")}

    def attribution(side: str, called: pd.Series) -> Attribution:
        correct = frame[called & right[side]]
        recall = _frac_matched(world, (side,), correct[correct.hit_rate >= MIN_HIT_RATE])
        return Attribution(int(called.sum()), float(right[side][called].mean()), recall)

    wrong = {side: frame[flagged[side] & ~right[side]] for side in _SIDES}
    matched = frame[(frame.concept >= 0) & ~frame.dead]
    wrong_excess, right_excess = (excess["chat_only"][flagged["chat_only"] & r].to_numpy() for r in _both(right))
    return ScoreCard(
        n_dead=int(frame.dead.sum()),
        n_unmatched=int(((frame.concept < 0) & ~frame.dead).sum()),
        frac_recovered=_carrying(frame).concept.nunique() / len(world.support_groups.unique()),
        chat_delta_norm=attribution("chat_only", flagged["chat_only"]),
        base_delta_norm=attribution("base_only", flagged["base_only"]),
        chat_absolute_nu=attribution("chat_only", flagged["chat_only"] & (excess["chat_only"] < 1)),
        base_absolute_nu=attribution("base_only", flagged["base_only"] & (excess["base_only"] < 1)),
        chat_verdict=attribution("chat_only", frame.verdict == _SIDES["chat_only"]),
        base_verdict=attribution("base_only", frame.verdict == _SIDES["base_only"]),
        frac_weak_flagged=_frac_matched(world, ("weak",), wrong["chat_only"]),
        frac_decoupled_flagged=_frac_matched(world, ("decoupled",), wrong["chat_only"]),
        frac_weakened_flagged=_frac_matched(world, ("weakened",), wrong["base_only"]),
        frac_rotated_specific=_frac_matched(world, ("rotated",), frame[frame.verdict.isin(_SIDES.values())]),
        nu_auroc_in_flagged=_auroc(wrong_excess, right_excess),
        delta_norm_spearman=_spearman(matched.delta_norm, -matched.base_presence),
        nu_error_spearman=_spearman(matched.nu_error, matched.base_presence),
    )


def _both(right: dict[str, pd.Series]) -> tuple[pd.Series, pd.Series]:
    return ~right["chat_only"], right["chat_only"]


def _carrying(truth: pd.DataFrame) -> pd.DataFrame:
    return truth[truth.hit_rate >= MIN_HIT_RATE]


def _frac_matched(world: PlantedWorld, kinds: Sequence[str], latents: pd.DataFrame) -> float:
    """Return the share of the concepts of these kinds that some of the latents match."""
    firsts = world.support_groups.unique().tolist()
    wanted = {index for index in firsts if world.concepts[index].kind in kinds}
    return len(wanted & set(latents.concept)) / len(wanted) if wanted else float("nan")


def _excess(frame: pd.DataFrame, probe: str) -> pd.Series:
    """Return the larger of the two nu, each divided by its limit (below 1: neither artifact shows)."""
    limits = {f"nu_error{probe}": NU_ERROR_LIMIT, f"nu_reconstruction{probe}": NU_RECONSTRUCTION_LIMIT}
    return (frame[list(limits)].abs() / pd.Series(limits)).max(axis=1, skipna=False)


def _spearman(scores: pd.Series, truth: pd.Series) -> float:
    both = pd.DataFrame({"score": scores, "truth": truth}).dropna().rank()
    varies = len(both) > 0 and bool((both.nunique() > 1).all())
    return float(both.score.corr(both.truth)) if varies else float("nan")


def _auroc(higher: Float[np.ndarray, " wrong"], lower: Float[np.ndarray, " right"]) -> float:
    """Return the AUROC of `higher` over `lower`. An undefined nu counts as highest; nan if a side is empty."""
    higher, lower = (np.nan_to_num(values, nan=np.inf)[:, None] for values in (higher, lower))
    if higher.size == 0 or lower.size == 0:
        return float("nan")
    return float((higher > lower.T).mean() + 0.5 * (higher == lower.T).mean())
