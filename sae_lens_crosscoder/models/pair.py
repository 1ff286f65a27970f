"""HookedModelPair: a base and a chat model that run as one model with stacked activations."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from typing_extensions import override

from sae_lens_crosscoder.models.adapters import lower_layers_once
from sae_lens_crosscoder.models.hook_access import (
    activation_at,
    cached_activation,
    common_hook_names,
    device_of,
    is_split_by_head,
    is_stackable,
    replaced_activations,
    stack,
    validate_common_hooks,
    validate_hook_name,
)
from sae_lens_crosscoder.models.lean_pass import lean_activations
from sae_lens_crosscoder.models.loading import load_models, validate_same_tokenizer
from sae_lens_crosscoder.models.outputs import ReturnType, stacked_outputs
from sae_lens_crosscoder.models.patch_state import PatchState
from sae_lens_crosscoder.models.shared_parameters import shared_parameters
from sae_lens_crosscoder.models.splicing import SplicedModels
from sae_lens_crosscoder.models.token_replacements import replace_embedded_tokens, replacement_ids
from sae_lens_crosscoder.models.wrapping import hooked_models, validate_names
from sae_lens_crosscoder.stacking import StackedLayout


class HookedModelPair(SplicedModels):
    """A base and a chat model that read the same tokens; at a hook, their activations are stacked, base first.

    SAELens's `ActivationsStore`, training runners and `run_evals` accept it like any model. Add hooks with
    TransformerLens's own `hooks`, `run_with_hooks` and `add_hook`: a hook function gets the stacked activation
    (batch, pos, d_in) and may return an edited one, of which each model continues with its slice.

    Logits are (batch, pos, model, vocab) and losses per model: (model,), or (batch, pos - 1, model) per token. Both are
    over the ids that all models have, if their vocabularies differ in size.

    Args:
        models: the base and the chat model, in this order; HookedTransformer, TransformerBridge, HookedProxyLM or
            Hugging Face models, which are wrapped in place, or PeftModels, whose base model (or None) may be the base.
            They may differ in width and device.
        model_names: names stored in saved crosscoders, so that a crosscoder of another pair is refused.
        token_replacements: control tokens of the chat model and the tokens that the other models read instead, for
            base models that lack them or never learned them; `models.TOKEN_REPLACEMENTS` has some. It changes the given
            models permanently.
        tokenizer: for Hugging Face models; None to load it from the name or folder that the model was loaded from.

    Raises:
        ValueError: for an object that cannot be used, tokenizers that differ, or models without a common hook.
    """

    def __init__(
        self,
        *models: Any,
        model_names: Sequence[str] | None = None,
        token_replacements: Mapping[str, str] | None = None,
        tokenizer: Any = None,
    ) -> None:
        super().__init__()
        if len(models) < 2:
            raise ValueError(f"Got {len(models)} models, expected at least two, base first.")
        models = hooked_models(models, tokenizer)
        self.members: Any = nn.ModuleList(models)
        self.model_names = None if model_names is None else tuple(model_names)
        tokenizers = [getattr(model, "tokenizer", None) for model in models]
        self.token_replacements = dict(token_replacements or {})
        ids = replacement_ids(self.token_replacements, tokenizers[0], tokenizers[-1])
        validate_same_tokenizer(tokenizers, ids)
        self.replaced_ids = ids
        """The token ids of `token_replacements`."""
        for model in models[:-1]:
            replace_embedded_tokens(model, ids)
        self.tokenizer: Any = getattr(models[-1], "tokenizer", None)
        """The chat model's, because it carries the chat template."""
        self.patch_state = PatchState()
        self.splices = {}
        self.setup()

    @classmethod
    def from_pretrained(
        cls,
        base: Any,
        chat: Any,
        *,
        device: str = "cpu",
        chat_device: str | None = None,
        dtype: str = "float32",
        model_class_name: str = "HookedTransformer",
        token_replacements: Mapping[str, str] | None = None,
        **model_from_pretrained_kwargs: Any,
    ) -> "HookedModelPair":
        """Load two models with raw weights: folding and centring would move the residual stream.

        Args:
            base, chat: Hub names, local folders, or the built-in `tiny-base`, `tiny-chat`, `tiny-null`.
                `NAME+adapter=FOLDER_OR_HUB_ID` puts a LoRA adapter on NAME; if both have the same NAME and device, they
                share one copy of its weights.
            chat_device: the chat model's device; None for the base model's.
            model_class_name: `HookedTransformer`, `TransformerBridge` or `AutoModelForCausalLM` (HookedProxyLM).
                Local folders, and other models that HookedTransformer cannot load, are loaded with TransformerBridge.
            token_replacements: see the class.

        Raises:
            ValueError: if the tokenizers give different ids; the message shows the first difference.
        """
        base, chat = validate_names(base, chat)
        devices = (device, chat_device or device)
        models = load_models((base, chat), devices, dtype, model_class_name, model_from_pretrained_kwargs)
        return cls(*models, model_names=(base, chat), token_replacements=token_replacements)

    @override
    def setup(self) -> None:
        """Create the pair's own hook points, under the names that all models share.

        The inherited `setup` must not run: it would rename the models' hook points.
        """
        names = common_hook_names(self.members)
        validate_common_hooks(names, self.members)
        self.hook_dict = {name: HookPoint() for name in names if not is_split_by_head(name)}
        for name, hook_point in self.hook_dict.items():
            hook_point.name = name
        self.mod_dict = dict(self.hook_dict)

    @property
    def base(self) -> Any:
        """The first of the models."""
        return self.members[0]

    @property
    def chat(self) -> Any:
        """The last of the models."""
        return self.members[-1]

    @property
    def shared_parameters(self) -> list[str]:
        """Names of the chat model's parameters that are also another member's, so that the models are not two."""
        return [name for model in self.members[:-1] for name in shared_parameters(model, self.chat)]

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        """The base model's embedding, whose device SAELens moves tokens to."""
        if hasattr(self.base, "W_E"):
            return self.base.W_E
        return self.base.model.get_input_embeddings().weight

    def to_tokens(self, *args: Any, **kwargs: Any) -> Int[Tensor, "batch pos"]:
        """The chat model's `to_tokens`."""
        return self.chat.to_tokens(*args, **kwargs)

    def validate_hook(self, hook_name: str) -> None:
        """Raise a ValueError unless all models have the hook and its activations can be stacked."""
        validate_hook_name(hook_name, self.hook_dict)

    @override
    def add_hook(self, name: str | Callable[[str], bool], hook: Any, *args: Any, **kwargs: Any) -> None:
        """TransformerLens's `add_hook`; raises a ValueError for a hook that cannot be stacked."""
        if isinstance(name, str):
            self.validate_hook(name)
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
        super()._enable_hook(name, hook, dir)

    def validate_trained_on(self, *model_names: str | None) -> None:
        """Raise a ValueError if a crosscoder was trained on models with other names; unknown names are accepted."""
        if self.model_names is None or any(name is None for name in model_names):
            return
        if self.model_names != model_names:
            raise ValueError(
                f"This crosscoder was trained on {' and '.join(map(str, model_names))}, but the pair is "
                f"{' and '.join(self.model_names)}. Load the pair that it was trained on."
            )

    @override
    def layout_at(self, hook_name: str) -> StackedLayout:
        """The models' widths at a hook, measured by running one token."""
        self.validate_hook(hook_name)
        token = torch.zeros(1, 1, dtype=torch.long)
        return StackedLayout(tuple(part.shape[-1] for part in self._read(token, hook_name, {})))

    def activations(
        self, tokens: Int[Tensor, "batch pos"], hook_name: str, **model_kwargs: Any
    ) -> Float[Tensor, "batch pos d_in"]:
        """Stacked activations at one hook; each model runs once and stops right after the hook's layer."""
        self.validate_hook(hook_name)
        stop = extract_stop_at_layer_from_tlens_hook_name(hook_name)
        options: dict[str, Any] = {"stop_at_layer": stop, "prepend_bos": False, **model_kwargs}
        if not self.splices and not any(point.has_hooks(dir="fwd") for point in self.hook_dict.values()):
            parts = lean_activations(self.members, tokens, hook_name, options)
            if parts is not None:
                return stack(parts)
        return self.run_with_cache(tokens, names_filter=[hook_name], return_type=None, **options)[1][hook_name]

    @override
    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        return_type: ReturnType = "logits",
        loss_per_token: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Run all models on the same token ids with the pair's hooks applied.

        Each hook costs one more forward pass (up to its layer), which reads the activations to edit.
        """
        edits = self._edits(tokens)
        outputs: list[Any] = []
        for m, model in enumerate(self.members):
            with replaced_activations(model, {name: parts[m] for name, parts in edits.items()}):
                outputs.append(model(tokens.to(device_of(model)), return_type="logits", **kwargs))
        return stacked_outputs(outputs, tokens, return_type, loss_per_token, kwargs.get("stop_at_layer") is not None)

    @override
    def run_with_cache(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        tokens: Int[Tensor, "batch pos"],
        names_filter: str | Sequence[str] | Callable[[str], bool] | None = None,
        return_type: ReturnType = "logits",
        loss_per_token: bool = False,
        **kwargs: Any,
    ) -> tuple[Any, dict[str, Tensor]]:
        """Return the output, and stacked activations (batch, pos, d_in) by hook name."""
        names = self._resolve_names(names_filter)
        with self._caching_saes(names) as of_saes:
            edits = self._edits(tokens)
        names = [name for name in names if name not in of_saes]
        outputs: list[Any] = []
        caches: list[dict[str, Tensor]] = []
        with lower_layers_once(() if edits else self.members, kwargs):
            for m, model in enumerate(self.members):
                with replaced_activations(model, {name: parts[m] for name, parts in edits.items()}):
                    output, cache = model.run_with_cache(tokens.to(device_of(model)), names_filter=names, **kwargs)
                outputs.append(output)
                caches.append({name: cache[name] for name in names if name in cache})
        output = stacked_outputs(outputs, tokens, return_type, loss_per_token, kwargs.get("stop_at_layer") is not None)
        if names_filter is None or callable(names_filter):  # a pattern skips hooks that did not run
            names = [name for name in names if all(is_stackable(cache.get(name)) for cache in caches)]
        return output, {name: stack([cached_activation(cache, name) for cache in caches]) for name in names} | of_saes

    def _edits(self, tokens: Tensor) -> dict[str, tuple[Tensor, ...]]:
        """Edited activations by hook name, one per model, in the order in which the models reach the hooks."""
        own = {name: self.hook_dict[name] for name in self._hooks_of_models()}
        hooked = [name for name, point in own.items() if name in self.splices or point.has_hooks(dir="fwd")]
        edits: dict[str, tuple[Tensor, ...]] = {}
        for name in self._in_order_of_execution(tokens, hooked):
            parts = self._read(tokens, name, edits)
            layout = StackedLayout(tuple(part.shape[-1] for part in parts))
            edited = self.hook_dict[name](layout.stack(parts))
            if name in self.splices:
                edited = self.splices[name](edited, tokens)
            pieces = layout.split(edited)
            edits[name] = tuple(piece.to(part) for piece, part in zip(pieces, parts, strict=True))
        return edits

    def _in_order_of_execution(self, tokens: Tensor, names: list[str]) -> list[str]:
        if len(names) < 2:
            return names
        _, cache = self.base.run_with_cache(tokens.to(device_of(self.base)), names_filter=names)
        reached = [name for name in cache if name in names]
        return reached + [name for name in names if name not in cache]  # `_read` raises for these

    def _read(self, tokens: Tensor, name: str, edits: dict[str, tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Each model's activation at a hook, with the edits made so far."""
        parts: list[Tensor] = []
        for m, model in enumerate(self.members):
            with replaced_activations(model, {earlier: values[m] for earlier, values in edits.items()}):
                parts.append(activation_at(model, tokens, name))
        return tuple(parts)

    def _resolve_names(self, names_filter: str | Sequence[str] | Callable[[str], bool] | None) -> list[str]:
        if callable(names_filter):
            return [name for name in self.hook_dict if names_filter(name)]
        if names_filter is None:
            return list(self.hook_dict)
        names = [names_filter] if isinstance(names_filter, str) else list(names_filter)
        for name in names:
            self.validate_hook(name)
        return names
