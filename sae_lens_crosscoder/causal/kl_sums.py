"""KL summed per setup, window and conversation, and what the sums say about the mean."""

from collections.abc import Sequence
from typing import Final

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens_crosscoder.causal.setups import Setup

WINDOWS: Final = {"all": (1, None), "token 1": (1, 1), "tokens 2-10": (2, 10), "tokens 11+": (11, None)}
"""Of every assistant turn, counted from 1. Token 1 is predicted from the template's last position, so the setup
`template` gets it for free: the paper's "first 9 tokens" are the tokens 2 to 10."""


class KLSums:
    """Sums of KL in nats: `totals` (setup, window, conversation), of `n_tokens` (window, conversation)."""

    def __init__(self, setups: Sequence[Setup], response: Bool[Tensor, "conversation pos"]) -> None:
        self.setups = list(setups)
        self._response = response.cpu()
        turn_tokens = token_of_turn(self._response)
        self._in_window = torch.stack(
            [(turn_tokens >= first) & (turn_tokens <= (last or turn_tokens.max())) for first, last in WINDOWS.values()]
        )
        self.n_tokens = self._in_window.sum(dim=-1)
        self.totals = torch.zeros(len(self.setups), *self.n_tokens.shape, dtype=torch.float64)

    def add(self, setup: int, conversations: Int[Tensor, " row"], kl: Float[Tensor, " selected"]) -> None:
        """Add the KL of all response tokens of some conversations, in order."""
        response = self._response[conversations]
        spread = torch.zeros(response.shape, dtype=torch.float64)
        spread[response] = kl.double().cpu()
        self.totals[setup][:, conversations] += (self._in_window[:, conversations] * spread).sum(dim=-1)

    def table(self, n_resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
        """Means per token with 95 % intervals, and the reduction against the setup `none`, a row per setup and window.

        Conversations are resampled, the same ones for all setups, because a conversation's tokens are not independent.
        nan where a window has no token, and for intervals of a single conversation.
        """
        n_conversations = self.n_tokens.shape[-1]
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(0, n_conversations, (n_resamples, n_conversations), generator=generator)
        weights = torch.zeros(drawn.shape, dtype=torch.float64)
        weights.scatter_add_(-1, drawn, torch.ones_like(weights))
        means = self._means(torch.ones(1, n_conversations, dtype=torch.float64))[..., 0]
        resampled = self._means(weights if n_conversations > 1 else weights * torch.nan)
        names = [setup.name for setup in self.setups]
        none = names.index("none") if "none" in names else None
        rows: list[dict[str, object]] = []
        for s, setup in enumerate(self.setups):
            for w, window in enumerate(WINDOWS):
                row = {"setup": setup.name, "variant": setup.variant, "n_latents": setup.n_latents, "window": window}
                row |= _interval("kl_nats", means[s, w], resampled[s, w])
                if none is not None:
                    reductions = [1 - value[s, w] / value[none, w] for value in (means, resampled)]
                    row |= _interval("reduction", *reductions)
                rows.append({**row, "n_tokens": int(self.n_tokens[w].sum()), "n_conversations": n_conversations})
        return pd.DataFrame(rows)

    def _means(self, weights: Float[Tensor, "resample conversation"]) -> Float[Tensor, "setup window resample"]:
        return (self.totals @ weights.T) / (self.n_tokens.double() @ weights.T)


def token_of_turn(response: Bool[Tensor, "conversation pos"]) -> Int[Tensor, "conversation pos"]:
    """Which token of its turn a response token is, from 1, and 0 elsewhere; a turn is a run of response tokens.

    >>> token_of_turn(torch.tensor([[False, True, True, False, True]]))
    tensor([[0, 1, 2, 0, 1]])
    """
    position = torch.arange(1, response.shape[-1] + 1)
    before = torch.where(response, 0, position).cummax(dim=-1).values
    return torch.where(response, position - before, 0)


def _interval(name: str, value: Float[Tensor, ""], resampled: Float[Tensor, " resample"]) -> dict[str, float]:
    low, high = resampled.quantile(torch.tensor([0.025, 0.975], dtype=resampled.dtype)).tolist()
    return {name: float(value), f"{name}_low": low, f"{name}_high": high}
