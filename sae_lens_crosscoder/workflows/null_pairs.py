"""Null pairs: two models that do not differ, made from what the user has."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from sae_lens.load_model import HookedProxyLM
from torch import Tensor

from sae_lens_crosscoder.activations.harvest import harvest
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.models.adapter_files import split_adapter
from sae_lens_crosscoder.models.adapters import AdapterView
from sae_lens_crosscoder.models.hook_access import device_of
from sae_lens_crosscoder.models.loading import add_jitter, load_model
from sae_lens_crosscoder.models.pair import HookedModelPair

NullPairKind = Literal["jittered", "shuffled", "other_text", "split_halves", "neutral_adapter"]
KINDS: tuple[NullPairKind, ...] = get_args(NullPairKind)
_UNPAIRED = ("shuffled", "other_text")


@dataclass(frozen=True)
class NullPair:
    """A model beside itself, or beside one like it: what a crosscoder finds to differ is due to chance."""

    kind: NullPairKind
    seed: int
    pair: HookedModelPair

    @property
    def judges_specificity(self) -> bool:
        """True if tokens stay paired, so that latents of the null run may write into both models."""
        return self.kind not in _UNPAIRED

    @property
    def model(self) -> int:
        """Place in the user's pair of the model that it is made from, at whose hook it is read: base, or chat."""
        return 1 if self.kind == "split_halves" else 0

    @validate_arguments
    def activations(
        self,
        tokens: Int[Tensor, "batch pos"],
        hook_name: str,
        *,
        token_mask: Bool[Tensor, "batch pos"] | None = None,
        batch_size: int = 32,
    ) -> Float[Tensor, "token d_in"]:
        """Stacked activations at a hook; `other_text` pairs the first half of the tokens with the second.

        Args:
            token_mask: False for tokens to leave out; None for all tokens.
        """
        rows = torch.cat([part.cpu() for part in harvest(self.pair, tokens, hook_name, batch_size, token_mask)])
        layout = self.pair.layout_at(hook_name)
        first, second = layout.split(rows)
        if self.kind == "shuffled":
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.seed))
            return layout.stack([first, second[order]])
        if self.kind == "other_text":
            half = len(rows) // 2
            return layout.stack([first[:half], second[half : 2 * half]])
        return rows


@dataclass(frozen=True)
class NullPairMaker:
    """Maker of null pairs from a pair, the names of two models trained alike, and an adapter."""

    pair: HookedModelPair
    jitter: float
    halves: Sequence[str] | None
    adapter: str | Path | None

    def make(self, kind: NullPairKind, seeds: Sequence[int]) -> list[NullPair]:
        """One null pair per seed."""
        match kind:
            case "split_halves":
                models = [self._split_halves()] * len(seeds)
            case "neutral_adapter":
                models = [self._neutral_adapter()] * len(seeds)
            case _:
                models = [self._beside_itself(kind, seed) for seed in seeds]
        return [NullPair(kind, seed, model) for seed, model in zip(seeds, models, strict=True)]

    def _beside_itself(self, kind: str, seed: int) -> HookedModelPair:
        base, second = self.pair.base, self.pair.base
        if kind == "jittered":
            second = add_jitter(self._copy_of_base(), self.jitter, seed)
        name = "base" if self.pair.model_names is None else self.pair.model_names[0]
        names = (name, f"{name} ({kind}, seed {seed})")
        return HookedModelPair(base, second, model_names=names)

    def _copy_of_base(self) -> Any:
        base, names = self.pair.base, self.pair.model_names
        if not isinstance(base, AdapterView):
            return copy.deepcopy(base)
        if names is None:
            raise ValueError(
                "'jittered' loads the base model again, as it shares its weights with adapters, but the pair has no "
                "names. Load it with HookedModelPair.from_pretrained."
            )
        device, dtype, model_class_name = self._loaded_as()
        return load_model(names[0], device, dtype, model_class_name, {})

    def _loaded_as(self) -> tuple[str, str, str]:
        """Device, dtype and class to load the base model again with."""
        base = self.pair.base
        dtype = str(next(base.parameters()).dtype).removeprefix("torch.")
        model_class_name = "AutoModelForCausalLM" if isinstance(base, HookedProxyLM) else "HookedTransformer"
        return str(device_of(base)), dtype, model_class_name

    def _split_halves(self) -> HookedModelPair:
        if self.halves is None or len(self.halves) != 2 or len(self.pair.members) < 3:
            raise ValueError(
                f"'split_halves' with halves={self.halves} needs two models that were trained alike, with other seeds "
                f"or on other halves of the data, but the pair has {len(self.pair.members)} models. Load the second "
                "one too, as HookedModelPair(base, chat, again), and name both, such as halves=('model_1', 'model_2')."
            )
        return self.pair.of(*self.halves)

    def _neutral_adapter(self) -> HookedModelPair:
        names = self.pair.model_names
        if self.adapter is None or names is None or split_adapter(names[0])[1] is not None:
            base = "that no name was given for" if names is None else repr(names[0])
            raise ValueError(
                f"'neutral_adapter' with adapter={self.adapter} loads the base model again, {base}, with an adapter. "
                "Pass the folder or Hub id of an adapter of the base model that was trained on neutral text, and a "
                "pair that HookedModelPair.from_pretrained loaded by names."
            )
        device, dtype, model_class_name = self._loaded_as()
        return HookedModelPair.from_pretrained(
            names[0],
            f"{names[0]}+adapter={self.adapter}",
            device=device,
            dtype=dtype,
            model_class_name=model_class_name,
            token_replacements=self.pair.token_replacements,
        )
