"""Two sources of a crosscoder, compared: the base and the chat model of a reading."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, JumpReLUCrosscoder
from sae_lens_crosscoder.stacking import hook_of_model, join_models, split_models

_ABSENT = 0.2
"""Of a latent's largest decoder norm: as far from it as a one-sided latent's smaller norm is from its larger one."""


@dataclass(frozen=True)
class ComparedSources:
    """Two sources of a crosscoder that reads more than these, such as two of three models."""

    names: tuple[str, str]
    """Names of the sources in `crosscoder.layout`; the first takes the place of base, the second that of chat."""
    places: tuple[int, int]
    """Their places in the stack."""
    crosscoder: InferenceCrosscoder
    """Decoders, biases and scales of these sources, as of a pair. Its codes are those of all sources: never encode
    with it."""

    @classmethod
    def of(cls, crosscoder: InferenceCrosscoder, models: Sequence[str]) -> "ComparedSources":
        """Compare two sources by name; see `source_places`."""
        places = source_places(crosscoder, models)
        names = crosscoder.layout.names
        absent = absent_from(crosscoder.decoder_norms.detach(), places)
        return cls((names[places[0]], names[places[1]]), places, _decoders_of(crosscoder, places), absent)

    absent: Bool[Tensor, " d_sae"]
    """True for latents of other sources: in both of these, they are below 0.2 times their largest decoder norm."""

    @property
    def trained_names(self) -> tuple[str, str]:
        """Names of the two models as far as the crosscoder knows them, else those of the sources."""
        metadata = self.crosscoder.cfg.metadata
        first, second = metadata.model_name or self.names[0], metadata.chat_model_name or self.names[1]
        return (first, second) if first != second else self.names


def source_places(crosscoder: InferenceCrosscoder, models: Sequence[str]) -> tuple[int, int]:
    """Places of two sources in the stack, named as in `crosscoder.layout.names` or, at one hook, as the models are.

    Raises:
        ValueError: unless these are two different sources.
    """
    layout = crosscoder.layout
    known = {name: place for place, name in enumerate(layout.names)}
    if not layout.hook_names:
        known = {name: m for m, name in enumerate(crosscoder.model_names) if name is not None} | known
    places = [known.get(name) for name in models]
    if len(places) != 2 or None in places or places[0] == places[1]:
        raise ValueError(
            f"models={list(models)!r} must name two sources of the crosscoder, which has {', '.join(known)}. Pass two "
            "of these names, the one to compare with first."
        )
    first, second = (place for place in places if place is not None)
    return first, second


def absent_from(norms: Float[Tensor, "d_sae source"], places: Sequence[int]) -> Bool[Tensor, " d_sae"]:
    """True for latents that are in none of these sources: below 0.2 times their largest decoder norm.

    >>> absent_from(torch.tensor([[1.0, 0.1, 0.1], [1.0, 1.0, 0.1]]), (1, 2))
    tensor([ True, False])
    """
    return norms[:, list(places)].amax(dim=1) < _ABSENT * norms.amax(dim=1)


def cut_to(
    stacked: Float[Tensor, "*rows d_in"], crosscoder: InferenceCrosscoder, places: Sequence[int]
) -> Float[Tensor, "*rows _"]:
    """Slices of some sources side by side."""
    parts = crosscoder.layout.split(stacked)
    return torch.cat([parts[place] for place in places], dim=-1)


def compared_of(crosscoder: InferenceCrosscoder, models: Sequence[str] | None, purpose: str) -> ComparedSources | None:
    """The two sources to compare; None for those of a crosscoder of two, if no names are given.

    Raises:
        ValueError: for names that are not two sources, or no names for a crosscoder of more than two models.
    """
    if models is not None:
        return ComparedSources.of(crosscoder, models)
    validate_named(crosscoder, purpose)
    return None


def validate_named(crosscoder: InferenceCrosscoder, purpose: str) -> None:
    """Raise a ValueError for a crosscoder of more than two models, for which `models=` was not given."""
    names = crosscoder.layout.names
    _validate_at_most_two(crosscoder, purpose, f"Choose two, such as models={(names[0], names[-1])}.")


def validate_two_models(crosscoder: InferenceCrosscoder, purpose: str) -> None:
    """Raise a ValueError for a crosscoder of more than two models, of which `purpose` cannot choose two."""
    way_out = "Diagnose two of them with slc.diagnose(..., models=(first, second))."
    _validate_at_most_two(crosscoder, purpose, way_out)


def _validate_at_most_two(crosscoder: InferenceCrosscoder, purpose: str, way_out: str) -> None:
    layout = crosscoder.layout
    if layout.n_models > 2:
        raise ValueError(
            f"{purpose} compares two models, but this crosscoder reads {layout.n_models}: "
            f"{', '.join(layout.of_models.names)}. {way_out}"
        )


@torch.no_grad()
def _decoders_of(crosscoder: InferenceCrosscoder, places: tuple[int, int]) -> InferenceCrosscoder:
    cfg, widths = crosscoder.cfg, crosscoder.layout.d_models
    models = _model_of_source(crosscoder)
    metadata = copy.deepcopy(cfg.metadata)
    metadata.model_name, metadata.chat_model_name = (models[place] for place in places)
    metadata.sources = None
    if len(split_models(metadata.hook_name or "")) > 1:
        metadata.hook_name = join_models([hook_of_model(metadata.hook_name, place) for place in places])
    changes = {
        "d_in": 0,
        "d_model": None,
        "d_models": tuple(widths[place] for place in places),
        "hook_names": None,
        "causality": "acausal",
        "metadata": metadata,
    }
    for name in ("activation_scales", "activation_means"):
        values = getattr(cfg, name)
        changes[name] = None if values is None else tuple(values[place] for place in places)
    pair = type(crosscoder)(replace(cfg, **changes))
    state = {
        "W_dec": cut_to(crosscoder.W_dec, crosscoder, places),
        "b_dec": cut_to(crosscoder.b_dec, crosscoder, places),
        "W_enc": cut_to(crosscoder.W_enc.T, crosscoder, places).T,
        "b_enc": crosscoder.b_enc,
    }
    if isinstance(crosscoder, JumpReLUCrosscoder):
        state["threshold"] = crosscoder.threshold
    pair.load_state_dict(state)
    return pair.to(crosscoder.W_dec.device)


def _model_of_source(crosscoder: InferenceCrosscoder) -> list[str | None]:
    """Name of the model that each source reads."""
    n_hooks = max(1, len(crosscoder.layout.hook_names))
    return [name for name in crosscoder.model_names for _ in range(n_hooks)]
