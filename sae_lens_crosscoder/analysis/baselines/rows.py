"""DifferenceRows: chat - base at one hook, one row per token, which every baseline is computed from."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.activations.cache.reader import ActivationCache
from sae_lens_crosscoder.activations.dominant_tokens import (
    MAX_NORM_RATIO,
    NormLimits,
    token_norms,
    validate_max_norm_ratio,
)
from sae_lens_crosscoder.activations.eval_data import EvalData
from sae_lens_crosscoder.activations.harvest import validate_activations
from sae_lens_crosscoder.analysis.inputs import GivenActivations, HarvestedActivations, RawSource
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.data.token_groups import EXCLUDED
from sae_lens_crosscoder.stacking import StackedLayout


@dataclass(frozen=True, kw_only=True)
class DifferenceRows:
    """The difference chat - base of the residual streams at one hook, in raw units.

    Raises:
        ValueError: for no rows, or labels that do not fit the rows or the names.
    """

    difference: Float[Tensor, "token d_model"]
    labels: Int[Tensor, " _"] | None = None
    """Index of each row's group in `names`, or -1 for none; None if there are no groups."""
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.difference.ndim != 2 or len(self.difference) == 0:
            raise ValueError(
                f"difference has shape {tuple(self.difference.shape)}, expected (token, d_model) with at least one row."
            )
        if self.labels is not None and self.labels.shape != self.difference.shape[:1]:
            raise ValueError(
                f"labels has shape {tuple(self.labels.shape)}, expected one label for each of "
                f"{len(self.difference)} rows."
            )
        if self.labels is not None and not -1 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.names):
            raise ValueError(f"labels must be -1 or an index into the {len(self.names)} names {self.names}.")

    @validate_arguments
    def group(self, name: str) -> Float[Tensor, "row d_model"]:
        """The rows of one group; a ValueError for an unknown or empty group."""
        if name not in self.names or self.labels is None:
            raise ValueError(f"No group {name!r} among {self.names}. Pass one of these names.")
        rows = self.difference[self.labels == self.names.index(name)]
        if len(rows) == 0:
            raise ValueError(f"Group {name!r} has no tokens. Pass data that contain it, or choose another group.")
        return rows


@validate_arguments
@torch.no_grad()
def difference_rows(
    data: EvalData,
    hook_name: str | None = None,
    *,
    max_norm_ratio: float | None = MAX_NORM_RATIO,
    max_tokens: int = 100_000,
) -> DifferenceRows:
    """Read chat - base from evaluation data, with the groups of `data.groups`.

    Args:
        data: two models of one width. Tokens outside its mask are left out.
        hook_name: where to read the models of `data.pair`; not needed for activations.
        max_norm_ratio: leave out tokens whose norm, in either model, exceeds this many times that model's median norm:
            attention sinks would decide every mean and component. None keeps them.
        max_tokens: number of tokens to read at most, which bounds the memory.

    Raises:
        ValueError: for a missing hook, models of different width, or data without tokens.
    """
    validate_max_norm_ratio(max_norm_ratio)
    source, layout = _source(data, hook_name)
    labels = _labels(data)
    batches: list[Tensor] = []
    n_tokens = 0
    for batch in source.after(0):
        validate_activations(batch, layout, f"after the first {n_tokens}")
        batches.append(batch[: max_tokens - n_tokens].float().cpu())
        n_tokens += len(batches[-1])
        if n_tokens >= max_tokens:
            break
    if n_tokens == 0:
        raise ValueError("The data contain no tokens: the mask leaves out all, or the activations are empty.")
    stacked = torch.cat(batches)
    base, chat = layout.split(stacked)
    if labels is not None and len(labels) < n_tokens:
        raise ValueError(f"Got {len(labels)} labels for {n_tokens} tokens. Pass groups with one label per token.")
    used = torch.ones(n_tokens, dtype=torch.bool)
    if max_norm_ratio is not None:
        norms = token_norms(stacked, layout)
        used = NormLimits.measured(layout, norms, max_norm_ratio).ordinary_norms(norms)
    names = () if data.groups is None else data.groups.names
    return DifferenceRows(
        difference=(chat - base)[used], labels=None if labels is None else labels[:n_tokens][used], names=names
    )


def _source(data: EvalData, hook_name: str | None) -> tuple[RawSource, StackedLayout]:
    """Batches of activations, and the widths of the two models."""
    if data.activations is None:
        if hook_name is None:
            raise ValueError("hook_name is missing: name the hook to compare the models at.")
        assert data.pair is not None  # EvalData validates itself
        assert data.tokens is not None
        source: RawSource = HarvestedActivations(data, hook_name)
        layout = data.pair.layout_at(hook_name)
    else:
        source = GivenActivations(data.activations)
        if isinstance(data.activations, ActivationCache):
            layout = data.activations.layout
        elif isinstance(data.activations, Tensor) and data.activations.shape[-1] % 2 == 0:
            layout = StackedLayout((data.activations.shape[-1] // 2,) * 2)
        else:
            raise ValueError("activations must be one tensor (token, 2 * d_model), base first, or an ActivationCache.")
    if not layout.is_pair or not layout.same_width:
        raise ValueError(
            f"The difference needs two models of one width, but the widths are {layout.d_models}. Compare models that "
            "share their basis, such as a model and its fine-tune."
        )
    return source, layout


def _labels(data: EvalData) -> Int[Tensor, " token"] | None:
    if data.groups is None:
        return None
    labels = data.groups.labels.cpu().long()
    if data.tokens is None:
        return labels.flatten()
    if labels.shape != data.tokens.shape:
        raise ValueError(
            f"The groups' labels have shape {tuple(labels.shape)}, but tokens has {tuple(data.tokens.shape)}. Pass one "
            f"label per token, {EXCLUDED} for none."
        )
    return labels[data.contexts[1].cpu()]
