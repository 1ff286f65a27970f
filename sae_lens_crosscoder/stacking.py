"""The stacked axis: activations of several sources side by side, and the borders between them.

A source is an activation of one model at one hook. A crosscoder reads `h = [h^base, h^chat]`, concatenated on the last
axis, or each model at several hooks; its matrices are stacked the same way. Only this module knows the borders.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

_BETWEEN_HOOKS = "+"
_BETWEEN_MODELS = "|"
_SMALL = 2**17
"""Numbers of an array that is read faster in one pass than part by part."""


def join_hooks(hook_names: Sequence[str]) -> str:
    """One name for several hooks that are read together; a single hook keeps its name.

    >>> join_hooks(["blocks.1.hook_resid_post", "blocks.2.hook_resid_post"])
    'blocks.1.hook_resid_post+blocks.2.hook_resid_post'
    """
    return _BETWEEN_HOOKS.join(hook_names)


def split_hooks(hook_name: str) -> tuple[str, ...]:
    """The inverse of `join_hooks`.

    >>> split_hooks("a+b"), split_hooks("blocks.1.hook_resid_post")
    (('a', 'b'), ('blocks.1.hook_resid_post',))
    """
    return tuple(hook_name.split(_BETWEEN_HOOKS))


def join_models(hook_names: Sequence[str]) -> str:
    """One name for a hook per model, in the order of the stack; a hook that all models share keeps its name.

    >>> join_models(["blocks.1.hook_resid_post", "blocks.3.hook_resid_post"])
    'blocks.1.hook_resid_post|blocks.3.hook_resid_post'
    >>> join_models(["blocks.1.hook_resid_post", "blocks.1.hook_resid_post"])
    'blocks.1.hook_resid_post'
    """
    return hook_names[0] if len(set(hook_names)) == 1 else _BETWEEN_MODELS.join(hook_names)


def split_models(hook_name: str) -> tuple[str, ...]:
    """The inverse of `join_models`: one name per model, or one name for all models.

    >>> split_models("a|b"), split_models("a+b")
    (('a', 'b'), ('a+b',))
    """
    return tuple(hook_name.split(_BETWEEN_MODELS))


def hook_of_model(hook_name: str, model: int) -> str:
    """The hook, or the hooks joined by `+`, at which a model of the stack is read.

    >>> hook_of_model("a|b", 1), hook_of_model("a+b", 1)
    ('b', 'a+b')
    """
    names = split_models(hook_name)
    return names[0] if len(names) == 1 else names[model]


@dataclass(frozen=True)
class StackedLayout:
    """The widths of the stacked sources: the models at one hook, base first and chat last, or at several hooks.

    With several hooks, a model's sources lie together, in the order of the hooks.

    >>> layout = StackedLayout((2, 3))
    >>> layout.d_in, layout.n_sources, layout.names
    (5, 2, ('base', 'chat'))
    >>> [tuple(part.shape) for part in layout.split(torch.zeros(7, 5))]
    [(7, 2), (7, 3)]
    >>> StackedLayout((2, 2, 3, 3), hook_names=("early", "late")).names
    ('base@early', 'base@late', 'chat@early', 'chat@late')
    """

    d_models: tuple[int, ...]
    hook_names: tuple[str, ...] = ()
    """The hooks at which every model is read; empty for one hook, whatever its name."""

    def __post_init__(self) -> None:
        if not self.d_models or any(width < 1 for width in self.d_models):
            raise ValueError(
                f"d_models={self.d_models} must contain at least one model, each at least 1 wide. Pass the width of "
                "every model's residual stream, such as (2304, 2304)."
            )
        if not self.hook_names:
            return
        if len(set(self.hook_names)) != len(self.hook_names) or len(self.hook_names) == 1:
            raise ValueError(
                f"hook_names={self.hook_names} must be at least two different hooks. Name every hook once; for one "
                "hook, leave hook_names out."
            )
        if len(self.d_models) % len(self.hook_names):
            raise ValueError(
                f"d_models={self.d_models} has {len(self.d_models)} widths, expected one for every model at each of "
                f"{len(self.hook_names)} hooks. Pass the base model's widths at all hooks, then the chat model's."
            )

    @property
    def d_in(self) -> int:
        """Width of the stacked axis, the sum of `d_models`."""
        return sum(self.d_models)

    @property
    def n_sources(self) -> int:
        """Number of stacked activations, the models times the hooks."""
        return len(self.d_models)

    @property
    def n_models(self) -> int:
        """Number of models."""
        return self.n_sources // max(1, len(self.hook_names))

    @property
    def is_pair(self) -> bool:
        """True for two models at one hook, the layout in which a latent has a base and a chat decoder."""
        return self.n_models == 2 and not self.hook_names

    @property
    def same_width(self) -> bool:
        """True if all sources have one width, so that their directions can be compared."""
        return len(set(self.d_models)) == 1

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sources in tables and metrics."""
        models = ("base", "chat") if self.n_models == 2 else tuple(f"model_{m}" for m in range(self.n_models))
        if not self.hook_names:
            return models
        if len(models) == 1:
            return self.hook_names
        return tuple(f"{model}@{hook_name}" for model in models for hook_name in self.hook_names)

    def of_model(self, model: str) -> tuple[int, ...]:
        """Places of a model's sources, by its name in `of_models.names`, or of one source by its own.

        >>> layout = StackedLayout((1, 1, 1, 1), hook_names=("early", "late"))
        >>> layout.of_model("chat"), layout.of_model("chat@early"), layout.of_model("other")
        ((2, 3), (2,), ())
        """
        if model in self.names:
            return (self.names.index(model),)
        n, models = max(1, len(self.hook_names)), self.of_models.names
        return tuple(n * models.index(model) + hook for hook in range(n)) if model in models else ()

    @property
    def owners(self) -> tuple[str, ...]:
        """The words before "activations" in a message about each source.

        >>> StackedLayout((1, 1)).owners, StackedLayout((1, 1), hook_names=("early", "late")).owners
        (("base model's", "chat model's"), ('early', 'late'))
        """
        if self.n_models == 1 and self.hook_names:
            return self.hook_names
        models = [name.partition("@") for name in self.names]
        return tuple(f"{model} model's {hook_name}".rstrip() for model, _, hook_name in models)

    @property
    def of_models(self) -> "StackedLayout":
        """The same axis with one part per model, its hooks side by side.

        >>> StackedLayout((2, 2, 3, 3), hook_names=("early", "late")).of_models
        StackedLayout(d_models=(4, 6), hook_names=())
        """
        n = max(1, len(self.hook_names))
        return StackedLayout(tuple(sum(self.d_models[first : first + n]) for first in range(0, self.n_sources, n)))

    def split(self, stacked: Float[Tensor, "*rows d_in"]) -> tuple[Float[Tensor, "*rows _"], ...]:
        """Each source's slice of the last axis, as views."""
        if stacked.shape[-1] != self.d_in:
            raise ValueError(
                f"The last axis is {stacked.shape[-1]} wide, expected {self.d_in}, the sum of the models' widths "
                f"{self.d_models}. Check d_models and the hook of the activations."
            )
        return tuple(stacked.split(list(self.d_models), dim=-1))

    def at_hooks(
        self, of_model: Float[Tensor, "*rows _"], model: int, hook_name: str
    ) -> dict[str, Float[Tensor, "*rows _"]]:
        """Split one model's slice by the hooks at which `hook_name` reads it.

        >>> layout = StackedLayout((1, 2, 1, 2), hook_names=("early", "late"))
        >>> layout.at_hooks(torch.tensor([3.0, 4.0, 5.0]), model=1, hook_name="early+late")
        {'early': tensor([3.]), 'late': tensor([4., 5.])}
        """
        hooks = split_hooks(hook_of_model(hook_name, model))
        first = model * len(hooks)
        parts = of_model.split(list(self.d_models[first : first + len(hooks)]), dim=-1)
        return dict(zip(hooks, parts, strict=True))

    def stack(self, parts: Sequence[Float[Tensor, "*rows _"]]) -> Float[Tensor, "*rows d_in"]:
        """The inverse of `split`; moves parts to the first one's device."""
        widths = tuple(part.shape[-1] for part in parts)
        if widths != self.d_models:
            raise ValueError(
                f"The parts are {widths} wide, expected {self.d_models}. Pass one part per model, in the same order."
            )
        return torch.cat([part.to(parts[0].device) for part in parts], dim=-1)

    def norms(self, stacked: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows source"]:
        """Euclidean norm of each source's slice, with gradient (0 at a zero slice).

        >>> StackedLayout((1, 2)).norms(torch.tensor([[-2.0, 3.0, 4.0]]))
        tensor([[2., 5.]])
        """
        parts = self.split(stacked)
        # In one pass, but for arrays that are large: the gradient of one pass holds several of all parts at once.
        if len(set(self.d_models)) == 1 and stacked.numel() <= _SMALL:
            return torch.linalg.vector_norm(stacked.unflatten(-1, (self.n_sources, -1)), dim=-1)
        return torch.stack([torch.linalg.vector_norm(part, dim=-1) for part in parts], dim=-1)

    def scale_(
        self, stacked: Float[Tensor, "*rows d_in"], factors: Float[Tensor, "*rows source"]
    ) -> Float[Tensor, "*rows d_in"]:
        """Multiply each source's slice of each row by a factor, in place.

        >>> StackedLayout((1, 2)).scale_(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[10.0, 100.0]]))
        tensor([[ 10., 200., 300.]])
        """
        if len(set(self.d_models)) == 1:  # in one pass
            stacked.unflatten(-1, (self.n_sources, -1)).mul_(factors.unsqueeze(-1))
            return stacked
        for part, factor in zip(self.split(stacked), factors.unbind(dim=-1), strict=True):
            part.mul_(factor.unsqueeze(-1))
        return stacked

    def expand(self, per_source: Float[Tensor, " source"]) -> Float[Tensor, " d_in"]:
        """Repeat one number per source over that source's slice.

        >>> StackedLayout((1, 2)).expand(torch.tensor([5.0, 7.0]))
        tensor([5., 7., 7.])
        """
        repeats = torch.tensor(self.d_models, device=per_source.device)
        return per_source.repeat_interleave(repeats, output_size=self.d_in)
