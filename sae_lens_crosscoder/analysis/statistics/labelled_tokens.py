"""Encoded tokens with a label each; tokens labelled -1, and those that dominate, are left out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.activations.eval_data import EvalData
from sae_lens_crosscoder.analysis.encoding import Encoded, encoded
from sae_lens_crosscoder.analysis.inputs import BATCH_TOKENS, DataSource
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.crosscoders.sparse_step.kernels import indices_of
from sae_lens_crosscoder.data.token_groups import EXCLUDED, TokenGroups

ALL = "all"


@dataclass(frozen=True)
class Cells:
    """One cell per source and group, to which tokens are assigned: sums over cells are sums over sources or groups."""

    labels: Int[Tensor, " token"] | None
    """Source times the number of groups plus group, or -1 for tokens that are left out; None if all are in cell 0."""
    n_groups: int
    n_sources: int
    places: dict[str, Bool[Tensor, " cell"]]
    """Cells of each place: `all`, each source, each group."""

    @classmethod
    def of(cls, data: EvalData, by_source: bool = True) -> "Cells":
        """Cell of each token that the mask of `data` keeps.

        Raises:
            ValueError: for labels that do not fit the tokens or one another.
        """
        groups, sources = data.groups, data.sources if by_source else None
        names = () if groups is None else groups.names
        source_names = sources.names if isinstance(sources, TokenGroups) else tuple(sorted(set(sources or ())))
        if clashing := {name for name in names if name in (ALL, *source_names)} | ({ALL} & set(source_names)):
            raise ValueError(
                f"{sorted(clashing)} name both a group and a source. Give each group and source its own name."
            )
        n_groups, n_sources = max(1, len(names)), max(1, len(source_names))
        group = torch.arange(n_groups).repeat(n_sources)
        source = torch.arange(n_sources).repeat_interleave(n_groups)
        places = {ALL: torch.ones_like(group, dtype=torch.bool)}
        places |= {name: source == s for s, name in enumerate(source_names)}
        places |= {name: group == g for g, name in enumerate(names)}
        labels = _labels(data.tokens, groups, sources, source_names)
        if labels is not None and data.token_mask is not None:
            labels = labels[data.token_mask.flatten().cpu()]
        return cls(labels, n_groups, n_sources, places)


def _labels(
    tokens: Tensor | None,
    groups: TokenGroups | None,
    sources: Sequence[str] | TokenGroups | None,
    source_names: tuple[str, ...],
) -> Int[Tensor, " token"] | None:
    given = {"tokens": tokens, "the groups' labels": None if groups is None else groups.labels}
    given["the sources' labels"] = sources.labels if isinstance(sources, TokenGroups) else None
    shapes = {name: tuple(tensor.shape) for name, tensor in given.items() if tensor is not None}
    if len(set(shapes.values())) > 1:
        listed = " and ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"Shapes do not match: {listed}. Pass one label per token.")
    if groups is None and sources is None:
        return None
    n_groups = 1 if groups is None else len(groups.names)
    shape = next(iter(shapes.values()), (0 if isinstance(sources, TokenGroups) else len(sources or ()), 1))
    group = torch.zeros(shape, dtype=torch.int64) if groups is None else groups.labels.cpu().long()
    if sources is None:
        return group.flatten()
    if isinstance(sources, TokenGroups):
        source = sources.labels.cpu().long()
    elif len(sources) == len(group):
        source = torch.tensor([source_names.index(name) for name in sources])[:, None]
    else:
        raise ValueError(f"Got {len(sources)} sources for {len(group)} rows. Pass one source per row.")
    left_out = (group == EXCLUDED) | (source == EXCLUDED)
    return torch.where(left_out, EXCLUDED, group + n_groups * source).flatten()


class LabelledBatch(NamedTuple):
    """Tokens of a batch that are neither labelled -1 nor dominant, with their labels."""

    activations: Float[Tensor, "_ d_in"]
    labels: Int[Tensor, " _"]
    places: Int[Tensor, " _"]
    """Place of each token in the stream."""
    n_seen: int
    """Tokens before the batch."""
    left_out: Float[Tensor, "_ d_in"]
    """The tokens that dominate."""


def labelled_batches(
    source: DataSource, labels: Int[Tensor, " token"] | None, description: str
) -> Iterator[LabelledBatch]:
    """Batches with labels; labels None stand for 0 everywhere.

    Raises:
        ValueError: unless there are as many labels as tokens; before the models run, if the source knows its length.
    """
    n = 0
    if source.n_tokens is not None:
        _validate_count(source.n_tokens, labels)
    with tqdm(total=source.n_tokens, desc=description, unit="token", unit_scale=True, leave=False) as bar:
        for batch, ordinary in source.batches(counted=None if labels is None else labels != EXCLUDED):
            zeros = batch.new_zeros(len(batch), dtype=torch.int64)
            batch_labels = zeros if labels is None else labels[n : n + len(batch)]
            if len(batch_labels) < len(batch):
                raise ValueError(f"Got {n + len(batch_labels)} labels for more tokens. Pass one label per token.")
            labelled, used = batch_labels != EXCLUDED, ordinary.to(batch_labels.device)
            rows, left_out = indices_of(labelled & used), indices_of(labelled & ~used)
            yield LabelledBatch(
                batch[rows.to(batch.device)], batch_labels[rows], n + rows, n, batch[left_out.to(batch.device)]
            )
            n += len(batch)
            bar.update(len(batch))
    _validate_count(n, labels)


def encoded_with_labels(
    crosscoder: InferenceCrosscoder, batch: Float[Tensor, "_ d_in"], labels: Int[Tensor, " _"], n_seen: int
) -> Iterator[tuple[Encoded, Int[Tensor, " token"]]]:
    """Encode a batch part by part, with its labels on the crosscoder's device."""
    parts = labels.to(crosscoder.W_dec.device).split(BATCH_TOKENS) if len(labels) else ()
    return zip(encoded(crosscoder, batch, n_seen), parts, strict=True)


@torch.no_grad()
def labelled_parts(
    source: DataSource, crosscoder: InferenceCrosscoder, labels: Int[Tensor, " token"] | None, description: str
) -> Iterator[tuple[Encoded, Int[Tensor, " token"]]]:
    """Encode the tokens of `labelled_batches` part by part, with their labels."""
    for batch in labelled_batches(source, labels, description):
        yield from encoded_with_labels(crosscoder, batch.activations, batch.labels, batch.n_seen)


def _validate_count(n_tokens: int, labels: Int[Tensor, " token"] | None) -> None:
    if labels is not None and n_tokens != len(labels):
        raise ValueError(f"Got {len(labels)} labels for {n_tokens} tokens. Pass one label per token.")
