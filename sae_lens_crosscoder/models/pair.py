"""A base and a chat model that answer as one model, whose activations are stacked."""

import difflib
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedRootModule import HookedRootModule
from transformer_lens.utils import lm_cross_entropy_loss
from typing_extensions import override

from sae_lens_crosscoder.models.loading import load_model, refuse_different_tokens
from sae_lens_crosscoder.stacking import StackedLayout

ReturnType = Literal["logits", "loss", "both"] | None

# SAELens flattens (head, d_head) after we have stacked on d_head, which would interleave the models; attention
# patterns and scores have no model axis to stack on.
_NOT_STACKABLE = ("q", "k", "v", "z", "result", "rot_q", "rot_k", "attn_scores", "pattern")


class HookedModelPair(HookedRootModule):
    """Runs the same tokens through both models; at a hook, both activations side by side, base first.

    SAELens's `ActivationsStore`, training runners and `run_evals` take it as they take any model. Hooks are added with
    TransformerLens's own `hooks`, `run_with_hooks` and `add_hook`: a hook function gets the stacked activation
    (batch, pos, d_in) and may return an edited one, of which each model continues with its slice.

    Logits are (batch, pos, model, vocab) and losses per model: (model,), or (batch, pos - 1, model) per token.

    Args:
        models: the base and the chat model, in this order; HookedTransformer, TransformerBridge or SAELens's
            HookedProxyLM. They may differ in width and device.
        model_names: what they are called in saved crosscoders, so that a crosscoder of another pair is refused.
    """

    def __init__(self, *models: nn.Module, model_names: Sequence[str] | None = None) -> None:
        super().__init__()
        if len(models) < 2:
            raise ValueError(f"A pair needs at least two models, base first, but got {len(models)}.")
        self.members: Any = nn.ModuleList(models)
        self.model_names = None if model_names is None else tuple(model_names)
        refuse_different_tokens([getattr(model, "tokenizer", None) for model in models])
        self.tokenizer: Any = getattr(models[-1], "tokenizer", None)
        """The chat model's, because it carries the chat template."""
        self.setup()

    @classmethod
    def from_pretrained(
        cls,
        base: str,
        chat: str,
        *,
        device: str = "cpu",
        chat_device: str | None = None,
        dtype: str = "float32",
        model_class_name: str = "HookedTransformer",
        **model_from_pretrained_kwargs: Any,
    ) -> "HookedModelPair":
        """Load two models with their raw weights: no folding, no centring, which would move the residual stream.

        Args:
            base, chat: Hub names, local folders (with `model_class_name="TransformerBridge"`), or the built-in
                `tiny-base`, `tiny-chat`, `tiny-null`.
            chat_device: the chat model's device, when it is not the base model's.
            model_class_name: `HookedTransformer`, `TransformerBridge` or `AutoModelForCausalLM` (HookedProxyLM).

        Raises:
            ValueError: when the tokenizers give different ids; the message shows the first difference.
        """
        devices = (device, chat_device or device)
        models = [
            load_model(name, where, dtype, model_class_name, model_from_pretrained_kwargs)
            for name, where in zip((base, chat), devices, strict=True)
        ]
        return cls(*models, model_names=(base, chat))

    @override
    def setup(self) -> None:
        """Give the pair hook points of its own, under the names that all models share.

        The inherited `setup` must not run here: it would rename the models' own hook points.
        """
        shared = [name for name in self.base.hook_dict if all(name in model.hook_dict for model in self.members)]
        self.hook_dict = {name: HookPoint() for name in shared if not _is_split_by_head(name)}
        for name, hook_point in self.hook_dict.items():
            hook_point.name = name
        self.mod_dict = dict(self.hook_dict)

    @property
    def base(self) -> Any:
        return self.members[0]

    @property
    def chat(self) -> Any:
        return self.members[-1]

    @property
    def W_E(self) -> Tensor:
        """The base model's embedding; SAELens looks here for the device that tokens belong on."""
        if hasattr(self.base, "W_E"):
            return self.base.W_E
        return self.base.model.get_input_embeddings().weight

    def to_tokens(self, *args: Any, **kwargs: Any) -> Int[Tensor, "batch pos"]:
        """As the chat model's."""
        return self.chat.to_tokens(*args, **kwargs)

    def require_hook(self, hook_name: str) -> None:
        """Raise a ValueError unless `hook_name` can be stacked."""
        if hook_name in self.hook_dict:
            return
        if _is_split_by_head(hook_name):
            raise ValueError(
                f"Hook {hook_name!r} is split by attention head, so flattening would interleave the models. Use the "
                "residual stream, an MLP output or an attention output, such as 'blocks.0.hook_resid_post'."
            )
        near = difflib.get_close_matches(hook_name, list(self.hook_dict), n=3)
        hint = f"Did you mean one of {near}?" if near else f"There are {len(self.hook_dict)} hooks: see hook_dict."
        raise ValueError(f"The models have no common hook {hook_name!r}. {hint}")

    def require_trained_on(self, *model_names: str | None) -> None:
        """Raise a ValueError if a crosscoder of models with these names does not belong to this pair."""
        if self.model_names is None or any(name is None for name in model_names):
            return
        if self.model_names != model_names:
            raise ValueError(
                f"This crosscoder was trained on {' and '.join(map(str, model_names))}, but the pair is "
                f"{' and '.join(self.model_names)}: its latents mean nothing there. Load the pair it was trained on."
            )

    def layout_at(self, hook_name: str) -> StackedLayout:
        """The models' widths at a hook, found by running one token."""
        self.require_hook(hook_name)
        token = torch.zeros(1, 1, dtype=torch.long)
        return StackedLayout(tuple(part.shape[-1] for part in self._read(token, hook_name, {})))

    def activations(self, tokens: Int[Tensor, "batch pos"], hook_name: str) -> Float[Tensor, "batch pos d_in"]:
        """Stacked activations at one hook; both models stop right after it."""
        self.require_hook(hook_name)
        stop = extract_stop_at_layer_from_tlens_hook_name(hook_name)
        _, cache = self.run_with_cache(tokens, names_filter=[hook_name], stop_at_layer=stop, prepend_bos=False)
        return cache[hook_name]

    @override
    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        return_type: ReturnType = "logits",
        loss_per_token: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Both models' answer to the same token ids, with the pair's hooks applied.

        Hooks cost one reading pass each (up to the hook's layer) before the answering pass.
        """
        edits = self._edits(tokens)
        outputs: list[Any] = []
        for m, model in enumerate(self.members):
            with _writing(model, {name: parts[m] for name, parts in edits.items()}):
                outputs.append(model(tokens.to(_device(model)), return_type="logits", **kwargs))
        return self._answer(outputs, tokens, return_type, loss_per_token, kwargs.get("stop_at_layer"))

    @override
    def run_with_cache(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        tokens: Int[Tensor, "batch pos"],
        names_filter: str | Sequence[str] | Callable[[str], bool] | None = None,
        return_type: ReturnType = "logits",
        loss_per_token: bool = False,
        **kwargs: Any,
    ) -> tuple[Any, dict[str, Tensor]]:
        """The answer, and stacked activations (batch, pos, d_in) by hook name."""
        names = self._resolve_names(names_filter)
        edits = self._edits(tokens)
        outputs: list[Any] = []
        caches: list[dict[str, Tensor]] = []
        for m, model in enumerate(self.members):
            with _writing(model, {name: parts[m] for name, parts in edits.items()}):
                output, cache = model.run_with_cache(tokens.to(_device(model)), names_filter=names, **kwargs)
            outputs.append(output)
            caches.append({name: cache[name] for name in names if name in cache})
        answer = self._answer(outputs, tokens, return_type, loss_per_token, kwargs.get("stop_at_layer"))
        return answer, {name: _stack([cache[name] for cache in caches]) for name in caches[0]}

    def _answer(
        self,
        outputs: list[Any],
        tokens: Tensor,
        return_type: ReturnType,
        loss_per_token: bool,
        stop_at_layer: Any,
    ) -> Any:
        if return_type is None or any(output is None for output in outputs):
            return None
        if stop_at_layer is not None:
            return _stack(outputs)
        vocabularies = {output.shape[-1] for output in outputs}
        if len(vocabularies) > 1:
            raise ValueError(f"The models' vocabularies differ in size ({vocabularies}), so logits cannot be stacked.")
        device = outputs[0].device
        logits = torch.stack([output.to(device) for output in outputs], dim=-2)
        if return_type == "logits":
            return logits
        losses = [
            lm_cross_entropy_loss(output, tokens.to(output.device), per_token=loss_per_token) for output in outputs
        ]
        loss = torch.stack([part.to(device) for part in losses], dim=-1)
        return loss if return_type == "loss" else (logits, loss)

    def _edits(self, tokens: Tensor) -> dict[str, tuple[Tensor, ...]]:
        """What the hooked positions become, per model, in the order in which the models reach the hooks."""
        hooked = [name for name, hook_point in self.hook_dict.items() if hook_point.has_hooks(dir="fwd")]
        edits: dict[str, tuple[Tensor, ...]] = {}
        for name in self._in_order_of_execution(tokens, hooked):
            parts = self._read(tokens, name, edits)
            layout = StackedLayout(tuple(part.shape[-1] for part in parts))
            edited = self.hook_dict[name](layout.stack(parts))
            pieces = layout.split(edited)
            edits[name] = tuple(piece.to(part) for piece, part in zip(pieces, parts, strict=True))
        return edits

    def _in_order_of_execution(self, tokens: Tensor, names: list[str]) -> list[str]:
        if len(names) < 2:
            return names
        _, cache = self.base.run_with_cache(tokens.to(_device(self.base)), names_filter=names)
        return [name for name in cache if name in names]

    def _read(self, tokens: Tensor, name: str, edits: dict[str, tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Each model's own activation at a hook, after the edits made so far."""
        stop = extract_stop_at_layer_from_tlens_hook_name(name)
        parts: list[Tensor] = []
        for m, model in enumerate(self.members):
            with _writing(model, {earlier: values[m] for earlier, values in edits.items()}):
                _, cache = model.run_with_cache(tokens.to(_device(model)), names_filter=[name], stop_at_layer=stop)
            parts.append(cache[name])
        return tuple(parts)

    def _resolve_names(self, names_filter: str | Sequence[str] | Callable[[str], bool] | None) -> list[str]:
        if callable(names_filter):
            return [name for name in self.hook_dict if names_filter(name)]
        if names_filter is None:
            return list(self.hook_dict)
        names = [names_filter] if isinstance(names_filter, str) else list(names_filter)
        for name in names:
            self.require_hook(name)
        return names


@contextmanager
def _writing(model: Any, values: dict[str, Tensor]) -> Generator[None]:
    """Run a model with some activations replaced."""

    def write(value: Tensor) -> Callable[..., Tensor]:
        def replace(activation: Tensor, hook: HookPoint) -> Tensor:
            return value

        return replace

    with ExitStack() as stack:
        if values:
            stack.enter_context(model.hooks(fwd_hooks=[(name, write(value)) for name, value in values.items()]))
        yield


def _stack(parts: Sequence[Tensor]) -> Tensor:
    return StackedLayout(tuple(part.shape[-1] for part in parts)).stack(parts)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _is_split_by_head(hook_name: str) -> bool:
    return hook_name.rsplit("hook_", 1)[-1] in _NOT_STACKABLE
