"""Patching in a notebook: an intervention that holds inside a `with` block."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Final, Literal

import torch
from jaxtyping import Bool
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from sae_lens_crosscoder.causal.patching.interventions import (
    How,
    Intervention,
    Latents,
    MaxActivation,
    ModelName,
    intervention,
)
from sae_lens_crosscoder.causal.patching.requirements import require_pair_of
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, require_hook_name
from sae_lens_crosscoder.models.hook_access import validate_hook_name
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.stacking import StackedLayout

N_BEFORE: Final = "sae_lens_crosscoder.n_before"
"""Where a hook point says how many tokens were read before those that come now, while a pair generates."""
# Where the outermost patch at a hook point leaves the activations as they were before all patches, for nested ones.
_UNEDITED = "sae_lens_crosscoder.unedited"


@contextmanager
def patched(
    host: Any,
    crosscoder: InferenceCrosscoder,
    latents: Latents,
    how: How = "replace",
    *,
    model: ModelName | None = None,
    positions: Bool[Tensor, "batch pos"] | None = None,
    coefficient: float = 1.0,
    max_activation: MaxActivation = None,
    with_bias: bool = False,
    read_by: Literal["own", "chat"] = "own",
) -> Generator[Any]:
    """Run `host` with an intervention on latents; every way of running it inside the block sees the edited activations.

    Blocks nest: at one hook, what they add adds up, and every one goes by the latents' activations without any patch
    there. On leaving, also by an exception, the hooks are gone.

    Args:
        host: the pair, which costs a pass of both models up to the hook before the answering pass. `steer` needs no
            activations, so it also takes one model alone (then `model` says which), and holds while that model
            generates, with a cache of keys and values or without.
        latents, how, model, coefficient, max_activation, with_bias: see `intervention`.
        positions: the positions that are edited, of the shape of the tokens, such as the masks that `chat_tokens`
            makes; None means all. What `generate_patched` writes after masked prompts is not edited.
        read_by: whose later layers read the patched base activation: `own`, every model its own activation; `chat`,
            the chat model the base model's, as in the paper's experiment. The chat model's logits are `[:, :, -1]`.

    Raises:
        ValueError: for what cannot work: one model alone with an intervention that needs both models' activations,
            a pair the crosscoder was not trained on, a hook that the host does not have, positions of another shape.
    """
    options: dict[str, Any] = {"coefficient": coefficient, "max_activation": max_activation, "with_bias": with_bias}
    edit = intervention(crosscoder, latents, how, model=model, **options)
    if positions is not None and positions.dtype != torch.bool:
        raise ValueError(f"positions must be a mask of bools, not of {positions.dtype}: give mask.bool().")
    if isinstance(host, HookedModelPair):
        hook_name = require_pair_of(crosscoder, host)
        _refuse_reader(crosscoder.layout, read_by)
        context = host.hook_dict[hook_name].ctx
        outermost = _UNEDITED not in context
        context.setdefault(_UNEDITED)
        hook = _edit_of_pair(crosscoder.layout, edit, positions, read_by, outermost)
    else:
        hook_name = require_hook_name(crosscoder)
        validate_hook_name(hook_name, host.hook_dict)
        _refuse_one_model(how, model, read_by)
        outermost, context = False, {}
        hook = _edit_of_model(edit.deltas(None)[crosscoder.layout.names.index(str(model))], positions)
    try:
        with host.hooks(fwd_hooks=[(hook_name, hook)]):
            yield host
    finally:
        if outermost:
            context.pop(_UNEDITED, None)


def _edit_of_pair(
    layout: StackedLayout, edit: Intervention, positions: Tensor | None, read_by: str, outermost: bool
) -> Callable[..., Tensor]:
    def hook_function(stacked: Tensor, hook: HookPoint) -> Tensor:
        if outermost:
            hook.ctx[_UNEDITED] = stacked
        deltas = edit.deltas(hook.ctx[_UNEDITED])
        now = _of_this_pass(positions, hook.ctx.get(N_BEFORE, 0), stacked)
        parts = [_added(part, delta, now) for part, delta in zip(layout.split(stacked), deltas, strict=True)]
        if read_by == "chat":
            parts[-1] = parts[0]
        return layout.stack(parts)

    return hook_function


def _edit_of_model(delta: Tensor | None, positions: Tensor | None) -> Callable[..., Tensor]:
    def hook_function(activation: Tensor, hook: HookPoint) -> Tensor:
        return _added(activation, delta, positions)

    return hook_function


def _of_this_pass(positions: Tensor | None, n_before: int, stacked: Tensor) -> Tensor | None:
    """Of a mask of prompts, what the tokens after the first `n_before` are marked as."""
    if positions is None or n_before == 0:
        return positions
    written = positions.new_zeros(len(positions), max(0, n_before + stacked.shape[1] - positions.shape[1]))
    return torch.cat([positions, written], dim=1)[:, n_before : n_before + stacked.shape[1]]


def _added(activation: Tensor, delta: Tensor | None, positions: Tensor | None) -> Tensor:
    """A new tensor: the hosts go on using the one they hand to hooks."""
    if delta is None:
        return activation
    if delta.shape[-1] != activation.shape[-1]:
        raise ValueError(
            f"The crosscoder writes {delta.shape[-1]} numbers, but the model's activation is {activation.shape[-1]} "
            "wide: it was trained on another model, or model= names the wrong one."
        )
    delta = delta.to(activation)
    if positions is not None:
        if positions.shape != activation.shape[:-1]:
            raise ValueError(
                f"positions has shape {tuple(positions.shape)}, but the tokens are {tuple(activation.shape[:-1])}: "
                "mark every position of every prompt. While one model generates, its tokens come one at a time: edit "
                "all positions (positions=None), or use generate_patched on the pair."
            )
        delta = torch.where(positions.to(delta.device)[..., None], delta, 0)
    return activation + delta


def _refuse_reader(layout: StackedLayout, read_by: str) -> None:
    if read_by not in ("own", "chat"):
        raise ValueError(f"read_by={read_by!r} is not one of 'own', 'chat'.")
    if read_by == "chat" and not layout.same_width:
        raise ValueError(
            f"read_by='chat' hands the base model's activation to the chat model, but the models are {layout.d_models} "
            "wide: only models of one width share a basis."
        )


def _refuse_one_model(how: str, model: str | None, read_by: str) -> None:
    if how != "steer" or read_by != "own":
        raise ValueError(
            f"how={how!r} (read_by={read_by!r}) cannot work on one model alone: a latent's activation depends on both "
            "models' activations. Give the HookedModelPair, or use how='steer', which needs no activations."
        )
    if model is None:
        raise ValueError("For one model alone, say which of the pair it is: model='base' or model='chat'.")
