"""Activation divergence: how differently two latents fire that write the same direction (Latent Decoupling).

A chat-only and a base-only latent of one direction may be one concept of both models that was split without need, and
then they fire together, or a concept that the models use in different contexts.
"""

from collections.abc import Iterator

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.activations.eval_data import EvalData
from sae_lens_crosscoder.analysis.diagnosis.classes import labels_of, norms_of_pair
from sae_lens_crosscoder.analysis.inputs import DataSource, data_source
from sae_lens_crosscoder.analysis.statistics.labelled_tokens import Cells, labelled_parts
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, validate_inference
from sae_lens_crosscoder.crosscoders.sparse_step.kernels import indices_of
from sae_lens_crosscoder.crosscoders.sparse_step.pairs import pairs_of


@validate_arguments
def activation_divergence(
    crosscoder: InferenceCrosscoder,
    data: EvalData,
    latent_pairs: pd.DataFrame,
    *,
    max_activation: pd.Series | None = None,
    high: float = 0.7,
    low: float = 0.3,
) -> pd.DataFrame:
    """Measure how differently the two latents of each pair fire: 0 always together, 1 never on the same token.

    With A the larger of the two latents' highest scores, a latent is high where its score exceeds `high * A`, and it
    alone is where the other one's is below `low * A` as well. The divergence is the share of tokens on which one alone
    is among those on which either is high.

    Args:
        data: held-out data; tokens labelled -1 in its groups, such as padding, are left out.
        latent_pairs: rows of `chat_latent` and `base_latent`, as `decoupled_pairs` returns; other pairs work as well.
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
    crosscoder = validate_inference(crosscoder, "activation_divergence")
    indices = _pair_indices(latent_pairs, crosscoder)
    _validate_thresholds(high, low)

    def stream(description: str) -> Iterator[Tensor]:
        labels = Cells.of(data, by_source=False).labels
        return _encoded_stream(data_source(crosscoder, data), crosscoder, labels, description)

    if max_activation is not None:
        highest = torch.tensor(max_activation.to_numpy(dtype=float), device=indices.device)
        if len(highest) != crosscoder.cfg.d_sae:
            raise ValueError(
                f"max_activation has {len(highest)} entries, but the crosscoder has {crosscoder.cfg.d_sae} latents. "
                "Pass the highest score of every latent."
            )
    elif isinstance(data.activations, Iterator):
        raise ValueError(
            "These activations can be read only once, but the highest scores take a second pass. Pass max_activation, "
            "or activations as a tensor, a list of batches or an ActivationCache."
        )
    else:
        highest = _highest_scores(stream("Highest scores"), crosscoder)
    maxima = highest[indices]
    sums = ActivationDivergence(indices, maxima.amax(dim=-1), high, low)
    for feature_acts in stream("Comparing pairs"):
        sums.add(feature_acts)
    return _evidence(latent_pairs, crosscoder, maxima, sums)


class ActivationDivergence:
    """Counts, per pair of latents, the tokens on which either is high, and those on which only one of them is.

    >>> sums = ActivationDivergence(torch.tensor([[0, 1]]), torch.tensor([10.0]), high=0.7, low=0.3)
    >>> sums.add(torch.tensor([[9.0, 0.0], [8.0, 8.0], [0.0, 10.0], [5.0, 0.0]]))
    >>> sums.n_high.tolist(), sums.n_only.tolist(), sums.divergence().round(decimals=2).tolist()
    ([3], [[1, 1]], [0.67])

    Args:
        highest: A of each pair; a pair with A = 0 is never high.
    """

    def __init__(
        self, pairs: Int[Tensor, "pair 2"], highest: Float[Tensor, " pair"], high: float = 0.7, low: float = 0.3
    ) -> None:
        self._latents, self._place = torch.unique(pairs, return_inverse=True)
        self._above, self._below = high * highest, low * highest
        self._above[~(highest > 0)] = torch.inf
        self.n_high = torch.zeros(len(pairs), dtype=torch.int64, device=pairs.device)
        self.n_only = torch.zeros_like(pairs, dtype=torch.int64)
        """Tokens on which only the first latent is high, and only the second: (pair, 2)."""

    def add(self, feature_acts: Float[Tensor, "token d_sae"]) -> None:
        """Add tokens, dense or sparse."""
        active, values = pairs_of(feature_acts)
        position = torch.full((active.d_sae,), -1, device=values.device)
        position[self._latents] = torch.arange(len(self._latents), device=values.device)
        inside = indices_of(position[active.latent] >= 0)
        scores = values.new_zeros(active.n_tokens, len(self._latents))
        scores[active.token[inside], position[active.latent[inside]]] = values[inside]
        both = [scores[:, place] for place in self._place.unbind(dim=-1)]
        is_high, is_low = [part > self._above for part in both], [part < self._below for part in both]
        self.n_high += (is_high[0] | is_high[1]).sum(dim=0)
        for side in (0, 1):
            self.n_only[:, side] += (is_high[side] & is_low[1 - side]).sum(dim=0)

    def divergence(self) -> Float[Tensor, " pair"]:
        """In [0, 1]; 0 / 0 is nan, as it should be."""
        return self.n_only.sum(dim=-1).double() / self.n_high


def _encoded_stream(
    source: DataSource, crosscoder: InferenceCrosscoder, labels: Int[Tensor, " token"] | None, description: str
) -> Iterator[Float[Tensor, "token d_sae"]]:
    """Sparse activations of all tokens that are not left out, in parts."""
    n = 0
    for part, _ in labelled_parts(source, crosscoder, labels, description):
        yield part.feature_acts
        n += len(part.activations)
    if n == 0:
        raise ValueError(
            "No tokens to compare pairs on: the data is empty, or its mask or groups leave out every token."
        )


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
    labels = labels_of(norms_of_pair(crosscoder.decoder_norms, crosscoder.layout))
    evidence = latent_pairs.assign(divergence=sums.divergence().cpu().numpy(), n_high=sums.n_high.cpu().numpy())
    for side, name in enumerate(("chat", "base")):
        evidence[f"n_only_{name}"] = sums.n_only[:, side].cpu().numpy()
        evidence[f"{name}_label"] = [labels[latent] for latent in latent_pairs[f"{name}_latent"]]
        evidence[f"{name}_max"] = maxima[:, side].cpu().numpy()
    return evidence


def _pair_indices(latent_pairs: pd.DataFrame, crosscoder: InferenceCrosscoder) -> Int[Tensor, "pair 2"]:
    indices = torch.tensor(latent_pairs[["chat_latent", "base_latent"]].to_numpy(dtype="int64").reshape(-1, 2).copy())
    if not ((indices >= 0) & (indices < crosscoder.cfg.d_sae)).all():
        raise ValueError(
            f"latent_pairs contains latents outside 0 to {crosscoder.cfg.d_sae - 1}, this crosscoder's latents."
        )
    return indices.to(crosscoder.W_dec.device)


def _validate_thresholds(high: float, low: float) -> None:
    if not 0 < low <= high < 1:
        raise ValueError(
            f"high={high} and low={low} must satisfy 0 < low <= high < 1: they are shares of a pair's highest score. "
            "The paper's are 0.7 and 0.3."
        )
