"""Latent Decoupling, pair by pair: how differently do two latents fire that write the same direction?

A chat-only and a base-only latent of one direction may be a concept of both models that was taken apart without need,
in which case they fire together, or one that the models use in different contexts.
"""

from collections.abc import Iterator

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.analysis.diagnosis.delta_norm import delta_norm, label
from sae_lens_crosscoder.analysis.inputs import Batches, DataSource, data_source
from sae_lens_crosscoder.analysis.statistics.labelled_tokens import Cells, labelled_parts
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, require_inference
from sae_lens_crosscoder.crosscoders.sparse_step.codes import pairs_of
from sae_lens_crosscoder.crosscoders.sparse_step.kernels import indices_of
from sae_lens_crosscoder.data.token_groups import TokenGroups
from sae_lens_crosscoder.models.pair import HookedModelPair


def activation_divergence(
    crosscoder: InferenceCrosscoder,
    latent_pairs: pd.DataFrame,
    pair: HookedModelPair | None = None,
    tokens: Tensor | None = None,
    *,
    keep: Tensor | None = None,
    groups: TokenGroups | None = None,
    activations: Float[Tensor, "token d_in"] | Batches | None = None,
    max_activation: pd.Series | None = None,
    high: float = 0.7,
    low: float = 0.3,
    batch_size_prompts: int = 32,
) -> pd.DataFrame:
    """How differently the two latents of each pair fire: 0 always strongly together, 1 never both on one token.

    With A the larger of the two latents' highest scores, a latent is high where its score exceeds `high * A`, and it
    alone is where the other one's is below `low * A` as well. The divergence is the share of tokens on which one alone
    is among those on which either is high.

    Args:
        latent_pairs: rows of `chat_latent` and `base_latent`, as `decoupled_pairs` returns; other pairs do as well.
        pair, tokens, keep, activations: data as `diagnose` takes it, which the crosscoder was not trained on.
        groups: tokens labelled -1 in them, such as padding, are left out.
        max_activation: highest score of every latent, such as the column of a table that `diagnose` made on training
            data. Without it a first pass over the data finds it.
        high, low: the paper's 0.7 and 0.3; its authors' code uses 0.4 and 0.1.

    Returns:
        The rows of `latent_pairs`, and `divergence` (nan where neither latent is ever high), the numbers of tokens
        `n_high`, `n_only_chat`, `n_only_base`, and of either latent its class and highest score: `chat_label`,
        `base_label`, `chat_max`, `base_max`.

    Raises:
        ValueError: for a training crosscoder, pairs of latents that it does not have, thresholds out of order, no data,
            or activations that can be read only once and no `max_activation`.
    """
    crosscoder = require_inference(crosscoder, "activation_divergence")
    indices = _pair_indices(latent_pairs, crosscoder)
    _require_thresholds(high, low)

    def stream(description: str) -> Iterator[Tensor]:
        source = data_source(crosscoder, pair, tokens, activations, batch_size_prompts, "activation_divergence", keep)
        labels = Cells.of(tokens, groups, None, keep).labels
        return _encoded_stream(source, crosscoder, labels, description)

    if max_activation is not None:
        highest = torch.tensor(max_activation.to_numpy(dtype=float), device=indices.device)
        if len(highest) != crosscoder.cfg.d_sae:
            raise ValueError(
                f"max_activation has {len(highest)} entries, but the crosscoder {crosscoder.cfg.d_sae} latents: give "
                "the highest score of every one."
            )
    elif isinstance(activations, Iterator):
        raise ValueError(
            "These activations can be read only once, but the highest scores take a pass of their own: give "
            "max_activation=, or a tensor, a list of batches or an ActivationCache."
        )
    else:
        highest = _highest_scores(stream("Highest scores"), crosscoder)
    maxima = highest[indices]
    sums = ActivationDivergence(indices, maxima.amax(dim=-1), high, low)
    for feature_acts in stream("Comparing pairs"):
        sums.add(feature_acts)
    return _evidence(latent_pairs, crosscoder, maxima, sums)


class ActivationDivergence:
    """Streams, for pairs of latents, on how many tokens either is high and on how many one of them alone is.

    >>> sums = ActivationDivergence(torch.tensor([[0, 1]]), torch.tensor([10.0]), high=0.7, low=0.3)
    >>> sums.add(torch.tensor([[9.0, 0.0], [8.0, 8.0], [0.0, 10.0], [5.0, 0.0]]))
    >>> sums.n_high.tolist(), sums.n_only.tolist(), sums.divergence().round(decimals=2).tolist()
    ([3], [[1, 1]], [0.67])

    Args:
        highest: A of each pair; one of 0 is nothing to be high against.
    """

    def __init__(
        self, pairs: Int[Tensor, "pair 2"], highest: Float[Tensor, " pair"], high: float = 0.7, low: float = 0.3
    ) -> None:
        self._latents, self._place = torch.unique(pairs, return_inverse=True)
        self._above, self._below = high * highest, low * highest
        self._above[~(highest > 0)] = torch.inf
        self.n_high = torch.zeros(len(pairs), dtype=torch.int64, device=pairs.device)
        self.n_only = torch.zeros_like(pairs, dtype=torch.int64)
        """On how many tokens the first latent alone is high, and on how many the second: (pair, 2)."""

    def add(self, feature_acts: Float[Tensor, "token d_sae"]) -> None:
        """Add tokens, dense or sparse."""
        active, values = pairs_of(feature_acts)
        position = torch.full((active.d_sae,), -1, device=values.device)
        position[self._latents] = torch.arange(len(self._latents), device=values.device)
        kept = indices_of(position[active.latent] >= 0)
        scores = values.new_zeros(active.n_tokens, len(self._latents))
        scores[active.token[kept], position[active.latent[kept]]] = values[kept]
        both = [scores[:, place] for place in self._place.unbind(dim=-1)]
        is_high, is_low = [part > self._above for part in both], [part < self._below for part in both]
        self.n_high += (is_high[0] | is_high[1]).sum(dim=0)
        for this, other in ((0, 1), (1, 0)):
            self.n_only[:, this] += (is_high[this] & is_low[other]).sum(dim=0)

    def divergence(self) -> Float[Tensor, " pair"]:
        """In [0, 1]; 0 / 0 is nan, as it should be."""
        return self.n_only.sum(dim=-1).double() / self.n_high


def _encoded_stream(
    source: DataSource, crosscoder: InferenceCrosscoder, labels: Int[Tensor, " token"] | None, description: str
) -> Iterator[Float[Tensor, "token d_sae"]]:
    """Sparse activations of all tokens that are not left out, part by part."""
    n = 0
    for part, _ in labelled_parts(source, crosscoder, labels, description):
        yield part.feature_acts
        n += len(part.activations)
    if n == 0:
        raise ValueError("There was nothing to compare pairs on: the data source gave no tokens, or all were left out.")


def _highest_scores(stream: Iterator[Tensor], crosscoder: InferenceCrosscoder) -> Float[Tensor, " d_sae"]:
    highest = crosscoder.W_dec.new_zeros(crosscoder.cfg.d_sae)
    for feature_acts in stream:
        active, values = pairs_of(feature_acts)
        highest.scatter_reduce_(0, active.latent, values, "amax")
    return highest.double()


def _evidence(
    latent_pairs: pd.DataFrame,
    crosscoder: InferenceCrosscoder,
    maxima: Float[Tensor, "pair 2"],
    sums: ActivationDivergence,
) -> pd.DataFrame:
    labels = [label(delta) for delta in delta_norm(crosscoder.decoder_norms.detach().double()).tolist()]
    evidence = latent_pairs.assign(divergence=sums.divergence().cpu().numpy(), n_high=sums.n_high.cpu().numpy())
    for side, name in enumerate(("chat", "base")):
        evidence[f"n_only_{name}"] = sums.n_only[:, side].cpu().numpy()
        evidence[f"{name}_label"] = [labels[latent] for latent in latent_pairs[f"{name}_latent"]]
        evidence[f"{name}_max"] = maxima[:, side].cpu().numpy()
    return evidence


def _pair_indices(latent_pairs: pd.DataFrame, crosscoder: InferenceCrosscoder) -> Int[Tensor, "pair 2"]:
    indices = torch.tensor(latent_pairs[["chat_latent", "base_latent"]].to_numpy(dtype="int64").reshape(-1, 2))
    if not ((indices >= 0) & (indices < crosscoder.cfg.d_sae)).all():
        raise ValueError(f"Some pairs are of latents that are not among this crosscoder's {crosscoder.cfg.d_sae}.")
    return indices.to(crosscoder.W_dec.device)


def _require_thresholds(high: float, low: float) -> None:
    if not 0 < low <= high < 1:
        raise ValueError(
            f"high={high} and low={low} are shares of a pair's highest score with 0 < low <= high < 1: the paper's are "
            "0.7 and 0.3."
        )
