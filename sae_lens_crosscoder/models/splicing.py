"""SAEs of the stacked activations spliced into several models at once, with the methods and meanings of SAELens."""

import warnings
from abc import abstractmethod
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from sae_lens import SAE
from sae_lens.util import get_special_token_ids
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from sae_lens_crosscoder.models.stacked_hooks import StackedHooks
from sae_lens_crosscoder.stacking import StackedLayout


@dataclass(frozen=True)
class Splice:
    """An SAE whose output the models continue with."""

    sae: Any
    use_error_term: bool
    excluded_ids: tuple[int, ...]
    """Token ids at which the models keep their own activation."""

    def __call__(
        self, stacked: Float[Tensor, "batch pos d_in"], tokens: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos d_in"]:
        """The activation after the splice: the SAE's output, but at excluded tokens and at those that dominate."""
        x = stacked.to(self.sae.device)
        before = self.sae.use_error_term
        try:
            with warnings.catch_warnings(action="ignore"):  # SAELens warns whenever the error term is switched on
                self.sae.use_error_term = self.use_error_term
            output = self.sae(x)
        finally:
            self.sae.use_error_term = before
        return torch.where(self._is_spliced(x, tokens)[..., None], output.to(x), x).to(stacked)

    def _is_spliced(self, x: Tensor, tokens: Tensor) -> Bool[Tensor, "batch pos"]:
        excluded = torch.isin(tokens, torch.tensor(self.excluded_ids, device=tokens.device)).to(x.device)
        limits = getattr(self.sae, "trained_limits", None)  # which crosscoders have, and plain SAEs do not
        return ~excluded if limits is None else ~excluded & limits.ordinary(x).to(x.device)


class SplicedModels(StackedHooks):
    """Methods of SAELens's `HookedSAETransformer` for models that run as one; the SAEs read stacked activations."""

    tokenizer: Any
    splices: dict[str, Splice]
    """By hook name, the attached SAEs."""

    @abstractmethod
    def layout_at(self, hook_name: str) -> StackedLayout:
        """The models' widths at a hook."""

    @property
    def acts_to_saes(self) -> dict[str, SAE[Any]]:
        """Attached SAEs by hook name."""
        return {name: splice.sae for name, splice in self.splices.items()}

    def add_sae(
        self, sae: SAE[Any], use_error_term: bool | None = None, exclude_special_tokens: bool | list[int] = False
    ) -> None:
        """Attach a crosscoder, or another SAE of the stacked activations, until `reset_saes`.

        The models continue from its output, as in a patch that reconstructs all latents. Its own hooks are the pair's
        then, such as `HOOK.hook_sae_acts_post`. Hooks at the activation itself run before it is read.

        Args:
            sae: a crosscoder, whose metadata name the hook. Another one at that hook is replaced.
            use_error_term: True to add its reconstruction error, so that only edits of its latents change anything;
                None for the SAE's own setting.
            exclude_special_tokens: True to leave the tokenizer's special tokens alone, or a list of token ids. Tokens
                that dominate are left alone anyway, as in the crosscoder's training.

        Raises:
            ValueError: for an SAE that names no hook of the pair, or reads another width.
        """
        hook_name = str(sae.cfg.metadata.hook_name)
        layout = self.layout_at(hook_name)
        if sae.cfg.d_in != layout.d_in:
            raise ValueError(
                f"The sae reads {sae.cfg.d_in} numbers, but the models have {layout.d_in} at {hook_name}: widths "
                f"{layout.d_models} side by side. Attach a crosscoder of this pair. "
                "The SAE of one model belongs on pair.base."
            )
        ids = exclude_special_tokens
        if isinstance(ids, bool):
            ids = get_special_token_ids(self.tokenizer) if ids and self.tokenizer is not None else []
        self.reset_saes([hook_name] if hook_name in self.splices else [])
        error_term = sae.use_error_term if use_error_term is None else use_error_term
        self.splices[hook_name] = Splice(sae, error_term, tuple(ids))
        for name, point in sae.hook_dict.items():
            self.hook_dict[f"{hook_name}.{name}"] = point
        self.mod_dict = dict(self.hook_dict)

    def reset_saes(self, act_names: str | Sequence[str] | None = None) -> None:
        """Remove the SAEs at some hooks; None for all."""
        names = list(self.splices) if act_names is None else [act_names] if isinstance(act_names, str) else act_names
        for hook_name in names:
            splice = self.splices.pop(hook_name)
            for name in splice.sae.hook_dict:
                del self.hook_dict[f"{hook_name}.{name}"]
        self.mod_dict = dict(self.hook_dict)

    @contextmanager
    def saes(
        self,
        saes: SAE[Any] | Sequence[SAE[Any]] = (),
        reset_saes_end: bool = True,
        use_error_term: bool | None = None,
        exclude_special_tokens: bool | list[int] = False,
    ) -> Generator[Any]:
        """Attach SAEs inside a block, after which those that were attached before it are back."""
        before = dict(self.splices)
        try:
            for sae in [saes] if isinstance(saes, SAE) else saes:
                self.add_sae(sae, use_error_term, exclude_special_tokens)
            yield self
        finally:
            if reset_saes_end:
                self.reset_saes()
                for splice in before.values():
                    self.add_sae(splice.sae, splice.use_error_term, list(splice.excluded_ids))

    def run_with_saes(
        self,
        *model_args: Any,
        saes: SAE[Any] | Sequence[SAE[Any]] = (),
        reset_saes_end: bool = True,
        use_error_term: bool | None = None,
        exclude_special_tokens: bool | list[int] = False,
        **model_kwargs: Any,
    ) -> Any:
        """Run the models with SAEs attached, see `add_sae`; the output is that of calling the pair."""
        with self.saes(saes, reset_saes_end, use_error_term, exclude_special_tokens):
            return self(*model_args, **model_kwargs)

    def run_with_cache_with_saes(
        self,
        *model_args: Any,
        saes: SAE[Any] | Sequence[SAE[Any]] = (),
        reset_saes_end: bool = True,
        use_error_term: bool | None = None,
        exclude_special_tokens: bool | list[int] = False,
        **kwargs: Any,
    ) -> tuple[Any, dict[str, Tensor]]:
        """`run_with_cache` with SAEs attached; their hooks, such as `HOOK.hook_sae_acts_post`, are cached as well."""
        with self.saes(saes, reset_saes_end, use_error_term, exclude_special_tokens):
            return self.run_with_cache(*model_args, **kwargs)  # pyright: ignore[reportReturnType]

    def run_with_hooks_with_saes(
        self,
        *model_args: Any,
        saes: SAE[Any] | Sequence[SAE[Any]] = (),
        reset_saes_end: bool = True,
        use_error_term: bool | None = None,
        exclude_special_tokens: bool | list[int] = False,
        **kwargs: Any,
    ) -> Any:
        """`run_with_hooks` with SAEs attached; hooks may name the SAEs' own, such as `HOOK.hook_sae_acts_post`."""
        with self.saes(saes, reset_saes_end, use_error_term, exclude_special_tokens):
            return self.run_with_hooks(*model_args, **kwargs)

    def _hooks_of_models(self) -> list[str]:
        """Names of hooks without those of attached SAEs."""
        inside = {f"{hook_name}.{name}" for hook_name, splice in self.splices.items() for name in splice.sae.hook_dict}
        return [name for name in self.hook_dict if name not in inside]

    @contextmanager
    def _caching_saes(self, names: Sequence[str]) -> Generator[dict[str, Tensor]]:
        """Cache the activations at hooks of attached SAEs while the models run."""
        cache: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[..., None]:
            def hook_function(activation: Tensor, hook: HookPoint) -> None:
                cache[name] = activation

            return hook_function

        inside = set(self.hook_dict) - set(self._hooks_of_models())
        with self.hooks(fwd_hooks=[(name, keep(name)) for name in names if name in inside]):
            yield cache
