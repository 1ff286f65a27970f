"""One look at a batch of the pair before long work: two different models, the right hook, and how far they differ."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens_crosscoder.activations.harvest import validate_activations, validate_tokens
from sae_lens_crosscoder.activations.looked_at import KL_POSITIONS, LookedAt, frac_aligned, pair_looked_at
from sae_lens_crosscoder.data.token_mask import validate_padding
from sae_lens_crosscoder.models.aligned_models import aligned_activations_at
from sae_lens_crosscoder.models.alignment import TokenAlignment
from sae_lens_crosscoder.models.hidden_states import validate_hidden_state
from sae_lens_crosscoder.models.hook_access import device_of, stack
from sae_lens_crosscoder.models.kl import kl_divergence, log_probs
from sae_lens_crosscoder.models.outputs import over_common_ids
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.models.token_replacements import validate_embedded
from sae_lens_crosscoder.stacking import StackedLayout, hook_of_model, split_hooks

N_CONTEXTS = 8
_KL_CHUNK = 64


@dataclass(frozen=True)
class PairCheck:
    """Numbers of the batch that is looked at before long work; None where they are not defined or not known."""

    n_tokens: int
    """Tokens of the batch that the run would use."""
    position_0_norm: tuple[float | None, ...]
    """Norm at position 0 divided by the median norm of the used tokens, one number per model (median over contexts)."""
    special_norm: tuple[float | None, ...]
    """The same for special tokens after position 0, the largest in the batch."""
    difference: float | None
    """Median of |chat - base| / |base| over the used tokens."""
    kl_nats: float | None
    """Mean KL(chat || base) of the next-token predictions, in nats per token, over the ids that both models have, on up
    to 256 of the used tokens."""
    frac_aligned: float | None = None
    """Of models with different tokenizers, the share of tokens, without padding, that are `pair.aligned`; None if the
    models share a tokenizer."""

    def lines(self) -> str:
        """The numbers as three lines of text, or four for models with different tokenizers."""
        position_0, special = _times(self.position_0_norm), _times(self.special_norm)
        norms = f"Norms relative to the median: position 0 {position_0}; special tokens up to {special}."
        if len(self.position_0_norm) == 1:  # one model, which has nothing to differ from
            return norms
        difference = "not defined" if self.difference is None else f"{self.difference:.3g} (median over tokens)"
        kl = "not known" if self.kl_nats is None else f"{self.kl_nats:.3g} nats per token"
        return (
            f"{norms}\n"
            f"Size of the difference, |chat - base| / |base|: {difference}, over {self.n_tokens} tokens.\n"
            f"Mean KL(chat || base): {kl}.{self._aligned_line()}"
        )

    def _aligned_line(self) -> str:
        if self.frac_aligned is None:
            return ""
        return f"\nTokens that end where a token of every model ends: {self.frac_aligned:.0%}; the others are left out."

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PairCheck":
        """Read the numbers of `to_dict`."""
        names = {field.name for field in fields(cls)} - {"frac_aligned"}
        numbers: dict[str, Any] = {name: values[name] for name in names}
        numbers["frac_aligned"] = values.get("frac_aligned")  # older files have none
        for name in ("position_0_norm", "special_norm"):
            numbers[name] = tuple(numbers[name])
        return cls(**numbers)


@dataclass(frozen=True)
class ModelView:
    """Activations and predictions of one model on the contexts.

    Attributes:
        activations: at the hook, or at joined ones side by side.
        d_models: their width at each hook.
        logits: at the `predicting` tokens; None for models with different tokenizers.
    """

    activations: Float[Tensor, "batch pos _"]
    d_models: tuple[int, ...]
    logits: Float[Tensor, "token vocab"] | None


@torch.no_grad()
def view(
    model: Any,
    name: str,
    looked_at: LookedAt,
    hook_name: str,
    alignment: TokenAlignment | None = None,
    *,
    predicts: bool = True,
    **model_kwargs: Any,
) -> ModelView:
    """Run one model on the contexts.

    Args:
        name: the model's name in an error.
        alignment: what the model reads in place of the contexts' tokens.
        predicts: also look at its predictions.

    Raises:
        ValueError: for a hook whose activation is not Hugging Face's hidden state for its layer.
    """
    tokens = looked_at.tokens
    parts = [part.cpu() for part in aligned_activations_at(model, tokens, hook_name, alignment, **model_kwargs)]
    d_models = tuple(part.shape[-1] for part in parts)
    for each in split_hooks(hook_name):
        validate_hidden_state(model, name, tokens[:1] if alignment is None else alignment(tokens[:1]).ids, each)
    if not predicts:
        return ModelView(stack(parts), d_models, None)
    predicting, device = looked_at.predicting, device_of(model)
    logits = [
        model(context[None, :KL_POSITIONS].to(device), return_type="logits", **model_kwargs)[0, : len(mask)][mask]
        for context, mask in zip(tokens, predicting[:, :KL_POSITIONS].to(device), strict=True)
    ]
    return ModelView(stack(parts), d_models, torch.cat(logits).cpu())


def compare(
    views: Sequence[ModelView], looked_at: LookedAt, hook_name: str, frac_aligned: float | None = None
) -> PairCheck:
    """Compare the models' views of the same contexts.

    Raises:
        ValueError: for identical activations.
        NonFiniteError: for NaN or infinite activations.
    """
    used, special = looked_at.used, looked_at.special
    layout = StackedLayout(tuple(seen.activations.shape[-1] for seen in views))
    parts = _validated(layout.stack([seen.activations[used] for seen in views]), layout, hook_name)
    first = torch.zeros_like(special)
    first[:, 0] = True
    norms = [seen.activations.float().norm(dim=-1) for seen in views]
    return PairCheck(
        n_tokens=int(used.sum()),
        position_0_norm=tuple(relative_norm(norm[first].median(), norm[used]) for norm in norms),
        special_norm=tuple(
            relative_norm(norm[special & ~first].max(), norm[used]) if bool((special & ~first).any()) else None
            for norm in norms
        ),
        difference=relative_difference(parts[0], parts[-1]) if len(views) > 1 else None,
        kl_nats=_mean_kl(views[0].logits, views[-1].logits) if len(views) > 1 else None,
        frac_aligned=frac_aligned,
    )


def inspect_pair(
    pair: HookedModelPair,
    tokens: Int[Tensor, "batch pos"],
    token_mask: Bool[Tensor, "batch pos"],
    hook_name: str,
    **model_kwargs: Any,
) -> PairCheck:
    """Compare the models on one batch.

    Raises:
        ValueError: for models that share parameters, identical activations, left padding, or a hook whose activation is
            not Hugging Face's hidden state for its layer.
        NonFiniteError: for NaN or infinite activations.
    """
    validate_two_models(pair)
    validate_tokens(tokens)
    validate_embedded(pair, tokens)
    validate_padding(tokens, token_mask, pair.tokenizer)
    looked_at = pair_looked_at(pair, tokens, token_mask)
    names = pair.layout_at(hook_name).of_models.names
    views = [
        view(
            model,
            name,
            looked_at,
            hook_of_model(hook_name, m),
            pair.alignments[m],
            predicts=pair.has_one_tokenizer,
            **model_kwargs,
        )
        for m, (name, model) in enumerate(zip(names, pair.members, strict=True))
    ]
    return compare(views, looked_at, hook_name, frac_aligned(pair, tokens))


def inspect_cached(rows: Float[Tensor, "token d_in"], layout: StackedLayout, hook_name: str) -> PairCheck:
    """Compare the models on cached activations, of which only the size of the difference can be known.

    Raises:
        ValueError: for identical activations.
        NonFiniteError: for NaN or infinite activations.
    """
    parts = _validated(rows, layout.of_models, hook_name)
    unknown = (None,) * layout.n_models
    difference = relative_difference(parts[0], parts[-1]) if layout.n_models > 1 else None
    return PairCheck(len(rows), unknown, unknown, difference, None)


def validate_two_models(pair: HookedModelPair) -> None:
    """Raise a ValueError if two members of a pair share parameters."""
    shared = pair.shared_parameters
    if shared:
        raise ValueError(
            f"The models of the pair share {len(shared)} parameters, such as {shared[0]!r}, so they are not two models."
            " Load each on its own (an adapter changes the model it wraps in place). For a null run, pair a model with "
            "NAME+jitter=0.02."
        )


def validate_not_identical(parts: tuple[Float[Tensor, "token _"], ...], hook_name: str) -> None:
    """Raise a ValueError if two models have the same activation on every token."""
    for first, second in combinations(parts, 2):
        if first.shape == second.shape and torch.equal(first, second):
            raise ValueError(
                f"The models' activations at {hook_name} are identical on all {len(first)} tokens of a batch, so "
                "there is no difference to learn. Check that the chat model is the tuned one and that tuning changed a "
                "layer before the hook. For a null run, pair a model with NAME+jitter=0.02."
            )


def relative_norm(norm: Tensor, norms: Float[Tensor, " token"]) -> float | None:
    """A norm divided by the median of norms.

    >>> relative_norm(torch.tensor(30.0), torch.tensor([1.0, 3.0, 9.0]))
    10.0
    """
    return _finite(norm / norms.median())


def relative_difference(base: Float[Tensor, "token _"], chat: Float[Tensor, "token _"]) -> float | None:
    """Median of |chat - base| / |base| over tokens; None for models of different width.

    >>> relative_difference(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 5.0]]))
    0.2
    """
    if base.shape != chat.shape:
        return None
    base, chat = base.double(), chat.double()
    return _finite(((chat - base).norm(dim=-1) / base.norm(dim=-1)).nanmedian())


def _validated(
    stacked: Float[Tensor, "token d_in"], layout: StackedLayout, hook_name: str
) -> tuple[Float[Tensor, "token _"], ...]:
    validate_activations(stacked, layout, f"at {hook_name} before any long work")
    parts = layout.split(stacked)
    validate_not_identical(parts, hook_name)
    return parts


def _mean_kl(base: Float[Tensor, "token _"] | None, chat: Float[Tensor, "token _"] | None) -> float | None:
    """Mean over tokens, a few at a time; None without both models' predictions."""
    if base is None or chat is None:
        return None
    total = 0.0
    base, chat = over_common_ids(base, chat)
    for base_rows, chat_rows in zip(base.split(_KL_CHUNK), chat.split(_KL_CHUNK), strict=True):
        total += float(kl_divergence(log_probs(chat_rows), log_probs(base_rows)).double().sum())
    return _finite(torch.tensor(total / len(base))) if len(base) else None


def _finite(value: Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _times(values: tuple[float | None, ...]) -> str:
    known = [f"{value:.3g}" for value in values if value is not None]
    return " and ".join(known) + " times" if known else "not known"
