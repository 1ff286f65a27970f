"""Several hooks or models of a run: given to every crosscoder as its sources."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sae_lens_crosscoder.models.hook_access import validate_one_hook_each
from sae_lens_crosscoder.stacking import join_hooks, join_models, split_hooks, split_models

DEFAULT_HOOK_NAME = "blocks.13.hook_resid_post"


def set_hook_per_model(cfg: Any) -> None:
    """Join a runner config's `model_hook_names` to one `hook_name`.

    Raises:
        ValueError: unless there is one hook per model, and no other choice of hooks.
    """
    if cfg.model_hook_names is None:
        if len(split_models(cfg.hook_name)) == 1:
            return
        cfg.model_hook_names = list(split_models(cfg.hook_name))
    if len(cfg.model_hook_names) != len(cfg.model_names):
        raise ValueError(
            f"model_hook_names={cfg.model_hook_names} names {len(cfg.model_hook_names)} hooks for "
            f"{len(cfg.model_names)} models, {', '.join(cfg.model_names)}. Name one per model, in their order."
        )
    joined = join_models(cfg.model_hook_names)
    if cfg.hook_name not in (DEFAULT_HOOK_NAME, joined):
        raise ValueError(f"Give either hook_name={cfg.hook_name!r} or model_hook_names, not both.")
    if cfg.hook_names is not None:
        raise ValueError(
            f"Give either hook_names={cfg.hook_names}, at which every model is read, or model_hook_names, not both."
        )
    cfg.hook_name = joined
    validate_one_hook_each(joined, len(cfg.model_names))


def set_several_hooks(cfg: Any) -> None:
    """Join a runner config's `hook_names` to one `hook_name`, and give every crosscoder its sources.

    Raises:
        ValueError: for one model at one hook, `hook_name` beside `hook_names`, or widths of other sources.
    """
    if cfg.hook_names is None and len(split_hooks(cfg.hook_name)) > 1:
        cfg.hook_names = list(split_hooks(cfg.hook_name))
    saes = [cfg.sae] if cfg.saes is None else list(cfg.saes.values())
    if cfg.hook_names is None:
        if cfg.chat_model_name is None:
            raise ValueError(
                f"chat_model_name=None leaves one model, {cfg.model_name}, at one hook, {cfg.hook_name}: that is an "
                "SAE, which SAELens trains. Name several hooks as hook_names, or a chat model."
            )
        if any(getattr(sae, "causality", "acausal") == "weak" for sae in saes):
            raise ValueError("causality='weak' needs several hooks, in the layers' order: name them as hook_names.")
        if len(cfg.model_names) > 2:
            _set_sources(cfg, saes, ())
        return
    joined = join_hooks(cfg.hook_names)
    if cfg.hook_name not in (DEFAULT_HOOK_NAME, joined):
        raise ValueError(f"Give either hook_name={cfg.hook_name!r} or hook_names={cfg.hook_names}, not both.")
    cfg.hook_name = joined
    _set_sources(cfg, saes, cfg.hook_names)


def _set_sources(cfg: Any, saes: Sequence[Any], hook_names: Sequence[str]) -> None:
    n_models = len(cfg.model_names)
    saes = [None if sae is None else with_sources(sae, hook_names, n_models) for sae in saes]
    if cfg.saes is None:
        cfg.sae = saes[0]
    else:
        cfg.saes = dict(zip(cfg.saes, saes, strict=True))


def with_sources(cfg: Any, hook_names: Sequence[str], n_models: int) -> Any:
    """A crosscoder's config with a source for each model and hook, of the widths that it states or of its `d_model`.

    Args:
        hook_names: empty for one hook.
    """
    if not hasattr(cfg, "hook_names"):
        return cfg  # which is no crosscoder's, and refused as such
    hooks, n_sources = tuple(hook_names), n_models * max(1, len(hook_names))
    if cfg.hook_names not in (None, hooks):
        raise ValueError(f"The crosscoder's hook_names={cfg.hook_names} are not the run's {hooks}. Leave them out.")
    widths = cfg.d_models
    if len(widths) != n_sources and cfg.d_model is not None and cfg.hook_names is None:
        widths = n_sources * (cfg.d_model,)
    if len(widths) != n_sources:
        raise ValueError(
            f"d_models={widths} has {len(widths)} widths, expected {n_sources}, one for each of {n_models} models at "
            f"each of {max(1, len(hooks))} hooks: the base model's at all hooks, then the chat model's."
        )
    if (cfg.hook_names or (), cfg.d_models) == (hooks, widths):
        return cfg
    return replace(cfg, d_in=0, d_model=None, d_models=widths, hook_names=hooks or None)
