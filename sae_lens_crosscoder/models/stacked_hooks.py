"""Hook points of several models that run as one: the models' common hooks, and joined ones."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedRootModule import HookedRootModule
from typing_extensions import override

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.models.hook_access import validate_hook_name, validate_hook_per_model
from sae_lens_crosscoder.stacking import split_hooks, split_models


class StackedHooks(HookedRootModule):
    """Hooks whose functions get stacked activations, under the names that all models share."""

    members: Any
    hook_dict: dict[str, HookPoint]
    joined_hooks: set[str]
    """Names of joined hooks, and of a hook per model, that have a point of their own in `hook_dict`; a pattern of names
    leaves them out."""

    @validate_arguments
    def validate_hook(self, hook_name: str) -> None:
        """Raise a ValueError unless all models have the hook, or the joined hooks, and activations can be stacked.

        With a hook per model, each model must have its own.
        """
        if hook_name in self.hook_dict:
            return
        names = split_hooks(hook_name)
        if len(split_models(hook_name)) > 1:
            validate_hook_per_model(hook_name, self.members)
        else:
            for name in names:
                validate_hook_name(name, self.hook_dict)
        if len(set(names)) < len(names):
            raise ValueError(f"The hook {hook_name!r} joins a hook with itself. Name every hook once.")
        self.joined_hooks.add(hook_name)
        point = self.hook_dict[hook_name] = self.mod_dict[hook_name] = HookPoint()
        point.name = hook_name

    @override
    def add_hook(self, name: str | Callable[[str], bool], hook: Any, *args: Any, **kwargs: Any) -> None:
        """TransformerLens's `add_hook`; raises a ValueError for a hook that cannot be stacked."""
        if isinstance(name, str):
            self.validate_hook(name)
        else:
            name = self._pattern(name)
        super().add_hook(name, hook, *args, **kwargs)

    @override
    def check_hooks_to_add(self, *args: Any, dir: str = "fwd", **kwargs: Any) -> None:
        """Raise a ValueError for a backward hook: a pair's answer does not flow through its own hook points."""
        if dir != "fwd":
            raise ValueError("A pair has no backward hooks. Add them to pair.base and pair.chat instead.")

    @override
    def _enable_hook(
        self, name: str | Callable[..., Any], hook: Callable[..., Any], dir: Literal["fwd", "bwd"]
    ) -> None:
        # `hooks` and `run_with_hooks` call this, and would raise a bare KeyError for an unknown name.
        self.check_hooks_to_add(dir=dir)
        if isinstance(name, str):
            self.validate_hook(name)
        else:
            name = self._pattern(name)
        super()._enable_hook(name, hook, dir)

    def _pattern(self, matches: Callable[[str], bool]) -> Callable[[str], bool]:
        return lambda name: name not in self.joined_hooks and matches(name)

    def _resolve_names(self, names_filter: str | Sequence[str] | Callable[[str], bool] | None) -> list[str]:
        if names_filter is None or callable(names_filter):
            return list(filter(self._pattern(names_filter or (lambda name: True)), self.hook_dict))
        names = [names_filter] if isinstance(names_filter, str) else list(names_filter)
        for name in names:
            self.validate_hook(name)
        return names
