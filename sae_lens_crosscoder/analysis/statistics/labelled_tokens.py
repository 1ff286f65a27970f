"""Encoded tokens with a label each, of which some are left out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.analysis.inputs import BATCH_TOKENS, DataSource, Encoded, encoded
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.crosscoders.sparse_step.kernels import indices_of
from sae_lens_crosscoder.data.token_groups import EXCLUDED, TokenGroups

ALL = "all"


@dataclass(frozen=True)
class Cells:
    """A cell for every token, one for each source and group: sums over cells are sums over either, or both."""

    labels: Int[Tensor, " token"] | None
    """Source times the number of groups plus group, or -1 for tokens that are left out; None if all are in cell 0."""
    n_groups: int
    n_sources: int
    places: dict[str, Bool[Tensor, " cell"]]
    """The cells of what has a name: `all`, each source, each group."""

    @classmethod
    def of(
        cls,
        tokens: Tensor | None,
        groups: TokenGroups | None,
        sources: Sequence[str] | TokenGroups | None,
        keep: Tensor | None = None,
    ) -> "Cells":
        """Raises a ValueError for labels that do not fit the tokens or one another.

        Args:
            sources: one for each row of the tokens or groups, or a label for every token; without tokens and groups,
                one for each token.
            keep: the tokens that are in a cell at all; None for all.
        """
        names = () if groups is None else groups.names
        source_names = sources.names if isinstance(sources, TokenGroups) else tuple(sorted(set(sources or ())))
        if clashing := {name for name in names if name in (ALL, *source_names)} | ({ALL} & set(source_names)):
            raise ValueError(f"{sorted(clashing)} name a group and something else: give every place its own name.")
        n_groups, n_sources = max(1, len(names)), max(1, len(source_names))
        group = torch.arange(n_groups).repeat(n_sources)
        source = torch.arange(n_sources).repeat_interleave(n_groups)
        places = {ALL: torch.ones_like(group, dtype=torch.bool)}
        places |= {name: source == s for s, name in enumerate(source_names)}
        places |= {name: group == g for g, name in enumerate(names)}
        labels = _labels(tokens, groups, sources, source_names)
        if labels is not None and keep is not None:
            labels = labels[keep.flatten().cpu()]
        return cls(labels, n_groups, n_sources, places)


def _labels(
    tokens: Tensor | None,
    groups: TokenGroups | None,
    sources: Sequence[str] | TokenGroups | None,
    source_names: tuple[str, ...],
) -> Int[Tensor, " token"] | None:
    given = {"tokens": tokens, "the groups' labels": None if groups is None else groups.labels}
    given["the sources' labels"] = sources.labels if isinstance(sources, TokenGroups) else None
    shapes = {name: tuple(each.shape) for name, each in given.items() if each is not None}
    if len(set(shapes.values())) > 1:
        said = ", but ".join(f"{name} {shape}" for name, shape in shapes.items()).replace(" (", " are (", 1)
        raise ValueError(f"{said}: every token needs a label.")
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
        raise ValueError(f"There are {len(sources)} sources for {len(group)} rows: give every row its own.")
    left_out = (group == EXCLUDED) | (source == EXCLUDED)
    return torch.where(left_out, EXCLUDED, group + n_groups * source).flatten()


def labelled_batches(
    source: DataSource, labels: Int[Tensor, " token"] | None, description: str
) -> Iterator[tuple[Float[Tensor, "_ d_in"], Int[Tensor, " _"], int]]:
    """All tokens but those labelled -1, with their labels, and how many tokens there were before the batch.

    Labels None stand for 0 everywhere. Raises a ValueError when there are not as many tokens as labels: before anything
    runs, if the source knows.
    """
    n = 0
    if source.n_tokens is not None:
        _require_as_many(source.n_tokens, labels)
    with tqdm(total=source.n_tokens, desc=description, unit="token", unit_scale=True, leave=False) as bar:
        for batch in source.after(0):
            here = batch.new_zeros(len(batch), dtype=torch.int64) if labels is None else labels[n : n + len(batch)]
            if len(here) < len(batch):
                raise ValueError(f"There are more tokens than the {n + len(here)} labels: every token needs one.")
            kept = indices_of(here != EXCLUDED)
            yield batch[kept.to(batch.device)], here[kept], n
            n += len(batch)
            bar.update(len(batch))
    _require_as_many(n, labels)


def encoded_with_labels(
    crosscoder: InferenceCrosscoder, batch: Float[Tensor, "_ d_in"], labels: Int[Tensor, " _"], n_seen: int
) -> Iterator[tuple[Encoded, Int[Tensor, " token"]]]:
    """What a crosscoder makes of a batch, part by part, and the labels on its device."""
    here = labels.to(crosscoder.W_dec.device)
    return zip(encoded(crosscoder, batch, n_seen), here.split(BATCH_TOKENS), strict=True)


@torch.no_grad()
def labelled_parts(
    source: DataSource, crosscoder: InferenceCrosscoder, labels: Int[Tensor, " token"] | None, description: str
) -> Iterator[tuple[Encoded, Int[Tensor, " token"]]]:
    """What a crosscoder makes of the tokens of `labelled_batches`, part by part, with their labels."""
    for batch, here, n in labelled_batches(source, labels, description):
        yield from encoded_with_labels(crosscoder, batch, here, n)


def _require_as_many(n_tokens: int, labels: Int[Tensor, " token"] | None) -> None:
    if labels is not None and n_tokens != len(labels):
        raise ValueError(f"There are {n_tokens} tokens for {len(labels)} labels: every token needs one.")
