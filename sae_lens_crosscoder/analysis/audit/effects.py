"""CausalEffect: base with the latents of a change added, beside controls."""

from dataclasses import dataclass

import pandas as pd

_CONTROLS = ("random latents", "noise")
_WITHOUT_CARRIERS = ("first", "biases")
_LEAST_MOVED, _LEAST_BROUGHT_BACK, _TIMES_CONTROL = 0.5, 0.2, 2.0
_LEAST_DIFFERENCE = 0.5


@dataclass(frozen=True, kw_only=True)
class CausalEffect:
    """The base model with what carriers and shared latents write of chat - base added, on held-out prompts.

    The prompts show the behaviour. KL is that of base's prediction of the answer's first token from chat's. Controls
    are random active latents and noise of the same energy; the strongest counts.
    """

    brought_back: float
    """Share of the KL that is gone."""
    brought_back_shared: float
    """Without the carriers."""
    brought_back_control: float
    brought_back_mean_difference: float
    """The mean difference of activations in place of latents."""
    rate_base: float
    """How often base's greedy answers have the phrase."""
    rate: float
    """The same with the latents added."""
    rate_shared: float
    """Without the carriers."""
    rate_control: float
    rate_chat: float
    rate_others: float
    """Of base with the latents added, on held-out prompts without the behaviour."""
    n_prompts: int
    answer: str
    """First answer with the latents added."""

    @classmethod
    def of_ladder(cls, table: pd.DataFrame, n_prompts: int) -> "CausalEffect":
        """Read the effect from the table of a causal ladder."""
        rows = {str(name): row for name, row in table.to_dict("index").items()}
        named, base, chat = rows["named"], rows["base"], rows["chat"]
        shared = next(row for name, row in rows.items() if name.startswith(_WITHOUT_CARRIERS))
        controls = [row for name, row in rows.items() if name.startswith(_CONTROLS)]
        farthest = max if chat["rate"] >= base["rate"] else min
        return cls(
            brought_back=named["brought_back"],
            brought_back_shared=shared["brought_back"],
            brought_back_control=max(row["brought_back"] for row in controls),
            brought_back_mean_difference=rows["mean difference"]["brought_back"],
            rate_base=base["rate"],
            rate=named["rate"],
            rate_shared=shared["rate"],
            rate_control=farthest(row["rate"] for row in controls),
            rate_chat=chat["rate"],
            rate_others=named["rate_others"],
            n_prompts=n_prompts,
            answer=named["answer"],
        )

    @property
    def is_causal(self) -> bool:
        """True if the latents bring base half of the way to chat's rate, or bring back a fifth of the KL.

        Either must be twice what the strongest control does, and twice what is done without the carriers. The greedy
        answers of the two models must differ in the phrase, in at least half of the cases.
        """
        if abs(self.rate_chat - self.rate_base) < _LEAST_DIFFERENCE:
            return False
        moved = self._moved(self.rate)
        by_controls = max(self._moved(self.rate_control), self._moved(self.rate_shared))
        by_rate = moved >= _LEAST_MOVED and moved >= _TIMES_CONTROL * by_controls
        brought_back = max(self.brought_back_control, self.brought_back_shared)
        by_kl = self.brought_back >= _LEAST_BROUGHT_BACK and self.brought_back >= _TIMES_CONTROL * brought_back
        return by_rate or by_kl

    def _moved(self, rate: float) -> float:
        return (rate - self.rate_base) / (self.rate_chat - self.rate_base)
