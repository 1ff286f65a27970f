"""Groups of tokens within which a latent's background is constant: those of one frequent id, and all other tokens."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from sae_lens_crosscoder.activations.cache.reader import ActivationCache
from sae_lens_crosscoder.activations.eval_data import EvalData
from sae_lens_crosscoder.analysis.statistics.labelled_tokens import Cells
from sae_lens_crosscoder.data.token_mask import as_token_mask
from sae_lens_crosscoder.storage.checksums import fingerprint

MAX_GROUPS = 256
MIN_GROUP_TOKENS = 100


@dataclass(frozen=True)
class BackgroundGroups:
    """The group of every token in the order of the stream, for `CentredScaling`."""

    labels: Int[Tensor, " token"] | None
    """Group of each token that the mask keeps; None puts all tokens into group 0."""
    n_groups: int
    source: str
    """What tells the groups apart: `token ids`, `token ids and groups`, `groups`, or `one group`."""

    @classmethod
    def of(cls, data: EvalData) -> "BackgroundGroups":
        """Groups of the data: one per token id, or per id and group of `data.groups`, such as a template's place.

        Only the 255 most frequent ones with at least 100 tokens are kept apart. All other tokens form one group.
        Activations without tokens are told apart by `data.groups` alone, where tokens labelled -1 are among the others.
        Without groups they form one group.

        Raises:
            ValueError: for groups that do not fit the tokens.
        """
        ids, groups = _token_ids(data), Cells.of(data, by_source=False).labels
        if ids is not None and groups is not None and len(ids) != len(groups):
            raise ValueError(f"Got {len(groups)} labels for {len(ids)} tokens. Pass one label per token.")
        if ids is None and groups is None:
            return cls(None, 1, "one group")
        if ids is None or groups is None:
            keys = groups if ids is None else ids
            assert keys is not None
        else:
            keys = ids * (groups.max() + 2) + groups + 1  # an excluded token has label -1
        labels, n_groups = _frequent(keys)
        sources = {(True, True): "token ids and groups", (True, False): "token ids", (False, True): "groups"}
        return cls(labels, n_groups, sources[ids is not None, groups is not None])

    def fingerprint(self) -> str:
        """Digest of the labels."""
        return f"{self.n_groups} {fingerprint([] if self.labels is None else [self.labels])}"

    def validate_count(self, n_tokens: int | None) -> None:
        """Raise a ValueError unless there is one label per token; `n_tokens` None says that their number is unknown."""
        if n_tokens is not None and self.labels is not None and len(self.labels) != n_tokens:
            raise ValueError(f"Got {len(self.labels)} labels for {n_tokens} tokens. Pass one label per token.")

    def at(self, tokens: Int[Tensor, " _"]) -> Int[Tensor, " _"]:
        """Groups of the tokens at these places in the stream.

        Raises:
            ValueError: if there are fewer labels than tokens.
        """
        if self.labels is None:
            return torch.zeros_like(tokens)
        if len(tokens) and int(tokens.max()) >= len(self.labels):
            raise ValueError(f"Got {len(self.labels)} labels for more tokens. Pass one label per token.")
        return self.labels[tokens.cpu()].to(tokens.device)

    def manifest(self) -> dict[str, object]:
        """Entries for a manifest."""
        return {"background_groups": self.source, "n_background_groups": self.n_groups}


def _token_ids(data: EvalData) -> Int[Tensor, " token"] | None:
    if isinstance(data.activations, ActivationCache):
        tokens, mask = data.activations.contexts
    elif data.tokens is not None:
        tokens, mask = data.tokens, as_token_mask(data.tokens, data.token_mask)
    else:
        return None
    return tokens.cpu()[mask.cpu()].long()


def _frequent(keys: Int[Tensor, " token"]) -> tuple[Int[Tensor, " token"], int]:
    """Number the most frequent keys from 1 on, in order of frequency; 0 stands for all others and for keys below 0."""
    values, index, counts = keys.unique(return_inverse=True, return_counts=True)
    order = counts.argsort(descending=True, stable=True)[: MAX_GROUPS - 1]
    kept = order[(counts[order] >= MIN_GROUP_TOKENS) & (values[order] >= 0)]
    numbers = torch.zeros_like(counts)
    numbers[kept] = torch.arange(1, len(kept) + 1)
    return numbers[index], len(kept) + 1
