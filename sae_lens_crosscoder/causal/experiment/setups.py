"""The setups of the paper's experiment: activations given to the chat model's later layers in place of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.causal.forward.response_batches import ResponseBatch
from sae_lens_crosscoder.causal.patching.intervention import CARRIES, Intervention, intervention
from sae_lens_crosscoder.crosscoders.two_models import TwoModels

POOL_SHARE: Final = 0.043
"""Share of all latents that the paper ranks: the 3,176 most chat-leaning of 73,728."""
_NU_RANGE: Final = (-0.1, 2.0)


@dataclass(frozen=True)
class Setup:
    """A setup of the experiment: the activation it starts from, and its edit."""

    name: str
    start: Literal["base", "chat", "template"] = "base"
    """The model whose activation it starts from; `template` is base with chat at the template's tokens."""
    edit: Intervention | None = None
    """The edit of that activation."""
    variant: str = ""
    """`replace` or `add` for setups that come in both."""
    n_latents: int = 0

    def residual(self, batch: ResponseBatch, template: Tensor | None) -> Float[Tensor, "prompt pos d_model"]:
        """The residual stream, from both models' activations and the template mask."""
        base, chat = batch.parts
        if self.start == "template":
            assert template is not None
            return torch.where(template.to(base.device)[..., None], chat, base)
        part, place = (chat, batch.places[1]) if self.start == "chat" else (base, batch.places[0])
        delta = None if self.edit is None else self.edit.deltas(batch.stacked)[place]
        return part if delta is None else part + delta.to(part)

    def tensors(self) -> list[Tensor]:
        """The tensors of its edit."""
        return [] if self.edit is None else self.edit.tensors()


def plain_setups(two: TwoModels, has_template: bool, with_bias: bool = False) -> list[Setup]:
    """The setups without a choice of latents.

    `none` is the base activation, `chat` the chat model's (its KL must be 0), `all` carries over everything the
    crosscoder explains, `error` everything it does not, and `template` has the chat activation at template tokens.
    """
    d_sae = two.crosscoder.cfg.d_sae
    options: dict[str, Any] = {"models": two.names, "with_bias": with_bias}
    everything, back = (intervention(two.crosscoder, None, "replace", model=name, **options) for name in two.names)
    setups = [
        Setup("none"),
        Setup("all", "base", everything, "replace", d_sae),
        Setup("error", "chat", back, "replace", d_sae),
        Setup("chat", "chat"),
    ]
    return [*setups, Setup("template", "template")] if has_template else setups


def latent_setups(two: TwoModels, sets: Mapping[str, Sequence[int]]) -> list[Setup]:
    """Two setups per named set of latents, one for each variant."""
    return [
        Setup(name, "base", intervention(two.crosscoder, latent_ids, how, models=two.names), how, len(latent_ids))
        for name, latent_ids in sets.items()
        for how in CARRIES
    ]


def chat_leaning_halves(latents: pd.DataFrame, pool_size: int | None = None) -> dict[str, list[int]]:
    """Halve the most chat-leaning latents by how chat-specific they are, by two measures.

    Args:
        latents: the table of `diagnose`.
        pool_size: size of the pool by `delta_norm`, before latents are removed that are dead or whose nu is undefined
            or outside [-0.1, 2]; by default the paper's share of all latents.

    Returns:
        `top_delta_norm`, `bottom_delta_norm` (top: largest), `top_nu`, `bottom_nu` (top: the lowest sum of the ranks of
        `nu_error` and `nu_reconstruction`); all four of the same size.
    """
    if "delta_norm" not in latents:
        raise ValueError(
            "latents has no column 'delta_norm', so it is no diagnosis of two models. Of several models, pass the "
            "latents of one of diagnosis.pairs, or of slc.diagnose(..., models=(first, second))."
        )
    size = round(POOL_SHARE * len(latents)) if pool_size is None else pool_size
    pool = latents.nlargest(size, "delta_norm")
    nus = pool[["nu_error", "nu_reconstruction"]]
    pool = pool[~pool.dead & (nus.ge(_NU_RANGE[0]) & nus.le(_NU_RANGE[1])).all(axis=1)]
    if len(pool) < 2:
        raise ValueError(
            f"Only {len(pool)} of the {size} most chat-leaning latents are alive with nu in range, too few for two "
            "halves. Pass a larger pool_size, or diagnose on more tokens, so that fewer nu are undefined."
        )
    half = len(pool) // 2
    ranks = pool.nu_error.rank() + pool.nu_reconstruction.rank()
    by_norm, by_nu = pool.index.tolist(), ranks.sort_values(kind="stable").index.tolist()
    return {
        "top_delta_norm": by_norm[:half],
        "bottom_delta_norm": by_norm[-half:],
        "top_nu": by_nu[:half],
        "bottom_nu": by_nu[-half:],
    }


def threshold_sets(latents: pd.DataFrame) -> dict[str, list[int]]:
    """Sets of live latents by thresholds: `chat_only` by Delta_norm alone, `chat_specific` by the verdict.

    An empty set is left out, because carrying over nothing is the setup `none`.

    Args:
        latents: the table of `diagnose`.
    """
    alive = latents[~latents.dead]
    sets = {
        "chat_only": alive.index[alive.label == "chat_only"].tolist(),
        "chat_specific": alive.index[alive.verdict == "chat_specific"].tolist(),
    }
    return {name: latent_ids for name, latent_ids in sets.items() if latent_ids}


def random_controls(
    latents: pd.DataFrame,
    chosen: Sequence[int],
    excluded: Sequence[int],
    energy: Float[Tensor, " d_sae"],
    seed: int = 0,
) -> dict[str, list[int]]:
    """Draw random live latents outside `excluded`: as many as `chosen`, and as many as have the energy of `chosen`.

    A control that needs more latents than there are is left out.

    Args:
        energy: the mean over tokens of the squared norm that each latent carries over.
    """
    candidates = latents.index[~latents.dead & ~latents.index.isin(list(excluded))].to_numpy()
    shuffled = np.random.default_rng(seed).permutation(candidates).tolist()
    energy = energy.double().cpu()
    cumulative = energy[shuffled].cumsum(dim=0)
    n_energy = int((cumulative < energy[list(chosen)].sum()).sum()) + 1
    sizes = {"random_same_number": len(chosen), "random_same_energy": n_energy}
    return {name: shuffled[:size] for name, size in sizes.items() if size <= len(shuffled)}
