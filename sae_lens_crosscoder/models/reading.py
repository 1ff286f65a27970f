"""Reading several models at a hook, or at joined ones, while some of their activations are replaced."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from sae_lens_crosscoder.models.hook_access import activations_at, device_of, replaced_activations, stop_after
from sae_lens_crosscoder.stacking import split_hooks

Edits = Mapping[str, tuple[Tensor, ...]]
"""Edited activations by hook name, one per model."""


def activations_of_models(models: Iterable[Any], tokens: Tensor, hook_name: str, edits: Edits) -> list[list[Tensor]]:
    """Each model's activations at a hook, or at each of joined ones, with the edits made so far."""
    parts: list[list[Tensor]] = []
    for m, model in enumerate(models):
        with replaced_activations(model, {earlier: values[m] for earlier, values in edits.items()}):
            parts.append(activations_at(model, tokens, hook_name))
    return parts


def in_order_of_execution(model: Any, tokens: Tensor, hook_names: Sequence[str]) -> list[str]:
    """Hooks in the order in which a pass reaches them; joined ones come before the first of them."""
    if len(hook_names) < 2:
        return list(hook_names)
    hooks = [hook for name in hook_names for hook in split_hooks(name)]
    _, cache = model.run_with_cache(tokens.to(device_of(model)), names_filter=list(dict.fromkeys(hooks)))
    place = {hook: i for i, hook in enumerate(cache)}

    def order(name: str) -> tuple[int, bool]:
        hooks = split_hooks(name)
        return min(place.get(hook, len(place)) for hook in hooks), len(hooks) == 1

    return sorted(hook_names, key=order)


def later_stop(stop_at_layer: int | None, hook_names: Iterable[str]) -> int | None:
    """The layer to stop at, or a later one that joined hooks need, as SAELens derives it from the first of them."""
    stops = [stop_after(name) for name in hook_names if len(split_hooks(name)) > 1]
    known = [stop for stop in stops if stop is not None]
    return None if stop_at_layer is None or len(known) < len(stops) else max([stop_at_layer, *known])
