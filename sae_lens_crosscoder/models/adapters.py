"""Models that share one copy of their weights and differ in a LoRA adapter, which is on for one model's passes only."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

from sae_lens.load_model import HookedProxyLM
from sae_lens.util import extract_layer_from_tlens_hook_name
from torch import nn
from transformer_lens.model_bridge import TransformerBridge


class SharedModel:
    """A hooked model whose Hugging Face model carries adapters, of which at most one is on.

    Args:
        host: the hooked model.
        model: its Hugging Face model, with peft's layers.
        blocks: the modules of its transformer blocks, in order.
        parameters: the parameters of each adapter, by peft's name of it.
        first_adapted: the first block that an adapter changes.
    """

    def __init__(
        self,
        host: Any,
        model: nn.Module,
        blocks: Sequence[nn.Module],
        parameters: Mapping[str, Iterable[nn.Parameter]],
        first_adapted: int,
    ) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        self.host = host
        self.lower_blocks = list(blocks[:first_adapted])
        self.context_level = int(host.context_level)
        self.running_view: "AdapterView | None" = None
        self.replaces_tokens = False
        """True if one of the models reads other tokens, so that no layer gives all of them the same activations."""
        self._layers: list[Any] = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
        self._adapter_of = {id(p): name for name, group in parameters.items() for p in group}
        self.hook_points: dict[str, Any] = dict(host.hook_dict)
        lower = [point for name, point in self.hook_points.items() if _layer_of(name, default=-1) < first_adapted]
        self._lower_hook_points = list({id(point): point for point in lower}.values())
        self._switch(None)

    def view(self, adapter: str | None) -> Any:
        """A hooked model that runs with one adapter on, or with none."""
        view_class: Any = _BridgeView if isinstance(self.host, TransformerBridge) else _ProxyView
        view = object.__new__(view_class)
        view.__dict__.update({k: v for k, v in vars(self.host).items() if k != "context_level"})
        view.__dict__.update(shared=self, adapter_name=adapter)
        return view

    def is_parameter_of(self, parameter: nn.Parameter, adapter: str | None) -> bool:
        """True for the base model's parameters and the given adapter's."""
        return self._adapter_of.get(id(parameter), adapter) == adapter

    @contextmanager
    def running(self, view: "AdapterView") -> Generator[None]:
        """Context in which the view's adapter is on, and no other."""
        previous = self.running_view
        if previous is not view:
            self._switch(view)
        try:
            yield
        finally:
            if previous is not view:
                self._switch(previous)

    def _switch(self, view: "AdapterView | None") -> None:
        adapter = None if view is None else view.adapter_name
        for layer in self._layers:
            if adapter is not None:
                layer.set_adapter([adapter])
            layer.enable_adapters(adapter is not None)
        self.running_view = view

    def can_share(self) -> bool:
        """True if the blocks below the first adapted one give all models the same activations."""
        is_hooked = any(point.has_hooks(dir="both") for point in self._lower_hook_points)
        return bool(self.lower_blocks) and not self.replaces_tokens and not is_hooked


class AdapterView:
    """Mixin of a hooked model that runs a `SharedModel` with its own adapter on; hook points are shared.

    Hooks added to a view fire in its own passes only.
    """

    shared: SharedModel
    adapter_name: str | None

    @property
    def context_level(self) -> int:
        """The host's depth of hook contexts, which all views count together, as they share hook points."""
        return self.shared.context_level

    @context_level.setter
    def context_level(self, level: int) -> None:
        self.shared.context_level = level

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that came with the adapter, or else the base model's."""
        own = vars(self).get("adapter_tokenizer")
        return self.shared.host.tokenizer if own is None else own

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The host's forward pass with the view's adapter."""
        with self.shared.running(self):
            return self._host.forward(*args, **kwargs)

    def hf_generate(self, *args: Any, **kwargs: Any) -> Any:
        """The host's `hf_generate` with the view's adapter."""
        with self.shared.running(self):
            return self._host.hf_generate(*args, **kwargs)

    def hooks(self, fwd_hooks: Any = (), *args: Any, **kwargs: Any) -> Any:
        """The host's `hooks`; forward hooks fire in this view's passes only."""
        return self._host.hooks([(name, self._only_here(hook)) for name, hook in fwd_hooks], *args, **kwargs)

    def add_hook(self, name: Any, hook: Any, dir: str = "fwd", *args: Any, **kwargs: Any) -> None:
        """The host's `add_hook`; a forward hook fires in this view's passes only."""
        self._host.add_hook(name, self._only_here(hook) if dir == "fwd" else hook, dir, *args, **kwargs)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The shared parameters, and those of the view's own adapter."""
        return (p for p in self._host.parameters(recurse) if self.shared.is_parameter_of(p, self.adapter_name))

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """The shared parameters, and those of the view's own adapter, with their names."""
        named = self._host.named_parameters(*args, **kwargs)
        return ((name, p) for name, p in named if self.shared.is_parameter_of(p, self.adapter_name))

    @property
    def is_running(self) -> bool:
        """True during a forward pass of this view."""
        return self.shared.running_view is self

    @property
    def _host(self) -> Any:
        """The methods of the host's class, bound to this view."""
        return super()

    def _only_here(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(hook, assigned=())
        def hook_of_view(*args: Any, **kwargs: Any) -> Any:
            return hook(*args, **kwargs) if self.is_running else None

        return hook_of_view


class _BridgeView(AdapterView, TransformerBridge):  # pyright: ignore[reportIncompatibleMethodOverride]
    @property
    def hook_dict(self) -> dict[str, Any]:
        # A bridge finds its hooks and resolves their aliases again at every access, several times per pass.
        return dict(self.shared.hook_points)


class _ProxyView(AdapterView, HookedProxyLM):  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]
    pass


def shared_model_of(models: Iterable[Any]) -> SharedModel | None:
    """The model that all given models are views of; None if there is no such model."""
    sources = [model.shared if isinstance(model, AdapterView) else None for model in models]
    return sources[0] if sources and all(source is sources[0] for source in sources) else None


@contextmanager
def as_running(model: Any) -> Generator[None]:
    """Context for calls of a model's inner modules: of a view of a shared model, its adapter is on."""
    if not isinstance(model, AdapterView):
        yield
        return
    with model.shared.running(model):
        yield


def is_reading(model: Any) -> bool:
    """True unless the model is a view of a shared model and another view's pass is in progress."""
    return model.is_running if isinstance(model, AdapterView) else True


def _layer_of(hook_name: str, default: int) -> int:
    layer = extract_layer_from_tlens_hook_name(hook_name)
    return default if layer is None else layer
