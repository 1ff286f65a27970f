"""HookedModelPair: a base and a chat model, or more models, that run as one model with stacked activations."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from typing_extensions import override

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.models.aligned_models import AlignedModels, alignments_of
from sae_lens_crosscoder.models.hook_access import (
    common_hook_names,
    device_of,
    is_split_by_head,
    is_stackable,
    replaced_activations,
    stack,
    stop_after,
    validate_common_hooks,
)
from sae_lens_crosscoder.models.lean_pass import lean_activations
from sae_lens_crosscoder.models.loading import load_models, validate_same_tokenizer
from sae_lens_crosscoder.models.lower_layers import lower_layers_once
from sae_lens_crosscoder.models.member_names import places_of_two, validate_trained_names, validate_two_members
from sae_lens_crosscoder.models.outputs import ReturnType, stacked_outputs
from sae_lens_crosscoder.models.patch_state import PatchState
from sae_lens_crosscoder.models.reading import (
    edits_of_models,
    layout_of_models,
    stacked_activations,
    stop_of_model,
    validate_order_of_hooks,
)
from sae_lens_crosscoder.models.shared_parameters import shared_parameters
from sae_lens_crosscoder.models.token_replacements import replace_embedded_tokens, replacement_ids
from sae_lens_crosscoder.models.wrapping import hooked_models, validate_names
from sae_lens_crosscoder.stacking import StackedLayout, hook_of_model, split_hooks


class HookedModelPair(AlignedModels):
    """A base and a chat model that read the same tokens; at a hook, their activations are stacked, base first.

    Several hooks, joined by `+` as `blocks.1.hook_resid_post+blocks.2.hook_resid_post`, count as one: the base model's
    activations at all of them, then the chat model's. One model alone can be read at several hooks. A hook per model,
    for models of different depth, is named with `|`, as `blocks.1.hook_resid_post|blocks.3.hook_resid_post`.

    SAELens's `ActivationsStore`, training runners and `run_evals` accept it like any model. Add hooks with
    TransformerLens's own `hooks`, `run_with_hooks` and `add_hook`: a hook function gets the stacked activation
    (batch, pos, d_in) and may return an edited one, of which each model continues with its slice.

    Logits are (batch, pos, model, vocab) and losses per model: (model,), or (batch, pos - 1, model) per token. Both are
    over the ids that all models have, if their vocabularies differ in size.

    Args:
        models: the base and the chat model, in this order, then any others (`of` takes two), or one model;
            HookedTransformer, TransformerBridge, HookedProxyLM or Hugging Face models, which are wrapped in place, or
            PeftModels, whose base model (or None) may be the base. They may differ in width and device.
        model_names: names stored in saved crosscoders, so that a crosscoder of another pair is refused.
        token_replacements: control tokens of the chat model and the tokens that the other models read instead, for
            base models that lack them or never learned them; `models.TOKEN_REPLACEMENTS` has some. It changes the given
            models permanently.
        tokenizer: for Hugging Face models; None to load it from the name or folder that the model was loaded from.
        align_tokens: let the models have different tokenizers. Token ids are the last model's; the others read the same
            text, and tokens that end at the same character are paired (`aligned` says which).

    Raises:
        ValueError: for an object that cannot be used, tokenizers that differ, or models without a common hook.
    """

    def __init__(
        self,
        *models: Any,
        model_names: Sequence[str] | None = None,
        token_replacements: Mapping[str, str] | None = None,
        tokenizer: Any = None,
        align_tokens: bool = False,
    ) -> None:
        super().__init__()
        if not models:
            raise ValueError("Got no models, expected a base and a chat model, or one model to read at several hooks.")
        models = hooked_models(models, tokenizer)
        self.members: Any = nn.ModuleList(models)
        self.model_names = None if model_names is None else tuple(model_names)
        tokenizers = [getattr(model, "tokenizer", None) for model in models]
        self.token_replacements = dict(token_replacements or {})
        ids = replacement_ids(self.token_replacements, tokenizers[0], tokenizers[-1])
        if not align_tokens:
            validate_same_tokenizer(tokenizers, ids)
        self.alignments = alignments_of(models, tokenizers, ids) if align_tokens else (None,) * len(models)
        self.replaced_ids = ids
        """The token ids of `token_replacements`."""
        for model in models[:-1]:
            replace_embedded_tokens(model, ids)
        self.tokenizer: Any = getattr(models[-1], "tokenizer", None)
        """The chat model's, because it carries the chat template."""
        self.patch_state = PatchState()
        self.splices, self.joined_hooks = {}, set()
        self.setup()

    @classmethod
    def from_pretrained(
        cls,
        base: Any,
        chat: Any = None,
        *more: Any,
        device: str = "cpu",
        chat_device: str | None = None,
        dtype: str = "float32",
        model_class_name: str = "HookedTransformer",
        token_replacements: Mapping[str, str] | None = None,
        align_tokens: bool = False,
        **model_from_pretrained_kwargs: Any,
    ) -> "HookedModelPair":
        """Load two models with raw weights: folding and centring would move the residual stream.

        Args:
            base, chat: Hub names, local folders, or the built-in `tiny-base`, `tiny-chat` and others.
                `NAME+adapter=FOLDER_OR_HUB_ID` puts a LoRA adapter on NAME; if both have the same NAME and device, they
                share one copy of its weights.
                Without `chat`, the base model alone, to read at several hooks.
            more: further models, in the order of the stack.
            chat_device: the device of all models but the base model; None for the base model's.
            model_class_name: `HookedTransformer`, `TransformerBridge` or `AutoModelForCausalLM` (HookedProxyLM).
                Local folders, and other models that HookedTransformer cannot load, are loaded with TransformerBridge.
            token_replacements, align_tokens: see the class.

        Raises:
            ValueError: if the tokenizers give different ids; the message shows the first difference.
        """
        names = validate_names(*(model for model in (base, chat, *more) if model is not None))
        devices = (device, *[chat_device or device] * (len(names) - 1))
        models = load_models(names, devices, dtype, model_class_name, model_from_pretrained_kwargs)
        return cls(*models, model_names=names, token_replacements=token_replacements, align_tokens=align_tokens)

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
        """The last of the models.

        Raises:
            ValueError: for one model alone, which has nothing to be compared with.
        """
        if len(self.members) == 1:
            raise ValueError(
                "There is no chat model: this is one model, read at several hooks. To compare two models, load "
                "HookedModelPair(base, chat)."
            )
        return self.members[-1]

    @property
    def shared_parameters(self) -> list[str]:
        """Names of a model's parameters that are also another member's, so that the models are not two."""
        return [name for first, second in combinations(self.members, 2) for name in shared_parameters(first, second)]

    def of(self, first: str, second: str) -> "HookedModelPair":
        """Two of the models as a pair that shares their weights, by name: as in `model_names`, or `model_1` and so on.

        Raises:
            ValueError: unless these are two different models.
        """
        places = places_of_two(self.model_names, len(self.members), first, second)
        self.validate_one_tokenizer("A pair of two members")
        known = None if self.model_names is None else [self.model_names[place] for place in places]
        pair = HookedModelPair(*(self.members[place] for place in places), model_names=known, tokenizer=self.tokenizer)
        pair.token_replacements, pair.replaced_ids = self.token_replacements, self.replaced_ids
        return pair

    def validate_two(self, purpose: str) -> None:
        """Raise a ValueError for more than two models, of which `purpose` cannot choose two, or for two tokenizers."""
        validate_two_members(self.model_names, len(self.members), purpose)
        self.validate_one_tokenizer(purpose)

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        """The base model's embedding, whose device SAELens moves tokens to."""
        if hasattr(self.base, "W_E"):
            return self.base.W_E
        return self.base.model.get_input_embeddings().weight

    def to_tokens(self, *args: Any, **kwargs: Any) -> Int[Tensor, "batch pos"]:
        """The chat model's `to_tokens`."""
        return self.members[-1].to_tokens(*args, **kwargs)

    def validate_trained_on(self, *model_names: str | None) -> None:
        """Raise a ValueError if a crosscoder was trained on models with other names; unknown names are accepted."""
        validate_trained_names(self.model_names, model_names)

    @override
    def layout_at(self, hook_name: str) -> StackedLayout:
        """The models' widths at a hook, measured by running one token."""
        self.validate_hook(hook_name)
        return layout_of_models(self.members, hook_name)

    def validate_order(self, hook_name: str) -> None:
        """Raise a ValueError unless joined hooks are named in the order in which the models reach them."""
        validate_order_of_hooks(self.members, hook_name)

    @validate_arguments
    def activations(
        self, tokens: Int[Tensor, "batch pos"], hook_name: str, **model_kwargs: Any
    ) -> Float[Tensor, "batch pos d_in"]:
        """Stacked activations at a hook, or at joined ones; each model runs once and stops right after its last."""
        self.validate_hook(hook_name)
        options: dict[str, Any] = {"prepend_bos": False, **model_kwargs}
        if not self.has_one_tokenizer:
            return self._aligned_activations(tokens, hook_name, options)
        if not self.splices and not any(point.has_hooks(dir="fwd") for point in self.hook_dict.values()):
            parts = lean_activations(self.members, tokens, hook_name, options)
            if parts is not None:
                return stack(parts)
        options = {"stop_at_layer": stop_after(hook_of_model(hook_name, 0)), **options}
        return self.run_with_cache(tokens, names_filter=[hook_name], return_type=None, **options)[1][hook_name]

    @override
    @validate_arguments
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
        self.validate_one_tokenizer("A forward pass of the pair")
        outputs: list[Any] = []
        for model, edits in zip(self.members, self._edits(tokens), strict=True):
            with replaced_activations(model, edits):
                outputs.append(model(tokens.to(device_of(model)), return_type="logits", **kwargs))
        return stacked_outputs(outputs, tokens, return_type, loss_per_token, kwargs.get("stop_at_layer") is not None)

    @override
    @validate_arguments
    def run_with_cache(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        tokens: Int[Tensor, "batch pos"],
        names_filter: str | Sequence[str] | Callable[[str], bool] | None = None,
        return_type: ReturnType = "logits",
        loss_per_token: bool = False,
        **kwargs: Any,
    ) -> tuple[Any, dict[str, Tensor]]:
        """Return the output, and stacked activations (batch, pos, d_in) by hook name."""
        self.validate_one_tokenizer("A forward pass of the pair")
        names = self._resolve_names(names_filter)
        with self._caching_saes(names) as of_saes:
            edits = self._edits(tokens)
        names = [name for name in names if name not in of_saes]
        outputs: list[Any] = []
        caches: list[dict[str, Tensor]] = []
        options = dict(kwargs)
        with lower_layers_once(() if any(edits) else self.members, kwargs):
            for m, model in enumerate(self.members):
                hooks = list(dict.fromkeys(hook for name in names for hook in split_hooks(hook_of_model(name, m))))
                if "stop_at_layer" in kwargs:
                    options["stop_at_layer"] = stop_of_model(kwargs["stop_at_layer"], names, m)
                with replaced_activations(model, edits[m]):
                    output, cache = model.run_with_cache(tokens.to(device_of(model)), names_filter=hooks, **options)
                outputs.append(output)
                caches.append({name: cache[name] for name in hooks if name in cache})
        output = stacked_outputs(outputs, tokens, return_type, loss_per_token, options.get("stop_at_layer") is not None)
        if names_filter is None or callable(names_filter):  # a pattern skips hooks that did not run
            names = [name for name in names if all(is_stackable(cache.get(name)) for cache in caches)]
        return output, {name: stacked_activations(caches, name) for name in names} | of_saes

    def _edits(self, tokens: Tensor) -> list[dict[str, Tensor]]:
        """Edited activations by hook name, for each model; SAEs that are attached edit too."""
        own = {name: self.hook_dict[name] for name in self._hooks_of_models()}
        hooked = [name for name, point in own.items() if name in self.splices or point.has_hooks(dir="fwd")]

        def edit(name: str, stacked: Tensor) -> Tensor:
            edited = self.hook_dict[name](stacked)
            return self.splices[name](edited, tokens) if name in self.splices else edited

        return edits_of_models(self.members, tokens, hooked, edit)
