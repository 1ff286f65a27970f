"""Sums of KL, loss and agreement per setup, window and conversation, with means, intervals and tests."""

from collections.abc import Sequence
from typing import Final

import pandas as pd
import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens_crosscoder.causal.experiment.setups import Setup
from sae_lens_crosscoder.resampling import bootstrap_counts, quantiles, sign_flip_p_values
from sae_lens_crosscoder.storage.accumulators import Accumulator

WINDOWS: Final = {"all": (1, None), "token 1": (1, 1), "tokens 2-10": (2, 10), "tokens 11+": (11, None)}
"""Tokens of every assistant turn, counted from 1. Token 1 is predicted from the template's last position, so the setup
`template` gets it for free: the paper's "first 9 tokens" are tokens 2 to 10."""
QUANTITIES: Final = ("kl_nats", "loss_nats", "frac_agree")
"""Per token: `KL(p_chat || p_patched)`, the patched model's cross-entropy on the next token, and 1 if its most likely
token is the chat model's."""
CONTRASTS: Final = (
    ("top_delta_norm", "bottom_delta_norm"),
    ("top_nu", "bottom_nu"),
    ("top_nu", "random_same_number"),
    ("top_nu", "random_same_energy"),
)
"""Pairs of setups that are tested: half against half, and the better half against random latents."""
_KL = QUANTITIES.index("kl_nats")


class EffectSums(Accumulator):
    """Sums in float64: `totals` (quantity, setup, window, conversation) over `n_tokens` (window, conversation)."""

    buffers = ("totals",)

    def __init__(self, setups: Sequence[Setup], response: Bool[Tensor, "conversation pos"]) -> None:
        self.setups = list(setups)
        self._response = response.cpu()
        turn_tokens = token_of_turn(self._response)
        self._in_window = torch.stack(
            [(turn_tokens >= first) & (turn_tokens <= (last or turn_tokens.max())) for first, last in WINDOWS.values()]
        )
        self.n_tokens = self._in_window.sum(dim=-1)
        shape = (len(QUANTITIES), len(self.setups), *self.n_tokens.shape)
        self.totals = torch.zeros(shape, dtype=torch.float64)

    def add(
        self, setup: int, conversations: Int[Tensor, " row"], per_token: Float[Tensor, "quantity selected"]
    ) -> None:
        """Add the quantities at all response tokens of these conversations, in order."""
        response = self._response[conversations]
        spread = torch.zeros(len(QUANTITIES), *response.shape, dtype=torch.float64)
        spread[:, response] = per_token.double().cpu()
        self.totals[:, setup][..., conversations] += einsum(
            self._in_window[:, conversations].double(),
            spread,
            "window conversation pos, quantity conversation pos -> quantity window conversation",
        )

    def table(self, n_resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
        """Tabulate means per token with 95 % intervals, and the reduction against `none`, per setup and window.

        Conversations are resampled, because their tokens are not independent; the same ones for all setups. nan where a
        window has no token, and for intervals of a single conversation.
        """
        means, resampled = self._means(), self._means(self._weights(n_resamples, seed))
        names = [setup.name for setup in self.setups]
        none = names.index("none") if "none" in names else None
        rows: list[dict[str, object]] = []
        for s, setup in enumerate(self.setups):
            for w, window in enumerate(WINDOWS):
                row = {"setup": setup.name, "variant": setup.variant, "n_latents": setup.n_latents, "window": window}
                for q, quantity in enumerate(QUANTITIES):
                    row |= _interval(quantity, means[q, s, w], resampled[q, s, w])
                if none is not None:
                    reductions = [1 - value[_KL, s, w] / value[_KL, none, w] for value in (means, resampled)]
                    row |= _interval("reduction", *reductions)
                n_tokens, n_conversations = int(self.n_tokens[w].sum()), self.n_tokens.shape[-1]
                rows.append({**row, "n_tokens": n_tokens, "n_conversations": n_conversations})
        return pd.DataFrame(rows)

    def contrasts(
        self, pairs: Sequence[tuple[str, str]] = CONTRASTS, n_resamples: int = 1000, seed: int = 0
    ) -> pd.DataFrame:
        """Test differences in KL between setups: a row per pair, variant and window.

        Pairs with a setup that was not measured are left out. `kl_nats_difference` is the first's mean per token less
        the second's, below 0 where the first is nearer to the chat model, with a 95 % interval from conversations that
        are resampled for both alike. `p_value` is two-sided, from exchanging the two within conversations at random,
        and at least `1 / (1 + n_resamples)`.
        """
        index = {(setup.name, setup.variant): s for s, setup in enumerate(self.setups)}
        means, resampled = self._means(), self._means(self._weights(n_resamples, seed))
        rows: list[dict[str, object]] = []
        for first, second in pairs:
            for variant in dict.fromkeys(variant for name, variant in index if name == first):
                if (second, variant) not in index:
                    continue
                a, b = index[first, variant], index[second, variant]
                p_values = sign_flip_p_values(self.totals[_KL, a] - self.totals[_KL, b], n_resamples, seed)
                for w, window in enumerate(WINDOWS):
                    differences = [value[_KL, a, w] - value[_KL, b, w] for value in (means, resampled)]
                    row = {"setup": first, "against": second, "variant": variant, "window": window}
                    row |= _interval("kl_nats_difference", *differences)
                    defined = bool(self.n_tokens[w].any())
                    rows.append({**row, "p_value": p_values[w].item() if defined else float("nan")})
        return pd.DataFrame(rows)

    def _weights(self, n_resamples: int, seed: int) -> Float[Tensor, "resample conversation"]:
        return bootstrap_counts(self.n_tokens.shape[-1], n_resamples, seed)

    def _means(self, weights: Tensor | None = None) -> Float[Tensor, "quantity setup window *resample"]:
        """Means per token, with conversations weighted by `weights` (resample, conversation), or equally."""
        if weights is None:
            return self.totals.sum(dim=-1) / self.n_tokens.sum(dim=-1)
        return (self.totals @ weights.T) / (self.n_tokens.double() @ weights.T)


def token_of_turn(response: Bool[Tensor, "conversation pos"]) -> Int[Tensor, "conversation pos"]:
    """Number response tokens within their turn, from 1; 0 elsewhere. A turn is a run of response tokens.

    >>> token_of_turn(torch.tensor([[False, True, True, False, True]]))
    tensor([[0, 1, 2, 0, 1]])
    """
    position = torch.arange(1, response.shape[-1] + 1)
    before = torch.where(response, 0, position).cummax(dim=-1).values
    return torch.where(response, position - before, 0)


def _interval(name: str, value: Float[Tensor, ""], resampled: Float[Tensor, " resample"]) -> dict[str, float]:
    low, high = quantiles(resampled).tolist()
    return {name: float(value), f"{name}_low": low, f"{name}_high": high}
