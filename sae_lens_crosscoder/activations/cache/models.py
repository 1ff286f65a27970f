"""CacheModels: the models whose activations a cache holds, loaded already or one at a time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor, nn

from sae_lens_crosscoder.activations.looked_at import LookedAt, frac_aligned, pair_looked_at
from sae_lens_crosscoder.activations.pair_check import (
    N_CONTEXTS,
    ModelView,
    PairCheck,
    compare,
    validate_two_models,
    view,
)
from sae_lens_crosscoder.data.token_mask import validate_padding
from sae_lens_crosscoder.models.adapter_files import share_weights
from sae_lens_crosscoder.models.alignment import TokenAlignment
from sae_lens_crosscoder.models.hook_access import validate_hook_name, validate_one_hook_each
from sae_lens_crosscoder.models.loading import (
    load_model,
    load_tokenizer,
    usable_model_class,
    validate_same_tokenizer,
)
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.models.token_replacements import (
    replace_embedded_tokens,
    replacement_ids,
    validate_ids_of,
)
from sae_lens_crosscoder.stacking import StackedLayout, hook_of_model, split_hooks
from sae_lens_crosscoder.storage.checksums import fingerprint

Loader = Callable[[], nn.Module]


@dataclass(frozen=True)
class _Sources:
    """Functions that return the models, base first, and what is known of them without loading them."""

    loaders: tuple[Loader, ...]
    model_names: tuple[str, ...] | None
    token_replacements: dict[str, str]
    replaced_ids: Mapping[int, int]
    tokenizer: Any
    are_loaded: bool
    alignments: tuple[TokenAlignment | None, ...]


@dataclass(frozen=True)
class CacheModels:
    """Functions that return the models, base first, and the description of the models in the manifest."""

    loaders: tuple[Loader, ...]
    model_names: tuple[str, ...] | None
    d_models: tuple[int, ...]
    """Widths of all sources."""
    weights_sha256: tuple[str, ...]
    """Fingerprint of each model's weights."""
    token_replacements: dict[str, str]
    pair_check: PairCheck
    """How far the models differ on the first contexts."""
    are_loaded: bool
    """True if all models are in memory already."""
    alignments: tuple[TokenAlignment | None, ...]
    """What each model reads in place of the tokens; None for the tokens themselves."""

    @classmethod
    def inspect(
        cls,
        models: HookedModelPair | Sequence[str],
        loading: Mapping[str, Any] | None,
        tokens: Int[Tensor, "batch pos"],
        token_mask: Bool[Tensor, "batch pos"],
        hook_name: str,
    ) -> "CacheModels":
        """Look at a loaded pair on the first contexts, or load the named models one after another to look at them.

        Named models that share one copy of their weights are loaded together and stay loaded.

        Raises:
            ValueError: for a hook that a model lacks, tokenizers that differ, and what `inspect_pair` refuses.
        """
        if isinstance(models, HookedModelPair):
            if loading:
                raise ValueError(
                    f"loading={dict(loading)} applies to models given by name, and this pair is already loaded."
                )
            sources = _of_pair(models)
        else:
            sources = _of_names(models, loading or {})
        if len(sources.loaders) * len(split_hooks(hook_name)) == 1:
            raise ValueError(
                f"There is one model and one hook, {hook_name!r}: a crosscoder reads several activations. Pass two "
                "models, or join several hooks by '+'."
            )
        validate_one_hook_each(hook_name, len(sources.loaders))
        validate_padding(tokens, token_mask, sources.tokenizer)
        first, mask = tokens[:N_CONTEXTS], token_mask[:N_CONTEXTS]
        looked_at, share = LookedAt.of(first, mask, sources.tokenizer), None
        if isinstance(models, HookedModelPair):
            models.validate_aligned(tokens, token_mask)
            looked_at, share = pair_looked_at(models, first, mask), frac_aligned(models, first)
        weights: list[str] = []
        views: list[ModelView] = []
        names = StackedLayout((1,) * len(sources.loaders)).names
        for m, (name, load) in enumerate(zip(names, sources.loaders, strict=True)):
            model: Any = load()
            hook = hook_of_model(hook_name, m)
            for each in split_hooks(hook):
                validate_hook_name(each, model.hook_dict)
            if sources.alignments[m] is None:
                replaced = {} if name == names[-1] else sources.replaced_ids
                validate_ids_of(model, f"the {name} model", tokens, replaced)
            has_one_tokenizer = not any(sources.alignments)
            views.append(view(model, name, looked_at, hook, sources.alignments[m], predicts=has_one_tokenizer))
            weights.append(fingerprint(model.parameters()))
            del model  # before the next one is loaded
        return cls(
            sources.loaders,
            sources.model_names,
            tuple(chain.from_iterable(seen.d_models for seen in views)),
            tuple(weights),
            sources.token_replacements,
            compare(views, looked_at, hook_name, share),
            sources.are_loaded,
            sources.alignments,
        )


def _of_pair(pair: HookedModelPair) -> _Sources:
    validate_two_models(pair)
    loaders = tuple(lambda member=member: member for member in pair.members)
    known = (pair.model_names, pair.token_replacements, pair.replaced_ids, pair.tokenizer)
    return _Sources(loaders, *known, True, pair.alignments)


def _of_names(models: Sequence[str], loading: Mapping[str, Any]) -> _Sources:
    if isinstance(models, str) or not models:
        raise ValueError(
            f"models={models!r} must be a HookedModelPair, or a list of the names of the base and the chat model, or "
            "of one model."
        )
    defaults = {"device": "cpu", "dtype": "float32", "model_class_name": "HookedTransformer"}
    options: dict[str, Any] = {**defaults, **loading}
    if options.pop("align_tokens", False):
        return _of_pair(HookedModelPair.from_pretrained(*models, align_tokens=True, **options))
    if len(models) == 2 and share_weights(models, (options["device"],) * 2):
        return _of_pair(HookedModelPair.from_pretrained(*models, **options))
    device, dtype, model_class = (options.pop(key) for key in defaults)
    model_class = usable_model_class(models, model_class)
    replacements = dict(options.pop("token_replacements", None) or {})
    tokenizers = [load_tokenizer(name, model_class) for name in models]
    ids = replacement_ids(replacements, tokenizers[0], tokenizers[-1])
    validate_same_tokenizer(tokenizers, ids)
    loaders = [partial(_load, name, device, dtype, model_class, options, ids) for name in models]
    loaders[-1] = partial(_load, models[-1], device, dtype, model_class, options, {})
    return _Sources(tuple(loaders), tuple(models), replacements, ids, tokenizers[-1], False, (None,) * len(models))


def _load(
    name: str, device: str, dtype: str, model_class: str, options: dict[str, Any], replaced_ids: Mapping[int, int]
) -> nn.Module:
    model = load_model(name, device, dtype, model_class, options)
    replace_embedded_tokens(model, replaced_ids)
    return model
