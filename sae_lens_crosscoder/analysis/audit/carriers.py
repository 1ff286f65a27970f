"""Carriers: the latents that write a change of behaviour, and how much of it the other model has."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.activations.contrast_rows import ContrastRows
from sae_lens_crosscoder.analysis.contrasts.auroc import auroc
from sae_lens_crosscoder.analysis.contrasts.concepts import target_of, validate_comparable
from sae_lens_crosscoder.analysis.contrasts.group_differences import group_differences
from sae_lens_crosscoder.analysis.contrasts.shares import shares
from sae_lens_crosscoder.analysis.diagnosis.classes import delta_norm
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, validate_inference
from sae_lens_crosscoder.crosscoders.two_models import TwoModels

MOST_CARRIERS, MOST_WRITERS = 40, 60
_ENOUGH = 0.98
"""Less is not enough: a hundredth of chat - base that is missing can decide the next token."""
_N_RESAMPLES, _N_BY_CHANCE = 400, 10
_INTERVAL = (0.025, 0.975)


@dataclass(frozen=True)
class Carriers:
    """Latents that set a change apart from other prompts, and those that the other prompts' changes need as well.

    All are chosen on prompts that are not held out. A fine-tune that makes a model answer at all changes something on
    every prompt: that part is shared by all its behaviours, and each has a part of its own.
    """

    latents: tuple[int, ...]
    """Carriers, the largest share first: as many as write 0.98 of what all latents write that are more active on
    positive prompts, at most 40."""
    shares: tuple[float, ...]
    """Share of each in the contrast of chat - base between positive and negative prompts, on held-out prompts."""
    delta_norms: tuple[float, ...]
    share: float
    """Share of all carriers together."""
    coverage: float
    """Share of all latents together."""
    auroc: float
    """How well what the carriers write along the contrast tells held-out positive prompts from others: 1/2 by luck."""
    auroc_by_chance: float
    """The largest of ten, each for carriers of as many prompts drawn at random."""
    shared: tuple[int, ...]
    """Other latents that write chat - base on positive prompts: with the carriers, as many as write 0.98 of it, at most
    60."""
    written: float
    """Share of the mean of chat - base on held-out positive prompts, without the decoder biases, that both write."""
    presence: float
    """How much of the contrast the other model has: its part along the writer's, 0 none, 1 as much. From activations
    alone, on held-out prompts."""
    presence_low: float
    """95 % interval, by resampling prompts."""
    presence_high: float

    @property
    def tells_apart(self) -> bool:
        """True if what the carriers write tells the prompts from others, better than for any random choice of prompts.

        Shares alone do not: what chat - base varies in at all has writers, so that carriers chosen for random prompts
        have large shares of a small difference.
        """
        return self.auroc > self.auroc_by_chance


def find_carriers(crosscoder: InferenceCrosscoder, contrast: ContrastRows, seed: int = 0) -> Carriers:
    """Find the latents that write a contrast of chat - base.

    Only latents count that are more active on positive prompts: of these one can say that they are the change, and add
    what they write to the other model.

    Args:
        contrast: `model` is the model whose answers have the behaviour.
        seed: of the resampling.

    Raises:
        ValueError: for a crosscoder of other than two models of one width.
    """
    crosscoder = validate_inference(crosscoder, "find_carriers")
    validate_comparable(crosscoder, "Carriers")
    ids, area = _separation(crosscoder, contrast)
    held_out = group_differences(crosscoder, *contrast.part(held_out=True))
    on_held_out = shares(
        held_out.feature_acts, *target_of(TwoModels.of(crosscoder), held_out, contrast.model, "difference")
    ).nan_to_num(0.0)
    writes, writes_held_out = (_written(crosscoder, contrast.part(held)[0]) for held in (False, True))
    writers = most_of(writes, MOST_WRITERS)
    shared = writers[~torch.isin(writers, ids)]
    norms = delta_norm(crosscoder.decoder_norms.detach().double().cpu())
    presence, low, high = presence_in_other(crosscoder, contrast, seed)
    return Carriers(
        latents=tuple(ids.tolist()),
        shares=tuple(on_held_out[ids].tolist()),
        delta_norms=tuple(norms[ids].tolist()),
        share=float(on_held_out[ids].sum()),
        coverage=float(on_held_out.sum()),
        auroc=area,
        auroc_by_chance=max(_separation(crosscoder, drawn)[1] for drawn in random_prompts(contrast, seed)),
        shared=tuple(shared.tolist()),
        written=float(writes_held_out[torch.cat([ids, shared])].sum()),
        presence=presence,
        presence_low=low,
        presence_high=high,
    )


@torch.no_grad()
def _separation(crosscoder: InferenceCrosscoder, contrast: ContrastRows) -> tuple[Int[Tensor, " latent"], float]:
    """Carriers, and the AUROC on held-out prompts of what they write along the contrast that they were chosen on."""
    ids, along = _chosen(crosscoder, contrast)
    positive, negative = (_along(crosscoder, rows, ids, along) for rows in contrast.part(held_out=True))
    return ids, separation(positive, negative)


@torch.no_grad()
def written_along(
    crosscoder: InferenceCrosscoder, contrast: ContrastRows, activations: Float[Tensor, "prompt d_in"]
) -> Float[Tensor, " prompt"]:
    """Compute what the carriers of a contrast write along it, at any prompts' decisions."""
    return _along(crosscoder, activations, *_chosen(crosscoder, contrast))


def separation(positive: Float[Tensor, " positive"], negative: Float[Tensor, " negative"]) -> float:
    """AUROC of one score."""
    return float(auroc(positive[:, None], negative[:, None]))


def _chosen(
    crosscoder: InferenceCrosscoder, contrast: ContrastRows
) -> tuple[Int[Tensor, " latent"], Float[Tensor, " latent"]]:
    """Carriers, and how far each reaches along the contrast that they were chosen on."""
    chosen_on = group_differences(crosscoder, *contrast.part(held_out=False))
    directions, difference = target_of(TwoModels.of(crosscoder), chosen_on, contrast.model, "difference")
    on_choice = shares(chosen_on.feature_acts, directions, difference).nan_to_num(0.0)
    ids = most_of(on_choice.where(chosen_on.feature_acts > 0, 0.0), MOST_CARRIERS)
    return ids, directions[ids] @ difference


def _along(
    crosscoder: InferenceCrosscoder,
    rows: Float[Tensor, "prompt d_in"],
    ids: Int[Tensor, " latent"],
    along: Float[Tensor, " latent"],
) -> Float[Tensor, " prompt"]:
    return crosscoder.encode(rows.to(crosscoder.W_dec)).double().cpu()[:, ids] @ along


def random_prompts(contrast: ContrastRows, seed: int) -> Iterator[ContrastRows]:
    """Yield ten contrasts with as many positive prompts in each part, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(_N_BY_CHANCE):
        positive = contrast.positive.clone()
        for part in (contrast.held_out, ~contrast.held_out):
            members = part.nonzero()[:, 0]
            positive[members] = contrast.positive[members[torch.randperm(len(members), generator=generator)]]
        yield replace(contrast, positive=positive)


def most_of(shares: Float[Tensor, " d_sae"], n: int) -> Int[Tensor, " latent"]:
    """Choose the fewest latents that have 0.98 of all positive shares, at most n."""
    positive = shares.clamp(min=0.0)
    order = positive.argsort(descending=True, stable=True)[: min(n, int((positive > 0).sum()))]
    n_needed = int((positive[order].cumsum(dim=0) < _ENOUGH * positive.sum()).sum()) + 1
    return order[:n_needed]


@torch.no_grad()
def _written(crosscoder: InferenceCrosscoder, positive: Float[Tensor, "prompt d_in"]) -> Float[Tensor, " d_sae"]:
    """Share of each latent in the mean of chat - base over some prompts, less what the decoder biases write."""
    base, chat = crosscoder.layout.split(positive.double().cpu().mean(dim=0))
    bias_base, bias_chat = (bias.detach().double().cpu() for bias in crosscoder.decoder_biases)
    f = crosscoder.encode(positive.to(crosscoder.W_dec)).double().cpu().mean(dim=0)
    d_base, d_chat = (decoder.detach().double().cpu() for decoder in crosscoder.decoders)
    return shares(f, d_chat - d_base, (chat - bias_chat) - (base - bias_base)).nan_to_num(0.0)


def presence_in_other(
    crosscoder: InferenceCrosscoder, contrast: ContrastRows, seed: int = 0
) -> tuple[float, float, float]:
    """Part of the writer's contrast that the other model has, with its 95 % interval.

    `<Dmu^other, Dmu^own> / |Dmu^own|^2` in the trained space, from the means of the two groups of held-out prompts; the
    interval is a bootstrap of the prompts of each group.
    """
    scale = crosscoder.layout.expand(crosscoder.activation_scales).detach().double().cpu()
    groups = [rows.double().cpu() * scale for rows in contrast.part(held_out=True)]
    own = 0 if contrast.model == "base" else 1
    value = _projection([rows.mean(dim=0) for rows in groups], crosscoder, own)
    generator = torch.Generator().manual_seed(seed)
    drawn = [
        _projection(
            [rows[torch.randint(len(rows), (len(rows),), generator=generator)].mean(dim=0) for rows in groups],
            crosscoder,
            own,
        )
        for _ in range(_N_RESAMPLES)
    ]
    low, high = torch.tensor(drawn).quantile(torch.tensor(_INTERVAL)).tolist()
    return value, low, high


def _projection(means: list[Float[Tensor, " d_in"]], crosscoder: InferenceCrosscoder, own: int) -> float:
    parts = crosscoder.layout.split(means[0] - means[1])
    return float(parts[1 - own] @ parts[own] / parts[own].square().sum())
