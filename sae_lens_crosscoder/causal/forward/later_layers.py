"""A model's layers from some block on, run by themselves in each of the two kinds of model that can do it."""

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
    """What `resume_from` asks of a model."""

    @abstractmethod
    def alone(self) -> AbstractContextManager[None]:
        """Inside, `logits` does not run the earlier layers."""

    @abstractmethod
    def keys_and_values(self, residual: Float[Tensor, "prompt pos d_model"], tokens: Int[Tensor, "prompt pos"]) -> Any:
        """Those of the first positions of every prompt. Not to be called inside `alone`."""

    @abstractmethod
    def logits(
        self,
        residual: Float[Tensor, "row pos d_model"],
        tokens: Int[Tensor, "row pos"],
        wanted: Bool[Tensor, "row pos"],
        past: Any,
        prompts: Int[Tensor, " row"],
    ) -> Float[Tensor, "selected d_vocab"]:
        """Where they are wanted, row by row; `past` is what `keys_and_values` gave, of which row r continues
        prompt `prompts[r]`, or None.
        """


def later_layers_of(model: Any, first: int) -> LaterLayers:
    """The model's layers from `first` on, or a ValueError for a kind of model that cannot be resumed."""
    if isinstance(model, HookedTransformer):
        if model.cfg.positional_embedding_type == "shortformer":
            raise ValueError("A shortformer adds positions inside every layer, so its residual stream cannot resume.")
        return _OfHookedTransformer(model, first)
    if isinstance(model, TransformerBridge):
        return _OfBridge(model, first)
    raise ValueError(
        f"A {type(model).__name__} cannot be resumed from a hook: load the models with "
        "model_class_name='HookedTransformer' or 'TransformerBridge', or use hooks and full passes (patched)."
    )


class _OfHookedTransformer(LaterLayers):
    """`start_at_layer` does it, and with as many layers as there are it is the unembedding alone."""

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
        wanted: Tensor,
        past: TransformerLensKeyValueCache | None,
        prompts: Tensor,
    ) -> Tensor:
        past = None if past is None else copy_key_value_cache(past, prompts)
        final = self.model(residual, start_at_layer=self.first, stop_at_layer=self.end, past_kv_cache=past)
        return self.model(final[wanted][None], start_at_layer=self.end)[0]


class _OfBridge(LaterLayers):
    """A bridge raises for `start_at_layer`, since Hugging Face's model owns the loop over layers.

    So the earlier blocks hand on what they are given, and the residual stream is written where it is next read.
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

        def handed_on(*args: Any, **kwargs: Any) -> Any:
            hidden_states = args[0] if args else kwargs["hidden_states"]
            return hidden_states if n_outputs is None else (hidden_states, *[None] * (n_outputs - 1))

        try:
            for block in self.earlier:
                vars(block)["forward"] = handed_on  # a plain assignment would end up in Hugging Face's own module
            yield
        finally:
            for block in self.earlier:
                vars(block).pop("forward", None)  # which uncovers the class's own

    @override
    def keys_and_values(self, residual: Tensor, tokens: Tensor) -> Any:
        # Earlier layers run, because Hugging Face reads the positions and masks of all layers off the first ones.
        with replaced_activations(self.model, {self.read_at: residual}), _unembedding_only(self.model, tokens < 0):
            _, past = self.model(tokens, return_type="logits_and_cache", use_cache=True)
        return past

    @override
    def logits(self, residual: Tensor, tokens: Tensor, wanted: Tensor, past: Any, prompts: Tensor) -> Tensor:
        arguments: dict[str, Any] = {"use_cache": False}
        if past is not None:
            arguments = {"use_cache": True, "past_key_values": copy_key_value_cache(past, prompts)}
        with replaced_activations(self.model, {self.read_at: residual}), _unembedding_only(self.model, wanted):
            return self.model(tokens, **arguments)[0]

    def _outputs_per_block(self) -> int | None:
        """How long the tuple is that a block returns, as GPT-Neo's do, or None for a tensor; found by one token."""
        lengths: list[int | None] = []

        def look(module: Any, args: Any, output: Any) -> None:
            lengths.append(len(output) if isinstance(output, tuple) else None)

        handle = self.model.blocks[0].register_forward_hook(look)
        try:
            self.model(torch.zeros(1, 1, dtype=torch.long, device=device_of(self.model)), stop_at_layer=1)
        finally:
            handle.remove()
        return lengths[0]


@contextmanager
def _unembedding_only(model: Any, wanted: Bool[Tensor, "row pos"]) -> Generator[None]:
    """Inside, the model's logits are (1, selected, d_vocab)."""

    def select(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][wanted][None], *args[1:])

    handle = model.unembed.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
