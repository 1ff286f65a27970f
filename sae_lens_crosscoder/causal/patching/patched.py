"""Patching as a context manager: an intervention that holds inside a `with` block."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.causal.patching.intervention import (
    How,
    Intervention,
    LatentIds,
    MaxActivation,
    intervention,
)
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, hook_name_of
from sae_lens_crosscoder.crosscoders.origin import validate_pair
from sae_lens_crosscoder.crosscoders.two_models import TwoModels
from sae_lens_crosscoder.models.hook_access import validate_hook_name
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.models.patch_state import PatchState
from sae_lens_crosscoder.stacking import StackedLayout, hook_of_model, split_hooks

HookFunction = Callable[..., Tensor | None]


@validate_arguments
@contextmanager
def patched(
    host: Any,
    crosscoder: InferenceCrosscoder,
    latent_ids: LatentIds,
    how: How = "replace",
    *,
    model: str | None = None,
    models: Sequence[str] | None = None,
    positions: Bool[Tensor, "batch pos"] | None = None,
    coefficient: float = 1.0,
    max_activation: MaxActivation = None,
    with_bias: bool = False,
    read_by: Literal["own", "chat"] = "own",
) -> Generator[Any]:
    """Run `host` under an intervention on latents; every forward pass inside the block sees the edited activations.

    Blocks nest: edits at one hook add up, and each reads the latents from the activations before any patch at that
    hook. The hooks are removed on exit, also after an exception.

    A crosscoder over several hooks edits all of them. Latents are read from unedited activations, and a later hook's
    edit is added to what earlier ones made of the activation there, as plain TransformerLens hooks do.

    Args:
        host: the pair; each forward pass then costs one more pass of both models up to the hook. `steer` reads no
            activations, so it also takes one model alone (`model` names it), and holds while that model generates,
            with or without a key/value cache.
        latent_ids, how, model, models, coefficient, max_activation, with_bias: see `intervention`.
        positions: mask of the edited positions, shaped like the tokens, such as the masks of `chat_tokens`; None edits
            all. Tokens that `generate_patched` writes after masked prompts are not edited.
        read_by: the layers that read the patched base activation. With `own` each model reads its own; with `chat` the
            chat model reads the base model's, as in the paper's experiment. Its logits are `[:, :, -1]`. With `models`,
            the second reads the first one's.

    Raises:
        ValueError: for one model alone with an intervention that reads both models' activations, a pair the crosscoder
            was not trained on, a hook the host does not have, or positions of another shape.
    """
    options: dict[str, Any] = {"coefficient": coefficient, "max_activation": max_activation, "with_bias": with_bias}
    edit = intervention(crosscoder, latent_ids, how, model=model, models=models, **options)
    if positions is not None and positions.dtype != torch.bool:
        raise ValueError(f"positions must be a bool mask, but its dtype is {positions.dtype}. Pass mask.bool().")
    if isinstance(host, HookedModelPair):
        hook_name = validate_pair(crosscoder, host)
        host.validate_one_tokenizer("A patch of the pair")
        handed = _handed(crosscoder, models, read_by)
        make = _joined_hooks if crosscoder.layout.hook_names else _pair_hook
        with (
            make(host.patch_state, hook_name, crosscoder.layout, edit, positions, handed) as hooks,
            host.hooks(fwd_hooks=[*hooks]),
        ):
            yield host
        return
    if not hasattr(host, "hook_dict"):
        raise ValueError(f"host is a {type(host).__name__}, expected a HookedModelPair or one of its models.")
    layout = crosscoder.layout
    name = layout.of_models.names[0] if layout.n_models == 1 else model
    _validate_single_model(how, name, read_by)
    hook_names = split_hooks(hook_of_model(hook_name_of(crosscoder), layout.of_models.names.index(str(name))))
    for hook_name in hook_names:
        validate_hook_name(hook_name, host.hook_dict)
    deltas = edit.deltas(None)
    at_hooks = [_model_hook(deltas[place], positions) for place in layout.of_model(str(name))]
    with host.hooks(fwd_hooks=list(zip(hook_names, at_hooks, strict=True))):
        yield host


@contextmanager
def _pair_hook(
    state: PatchState,
    hook_name: str,
    layout: StackedLayout,
    edit: Intervention,
    positions: Tensor | None,
    handed: tuple[int, int] | None,
) -> Generator[list[tuple[str, HookFunction]]]:
    """The hook of one patch, and its function; the outermost patch keeps the unedited activation for nested ones."""
    outermost = hook_name not in state.unedited

    def edit_stacked(stacked: Tensor, hook: HookPoint) -> Tensor:
        if outermost:
            state.unedited[hook_name] = stacked
        deltas = edit.deltas(state.unedited[hook_name])
        mask = _mask_of_pass(positions, state, stacked.shape[1])
        parts = [_added(part, delta, mask) for part, delta in zip(layout.split(stacked), deltas, strict=True)]
        if handed is not None:
            parts[handed[1]] = parts[handed[0]]
        return layout.stack(parts)

    state.unedited.setdefault(hook_name)
    try:
        yield [(hook_name, edit_stacked)]
    finally:
        if outermost:
            del state.unedited[hook_name]


@contextmanager
def _joined_hooks(
    state: PatchState,
    hook_name: str,
    layout: StackedLayout,
    edit: Intervention,
    positions: Tensor | None,
    handed: tuple[int, int] | None,
) -> Generator[list[tuple[str, HookFunction]]]:
    """The hook functions of one patch at several hooks: one reads all of them at once, and one edits at each."""
    outermost, n_hooks = hook_name not in state.unedited, len(layout.hook_names)

    def read(stacked: Tensor, hook: HookPoint) -> None:
        if outermost:
            state.unedited[hook_name] = stacked

    def editing(place: int) -> HookFunction:
        here = StackedLayout(layout.d_models[place::n_hooks])

        def edit_stacked(stacked: Tensor, hook: HookPoint) -> Tensor:
            deltas = edit.deltas(state.unedited[hook_name], now={place: here.split(stacked)})[place::n_hooks]
            mask = _mask_of_pass(positions, state, stacked.shape[1])
            parts = [_added(part, delta, mask) for part, delta in zip(here.split(stacked), deltas, strict=True)]
            if handed is not None:
                parts[handed[1]] = parts[handed[0]]
            return here.stack(parts)

        return edit_stacked

    state.unedited.setdefault(hook_name)
    try:
        yield [(hook_name, read), *((name, editing(place)) for place, name in enumerate(split_hooks(hook_name)))]
    finally:
        if outermost:
            del state.unedited[hook_name]


def _model_hook(delta: Tensor | None, positions: Tensor | None) -> HookFunction:
    def edit_activation(activation: Tensor, hook: HookPoint) -> Tensor:
        return _added(activation, delta, positions)

    return edit_activation


def _mask_of_pass(positions: Tensor | None, state: PatchState, n_pos: int) -> Tensor | None:
    """The mask of the `n_pos` tokens that a pass reads; tokens that a generation writes are unmarked."""
    if positions is None or state.prompt_length != positions.shape[1]:  # which outside of a generation is None
        return positions
    end = state.n_tokens_read + n_pos
    unmarked = positions.new_zeros(len(positions), max(0, end - positions.shape[1]))
    return torch.cat([positions, unmarked], dim=1)[:, state.n_tokens_read : end]


def _added(activation: Tensor, delta: Tensor | None, positions: Tensor | None) -> Tensor:
    """The activation plus its edit, as a new tensor: the hosts keep using the tensor they hand to hooks."""
    if delta is None:
        return activation
    if delta.shape[-1] != activation.shape[-1]:
        raise ValueError(
            f"The crosscoder's decoder has width {delta.shape[-1]}, but the model's activation has width "
            f"{activation.shape[-1]}. The crosscoder was trained on another model, or model= names the wrong one."
        )
    delta = delta.to(activation)
    if positions is not None:
        if positions.shape != activation.shape[:-1]:
            raise ValueError(
                f"positions has shape {tuple(positions.shape)}, but the tokens have shape "
                f"{tuple(activation.shape[:-1])}. Mark every position of every prompt. A single model generates one "
                "token at a time: use positions=None, or generate_patched on the pair."
            )
        delta = torch.where(positions.to(delta.device)[..., None], delta, 0)
    return activation + delta


def _handed(crosscoder: InferenceCrosscoder, models: Sequence[str] | None, read_by: str) -> tuple[int, int] | None:
    """Places of the model whose activation is handed over, and of the one that reads it; None if each reads its own."""
    layout = crosscoder.layout
    if read_by not in ("own", "chat"):
        raise ValueError(f"Unknown read_by={read_by!r}: expected 'own' or 'chat'.")
    if read_by == "own":
        return None
    if layout.n_models == 1:
        raise ValueError("read_by='chat' needs two models, but the crosscoder reads one. Leave read_by='own'.")
    if layout.n_models > 2 or models is not None:
        return TwoModels.of(crosscoder, models, "read_by='chat'").validate_one_width("read_by='chat'").places
    if not layout.same_width:
        raise ValueError(
            f"read_by='chat' hands the base model's activation to the chat model, but the widths are {layout.d_models}."
            " Only models of one width share a basis."
        )
    return 0, 1


def _validate_single_model(how: str, model: str | None, read_by: str) -> None:
    if how != "steer" or read_by != "own":
        raise ValueError(
            f"how={how!r} with read_by={read_by!r} needs the pair: a latent's activation depends on both models. "
            "Pass the HookedModelPair, or use how='steer', which reads no activations."
        )
    if model is None:
        raise ValueError("A single model needs its name in the pair: pass model='base' or model='chat'.")
