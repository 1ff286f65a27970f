"""Reading several models at a hook, or at joined ones, while some of their activations are replaced."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from sae_lens_crosscoder.models.hook_access import (
    activations_at,
    cached_activation,
    device_of,
    replaced_activations,
    stack,
    stop_after,
)
from sae_lens_crosscoder.stacking import StackedLayout, hook_of_model, split_hooks, split_models

Edits = Sequence[Mapping[str, Tensor]]
"""Edited activations by hook name, for each model."""


def activations_of_models(models: Iterable[Any], tokens: Tensor, hook_name: str, edits: Edits) -> list[list[Tensor]]:
    """Each model's activations at its hook, or at each of joined ones, with the edits made so far."""
    parts: list[list[Tensor]] = []
    for m, (model, earlier) in enumerate(zip(models, edits, strict=True)):
        with replaced_activations(model, earlier):
            parts.append(activations_at(model, tokens, hook_of_model(hook_name, m)))
    return parts


def layout_of_models(models: Iterable[Any], hook_name: str) -> StackedLayout:
    """The models' widths at a hook, measured by running one token."""
    members, token, hooks = list(models), torch.zeros(1, 1, dtype=torch.long), split_hooks(hook_name)
    read = activations_of_models(members, token, hook_name, [{} for _ in members])
    return StackedLayout(tuple(part.shape[-1] for parts in read for part in parts), hooks if len(hooks) > 1 else ())


def validate_order_of_hooks(models: Iterable[Any], hook_name: str) -> None:
    """Raise a ValueError unless joined hooks are named in the order in which the models reach them."""
    names = split_hooks(hook_name)
    reached = tuple(in_order_of_execution(models, torch.zeros(1, 1, dtype=torch.long), names))
    if reached != names:
        raise ValueError(f"The models reach the hooks {names} in another order, {reached}: name them in that one.")


def edits_of_models(
    models: Iterable[Any], tokens: Tensor, hook_names: Sequence[str], edit: Callable[[str, Tensor], Tensor]
) -> list[dict[str, Tensor]]:
    """Edited activations by hook name for each model, edited in the order in which the models reach the hooks.

    Joined hooks are read in one pass, before any of them is edited.

    Args:
        edit: takes a name and the stacked activation there, and returns what the models continue with.
    """
    models = list(models)
    edits: list[dict[str, Tensor]] = [{} for _ in models]
    for name in in_order_of_execution(models, tokens, hook_names):
        parts = activations_of_models(models, tokens, name, edits)
        flat = list(chain.from_iterable(parts))
        layout = StackedLayout(tuple(part.shape[-1] for part in flat))
        stacked = layout.stack(flat)
        n_changes = stacked._version
        edited = edit(name, stacked)
        if len(flat) > len(parts) and edited is stacked and stacked._version == n_changes:
            continue  # it was only read, so that later hooks still follow earlier edits
        pieces = (piece.to(part) for piece, part in zip(layout.split(edited), flat, strict=True))
        for m, of_model in enumerate(edits):
            of_model.update({hook: next(pieces) for hook in split_hooks(hook_of_model(name, m))})
    return edits


def in_order_of_execution(models: Iterable[Any], tokens: Tensor, hook_names: Sequence[str]) -> list[str]:
    """Hooks in the order in which a pass reaches them; joined ones come before the first of them.

    Raises:
        ValueError: for a hook per model, if the models reach them in different orders.
    """
    if len(hook_names) < 2:
        return list(hook_names)
    per_model = any(len(split_models(name)) > 1 for name in hook_names)
    ordered = models if per_model else islice(models, 1)
    orders = [_order(model, m, tokens, hook_names) for m, model in enumerate(ordered)]
    if any(order != orders[0] for order in orders):
        raise ValueError(
            f"The models reach the hooks {list(hook_names)} in different orders, so none of them can be edited first. "
            "Edit one of them at a time."
        )
    return orders[0]


def _order(model: Any, m: int, tokens: Tensor, hook_names: Sequence[str]) -> list[str]:
    """Hooks in the order in which a pass of model `m` reaches them."""
    of_model = {name: split_hooks(hook_of_model(name, m)) for name in hook_names}
    hooks = list(dict.fromkeys(chain.from_iterable(of_model.values())))
    _, cache = model.run_with_cache(tokens.to(device_of(model)), names_filter=hooks)
    place = {hook: i for i, hook in enumerate(cache)}

    def order(name: str) -> tuple[int, bool]:
        return min(place.get(hook, len(place)) for hook in of_model[name]), len(of_model[name]) == 1

    return sorted(hook_names, key=order)


def stop_of_model(stop_at_layer: int | None, hook_names: Sequence[str], model: int) -> int | None:
    """The layer at which a model stops, if SAELens derived `stop_at_layer` from the first hook that a name contains.

    With joined hooks it may be a later one; with a hook per model, each model stops after its own.
    """
    per_model = any(len(split_models(name)) > 1 for name in hook_names)
    named = hook_names if per_model else [name for name in hook_names if len(split_hooks(name)) > 1]
    stops = [stop_after(hook_of_model(name, model)) for name in named]
    known = [stop for stop in stops if stop is not None]
    if stop_at_layer is None or len(known) < len(stops):
        return None
    return max(known if per_model else [stop_at_layer, *known])


def stacked_activations(caches: Sequence[Mapping[str, Tensor]], hook_name: str) -> Tensor:
    """The models' activations at a hook, or at joined ones, side by side, from a cache for each model."""
    of_models = [(cache, split_hooks(hook_of_model(hook_name, m))) for m, cache in enumerate(caches)]
    return stack([cached_activation(cache, hook) for cache, hooks in of_models for hook in hooks])
