"""One look at a batch of the pair before training: two different models, the right hook, and how far they differ."""

import math
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens_crosscoder.activations.harvest import validate_activations, validate_tokens
from sae_lens_crosscoder.data.token_mask import validate_padding
from sae_lens_crosscoder.models.hidden_states import validate_hidden_state
from sae_lens_crosscoder.models.hook_access import device_of
from sae_lens_crosscoder.models.kl import kl_divergence, log_probs
from sae_lens_crosscoder.models.outputs import over_common_ids
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.models.token_replacements import validate_embedded
from sae_lens_crosscoder.stacking import StackedLayout
from sae_lens_crosscoder.training.data.run_data import RunData

N_CONTEXTS = 8
N_CACHED_TOKENS = 2048
# Logits of a large vocabulary are big: 256 positions of 256,000 float32 are 0.26 GB per model.
_KL_POSITIONS = 256
_KL_CHUNK = 64


@dataclass(frozen=True)
class PairCheck:
    """Numbers of the batch that is looked at before training; None where they are not defined or not known."""

    n_tokens: int
    """Tokens of the batch that the run would use."""
    position_0_norm: tuple[float | None, ...]
    """Norm at position 0 divided by the median norm of the used tokens, one number per model (median over contexts)."""
    special_norm: tuple[float | None, ...]
    """The same for special tokens after position 0, the largest in the batch."""
    difference: float | None
    """Median of |chat - base| / |base| over the used tokens."""
    kl_nats: float | None
    """Mean KL(chat || base) of the next-token predictions, in nats per token, over the ids that both models have."""

    def lines(self) -> str:
        """The numbers as three lines of text."""
        position_0, special = _times(self.position_0_norm), _times(self.special_norm)
        difference = "not defined" if self.difference is None else f"{self.difference:.3g} (median over tokens)"
        kl = "not known" if self.kl_nats is None else f"{self.kl_nats:.3g} nats per token"
        return (
            f"Norms relative to the median: position 0 {position_0}; special tokens up to {special}.\n"
            f"Size of the difference, |chat - base| / |base|: {difference}, over {self.n_tokens} tokens.\n"
            f"Mean KL(chat || base): {kl}."
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def inspect_run(run: RunData) -> PairCheck:
    """Look at the first held-out contexts of a run; its training data and random numbers stay as they are.

    A run on cached activations has loaded no models, so only the size of the difference is known.

    Raises:
        ValueError: as `inspect_pair`.
    """
    cfg = run.cfg
    if run.reads_cache:
        cache: Any = run.held_out_data().activations
        layout: StackedLayout = cache.layout
        rows = next(iter(cache))[:N_CACHED_TOKENS]
        parts = _validated(rows, layout, cfg.hook_name)
        unknown = (None,) * layout.n_models
        return PairCheck(len(rows), unknown, unknown, relative_difference(parts[0], parts[-1]), None)
    tokens = run.first_held_out_contexts(N_CONTEXTS)
    mask = run.activations_store.token_mask(tokens)
    device = device_of(run.pair.base).type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=cfg.autocast_lm):
        return inspect_pair(run.pair, tokens, mask, cfg.hook_name, **cfg.model_kwargs)


@torch.no_grad()
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
    validate_embedded(pair.members, tokens, pair.replaced_ids)
    validate_padding(tokens, token_mask, pair.tokenizer)
    used = token_mask.cpu() if bool(token_mask.any()) else torch.ones_like(token_mask.cpu())
    layout = pair.layout_at(hook_name)
    stacked = pair.activations(tokens, hook_name, **model_kwargs).cpu()
    parts = _validated(stacked[used], layout, hook_name)
    for name, model in zip(layout.names, pair.members, strict=True):
        validate_hidden_state(model, name, tokens[:1], hook_name)
    ids = tokens.cpu()
    special = torch.isin(ids, torch.tensor(list(getattr(pair.tokenizer, "all_special_ids", ())), dtype=ids.dtype))
    first = torch.zeros_like(special)
    first[:, 0] = True
    norms = [part.float().norm(dim=-1) for part in layout.split(stacked)]
    return PairCheck(
        n_tokens=int(used.sum()),
        position_0_norm=tuple(relative_norm(norm[first].median(), norm[used]) for norm in norms),
        special_norm=tuple(
            relative_norm(norm[special & ~first].max(), norm[used]) if bool((special & ~first).any()) else None
            for norm in norms
        ),
        difference=relative_difference(parts[0], parts[-1]),
        kl_nats=_mean_kl(pair, tokens, used, model_kwargs),
    )


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
    validate_activations(stacked, layout, f"at {hook_name} before training")
    parts = layout.split(stacked)
    validate_not_identical(parts, hook_name)
    return parts


def _mean_kl(
    pair: HookedModelPair, tokens: Tensor, used: Bool[Tensor, "batch pos"], model_kwargs: dict[str, Any]
) -> float | None:
    """Mean over the used tokens in the first positions, one context at a time."""
    total, n_tokens = 0.0, 0
    for context, mask in zip(tokens[:, :_KL_POSITIONS], used[:, :_KL_POSITIONS], strict=True):
        logits = [
            model(context[None].to(device_of(model)), return_type="logits", **model_kwargs)[0]
            for model in (pair.base, pair.chat)
        ]
        base, chat = over_common_ids(logits[0], logits[1].to(logits[0].device))
        for rows in mask.nonzero().flatten().split(_KL_CHUNK):
            rows = rows.to(base.device)
            total += float(kl_divergence(log_probs(chat[rows]), log_probs(base[rows])).double().sum())
        n_tokens += int(mask.sum())
    return _finite(torch.tensor(total / n_tokens)) if n_tokens else None


def _finite(value: Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _times(values: tuple[float | None, ...]) -> str:
    known = [f"{value:.3g}" for value in values if value is not None]
    return " and ".join(known) + " times" if known else "not known"
