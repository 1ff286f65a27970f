"""Selects the largest scores within two groups of latents, each with a budget of its own."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.crosscoders.collectives import SINGLE_PROCESS, Collectives
from sae_lens_crosscoder.crosscoders.sparse_step.kernels import stable_order
from sae_lens_crosscoder.crosscoders.sparse_step.pairs import ActivePairs
from sae_lens_crosscoder.crosscoders.sparse_step.screening import Found, Precision, Screening


class TwoBudgetScreening:
    """Screens the first latents and the rest apart: each group's scores have a smallest selected one of their own."""

    def __init__(self) -> None:
        self._first, self._rest = Screening(), Screening()

    def state_dict(self) -> dict[str, float | None]:
        first = {f"exclusive_{name}": value for name, value in self._first.state_dict().items()}
        return {**self._rest.state_dict(), **first}

    def load_state_dict(self, state: dict[str, float | None]) -> None:
        self._rest.load_state_dict(state)
        self._first.load_state_dict({name: state[f"exclusive_{name}"] for name in self._first.state_dict()})

    @torch.no_grad()
    def select(
        self,
        x: Float[Tensor, "batch d_in"],
        W_enc: Float[Tensor, "d_in d_sae"],
        b_enc: Float[Tensor, " d_sae"],
        norms: Float[Tensor, " d_sae"],
        n_first: int,
        budgets: tuple[int, int],
        precision: Precision = "float32",
        collectives: Collectives = SINGLE_PROCESS,
    ) -> Found:
        """Select as `Screening.select` does, once among the first `n_first` latents and once among the rest.

        Args:
            budgets: pairs to keep among the first latents, and among the rest, over all processes.
        """
        found = [
            screening.select(x, W_enc[:, part], b_enc[part], norms[part], n_keep, precision, collectives)
            for screening, part, n_keep in zip(
                (self._first, self._rest), (slice(None, n_first), slice(n_first, None)), budgets, strict=True
            )
        ]
        token = torch.cat([part.pairs.token for part in found])
        latent = torch.cat([found[0].pairs.latent, found[1].pairs.latent + n_first])
        # A stable order keeps a token's latents ascending, because the first group's ids are the smaller ones.
        order: Int[Tensor, " pairs"] = stable_order(token, len(x))
        pairs = ActivePairs(token[order], latent[order], len(x), len(b_enc))
        return Found(pairs, torch.cat([part.pre for part in found])[order])
