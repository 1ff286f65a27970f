"""EvalData: the data that an analysis runs on."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens_crosscoder.activations.cache.reader import ActivationCache
from sae_lens_crosscoder.activations.dominant_tokens import MAX_NORM_RATIO, validate_max_norm_ratio
from sae_lens_crosscoder.activations.harvest import harvest, validate_tokens
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.data.token_groups import TokenGroups
from sae_lens_crosscoder.data.token_mask import as_token_mask, validate_padding
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.storage.field_types import validate_config

Batches = Iterable[Float[Tensor, "_ d_in"]]
Activations = Float[Tensor, "token d_in"] | Batches


@dataclass(frozen=True, kw_only=True)
class EvalData:
    """Evaluation data: a pair of models with tokens, or activations.

    Pass either `pair` and `tokens`, for which the models run, or `activations`. Use held-out data, which the crosscoder
    was not trained on: `CrosscoderTrainingRunner.held_out_data()` returns it.

    Raises:
        ValueError: for neither or both, or for fields that do not fit each other.
    """

    pair: HookedModelPair | None = None
    tokens: Int[Tensor, "batch pos"] | None = None
    """Token ids."""
    token_mask: Bool[Tensor, "_ _"] | None = None
    """Shape of the tokens. True for the tokens to use, False for padding and the like; None uses all. Of models with
    different tokenizers, tokens that are not `pair.aligned` are False."""
    activations: Activations | None = None
    """Raw stacked activations: a tensor, an iterable of batches, or an `ActivationCache`."""
    groups: TokenGroups | None = None
    """Group of each token, as `token_groups` returns. Analyses by group leave out tokens labelled -1."""
    sources: Sequence[str] | TokenGroups | None = None
    """Name of the data source of each row, such as "web" or "chat"; a `TokenGroups` names that of each token.

    For activations without groups, one name per token."""
    documents: Int[Tensor, "_ _"] | None = None
    """Document id of each token, in their shape, negative for padding. None: documents begin at BOS and at each row."""
    tokenizer: Any = None
    """Tokenizer of the tokens; by default the pair's."""
    batch_size: int = 32
    """Prompts per forward pass."""
    max_norm_ratio: float | None = MAX_NORM_RATIO
    """Tokens whose norm exceeds this many times the median norm of any model are left out. The median is that of the
    crosscoder's training; if the crosscoder does not know it, of the first 2048 tokens. None keeps all tokens."""
    kept_batches: Mapping[str, Sequence[Float[Tensor, "_ d_in"]]] = field(default_factory=dict, init=False, repr=False)
    """Activations of the tokens by hook name, where `keep_activations` harvested them."""

    def __post_init__(self) -> None:
        validate_config(self)
        validate_max_norm_ratio(self.max_norm_ratio)
        if self.activations is None:
            if self.pair is None or self.tokens is None:
                raise ValueError("Pass either pair and tokens, or activations.")
            validate_tokens(self.tokens)
            as_token_mask(self.tokens, self.token_mask)
            validate_padding(self.tokens, self.token_mask, self.tokenizer or self.pair.tokenizer)
            if not self.pair.has_one_tokenizer:
                mask = as_token_mask(self.tokens, self.token_mask) & self.pair.aligned(self.tokens)
                object.__setattr__(self, "token_mask", mask)
        elif self.pair is not None or self.tokens is not None:
            raise ValueError("Pass either pair and tokens, or activations, not both.")
        elif self.token_mask is not None:
            raise ValueError("token_mask applies to tokens. Pass only the activations to use instead.")
        if self.documents is not None and self.tokens is not None and self.documents.shape != self.tokens.shape:
            raise ValueError(
                f"documents has shape {tuple(self.documents.shape)}, but tokens has {tuple(self.tokens.shape)}. "
                "Pass one document id per token."
            )
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1: it is the prompts per forward pass.")
        if self.tokenizer is None:
            object.__setattr__(self, "tokenizer", getattr(self.pair, "tokenizer", None))

    @validate_arguments
    def keep_activations(self, hook_name: str) -> "EvalData":
        """The same data with the activations of its tokens in memory, so that several analyses run the models once.

        Raises:
            ValueError: for data without a pair, or an unknown hook.
        """
        if self.pair is None or self.tokens is None:
            raise ValueError("These activations are given already. Call keep_activations on data with pair and tokens.")
        kept = replace(self)
        batches = list(harvest(self.pair, self.tokens, hook_name, self.batch_size, self.token_mask))
        object.__setattr__(kept, "kept_batches", {**self.kept_batches, hook_name: batches})
        return kept

    @validate_arguments
    def with_groups(self, groups: TokenGroups | None, sources: Sequence[str] | TokenGroups | None = None) -> "EvalData":
        """The same data with other token groups and sources; what `keep_activations` harvested stays."""
        changed = replace(self, groups=groups, sources=sources)
        object.__setattr__(changed, "kept_batches", self.kept_batches)
        return changed

    @property
    def contexts(self) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
        """Token ids with their token mask; of activations, only a cache knows them.

        Raises:
            ValueError: for other activations, or a mask that leaves out all tokens.
        """
        if isinstance(self.activations, ActivationCache):
            return self.activations.contexts
        if self.tokens is None:
            raise ValueError(
                "These activations come without their tokens. Pass pair and tokens, or an ActivationCache as "
                "activations."
            )
        mask = as_token_mask(self.tokens, self.token_mask)
        if not mask.any():
            raise ValueError(f"token_mask leaves out all {mask.numel()} tokens. Set it to True for the tokens to use.")
        return self.tokens, mask
