"""The layers of a model from one block on, run alone, for each kind of host that supports it."""

from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache
from transformer_lens.model_bridge import TransformerBridge
from typing_extensions import override

from sae_lens_crosscoder.models.hook_access import device_of, replaced_activations
from sae_lens_crosscoder.models.key_value_cache import copy_key_value_cache


class LaterLayers(ABC):
    """Interface of a host that `resume_from` can use."""

    @abstractmethod
    def alone(self) -> AbstractContextManager[None]:
        """Context in which `logits` skips the earlier layers."""

    @abstractmethod
    def keys_and_values(self, residual: Float[Tensor, "prompt pos d_model"], tokens: Int[Tensor, "prompt pos"]) -> Any:
        """Keys and values of the first positions of every prompt. Must not be called inside `alone`."""

    @abstractmethod
    def logits(
        self,
        residual: Float[Tensor, "row pos d_model"],
        tokens: Int[Tensor, "row pos"],
        selected: Bool[Tensor, "row pos"],
        past: Any,
        prompts: Int[Tensor, " row"],
    ) -> Float[Tensor, "selected d_vocab"]:
        """Logits at the selected positions, row by row.

        Args:
            past: the result of `keys_and_values`, of which row r continues prompt `prompts[r]`; or None.
        """


def has_later_layers(model: Any) -> bool:
    """True if `later_layers_of` supports the model."""
    if isinstance(model, HookedTransformer):
        return model.cfg.positional_embedding_type != "shortformer"
    return isinstance(model, TransformerBridge)


def validate_later_layers(model: Any) -> None:
    """Raise a ValueError, with the way out, for a host whose later layers cannot run alone."""
    if has_later_layers(model):
        return
    if isinstance(model, HookedTransformer):
        raise ValueError(
            "The model is a shortformer, which adds positions inside every layer, so a forward pass cannot resume from "
            "its residual stream. Use `patched`, which runs full passes."
        )
    raise ValueError(
        f"The model is a {type(model).__name__}, whose layers after a hook cannot run alone. Load the pair with "
        "model_class_name='HookedTransformer' or 'TransformerBridge', or use `patched`, which runs full passes."
    )


def later_layers_of(model: Any, first: int) -> LaterLayers:
    """The model's layers from `first` on; raises a ValueError for a host that cannot be resumed."""
    validate_later_layers(model)
    return (
        _HookedTransformerLayers(model, first) if isinstance(model, HookedTransformer) else _BridgeLayers(model, first)
    )


class _HookedTransformerLayers(LaterLayers):
    """Uses `start_at_layer`; starting at `n_layers` runs the final norm and the unembedding alone."""

    def __init__(self, model: HookedTransformer, first: int) -> None:
        self.model: Any = model
        self.first = first
        self.end = model.cfg.n_layers

    @override
    def alone(self) -> AbstractContextManager[None]:
        return nullcontext()

    @override
    def keys_and_values(self, residual: Tensor, tokens: Tensor) -> TransformerLensKeyValueCache:
        past = TransformerLensKeyValueCache.init_cache(self.model.cfg, residual.device, len(residual))
        self.model(residual, start_at_layer=self.first, stop_at_layer=self.end, past_kv_cache=past)
        return past

    @override
    def logits(
        self,
        residual: Tensor,
        tokens: Tensor,
        selected: Tensor,
        past: TransformerLensKeyValueCache | None,
        prompts: Tensor,
    ) -> Tensor:
        past = None if past is None else copy_key_value_cache(past, prompts)
        final = self.model(residual, start_at_layer=self.first, stop_at_layer=self.end, past_kv_cache=past)
        return self.model(final[selected][None], start_at_layer=self.end)[0]


class _BridgeLayers(LaterLayers):
    """Turns the earlier blocks into pass-throughs and writes the residual stream at the hook that reads it next.

    A bridge raises for `start_at_layer`, because Hugging Face's model owns the loop over layers.
    """

    def __init__(self, model: TransformerBridge, first: int) -> None:
        self.model: Any = model
        self.earlier: Any = self.model.blocks[:first]
        is_layer = first < len(self.model.blocks)
        self.read_at = f"blocks.{first}.hook_resid_pre" if is_layer else "ln_final.hook_in"

    @override
    @contextmanager
    def alone(self) -> Generator[None]:
        n_outputs = self._outputs_per_block()

        def pass_through(*args: Any, **kwargs: Any) -> Any:
            hidden_states = args[0] if args else kwargs["hidden_states"]
            return hidden_states if n_outputs is None else (hidden_states, *[None] * (n_outputs - 1))

        try:
            for block in self.earlier:
                vars(block)["forward"] = pass_through  # a plain assignment would set it on Hugging Face's module
            yield
        finally:
            for block in self.earlier:
                vars(block).pop("forward", None)  # which uncovers the class's method

    @override
    def keys_and_values(self, residual: Tensor, tokens: Tensor) -> Any:
        # Earlier layers run, because Hugging Face derives the positions and masks of all layers from the first ones.
        with replaced_activations(self.model, {self.read_at: residual}), _unembedding_only(self.model, tokens < 0):
            _, past = self.model(tokens, return_type="logits_and_cache", use_cache=True)
        return past

    @override
    def logits(self, residual: Tensor, tokens: Tensor, selected: Tensor, past: Any, prompts: Tensor) -> Tensor:
        arguments: dict[str, Any] = {"use_cache": False}
        if past is not None:
            arguments = {"use_cache": True, "past_key_values": copy_key_value_cache(past, prompts)}
        with replaced_activations(self.model, {self.read_at: residual}), _unembedding_only(self.model, selected):
            return self.model(tokens, **arguments)[0]

    def _outputs_per_block(self) -> int | None:
        """Length of the tuple a block returns (GPT-Neo), or None for a tensor; found by running one token."""
        lengths: list[int | None] = []

        def record(module: Any, args: Any, output: Any) -> None:
            lengths.append(len(output) if isinstance(output, tuple) else None)

        handle = self.model.blocks[0].register_forward_hook(record)
        try:
            self.model(torch.zeros(1, 1, dtype=torch.long, device=device_of(self.model)), stop_at_layer=1)
        finally:
            handle.remove()
        return lengths[0]


@contextmanager
def _unembedding_only(model: Any, positions: Bool[Tensor, "row pos"]) -> Generator[None]:
    """Context in which the model unembeds the marked positions only; its logits are (1, selected, d_vocab)."""

    def select(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][positions][None], *args[1:])

    handle = model.unembed.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
