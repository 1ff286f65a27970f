"""The baseline directions of a first look: the tokens they promote, and what base does with them added."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.activations.eval_data import EvalData
from sae_lens_crosscoder.analysis.baselines.directions import DifferenceDirections
from sae_lens_crosscoder.analysis.baselines.linear import difference_pca, mean_difference
from sae_lens_crosscoder.analysis.baselines.rows import DifferenceRows, difference_rows
from sae_lens_crosscoder.causal.forward.next_tokens import token_texts
from sae_lens_crosscoder.causal.latents.logit_attribution import logit_lens
from sae_lens_crosscoder.causal.localisation.changed_prompts import ChangedPrompts
from sae_lens_crosscoder.causal.localisation.first_look import EMPTY_DIRECTIONS
from sae_lens_crosscoder.causal.localisation.localisation import Localisation
from sae_lens_crosscoder.causal.localisation.steering import steering_effects
from sae_lens_crosscoder.models.pair import HookedModelPair

_N_TOKENS = 6
_MAX_STEERED = 32
_CHANGED, _UNCHANGED = "changed", "unchanged"


def look_at_directions(
    data: EvalData,
    located: Localisation,
    changed: ChangedPrompts,
    hook_names: Sequence[str],
    *,
    n_components: int,
    max_norm_ratio: float | None,
) -> tuple[pd.DataFrame, Float[Tensor, "direction d_model"]]:
    """`FirstLook.directions` and `FirstLook.vectors` at some hooks.

    Args:
        data: the prompts; its mask marks the tokens that group means and components are computed from.
        hook_names: hooks that `located` knows.
    """
    assert data.pair is not None  # made by first_look
    tables: list[pd.DataFrame] = []
    vectors: list[Tensor] = []
    for hook_name in hook_names:
        at_last = located.differences_last()[located.hook_names.index(hook_name)]
        rows = difference_rows(data, hook_name, max_norm_ratio=max_norm_ratio)
        found = _baselines(at_last, rows, changed, n_components)
        strengths = [each.activations(at_last[changed.changed]).mean(dim=0) for each in found]
        columns: dict[str, Any] = {
            "hook_name": hook_name,
            "kind": [each.kind for each in found for _ in each.names],
            "direction": [name for each in found for name in each.names],
        }
        directions, strength = torch.cat([each.directions for each in found]), torch.cat(strengths)
        columns |= {"norm": directions.norm(dim=-1).tolist(), "strength": strength.tolist()}
        columns["explained"] = torch.cat([each.explained for each in found]).tolist()
        added = directions * strength[:, None]
        effects = _effects(data, located, changed, hook_name, added)
        tables.append(pd.DataFrame({**columns, **_promoted(data.pair, added), **effects}))
        vectors.append(directions)
    return pd.concat(tables, ignore_index=True)[list(EMPTY_DIRECTIONS)], torch.cat(vectors)


def _baselines(
    at_last: Float[Tensor, "prompt d_model"], rows: DifferenceRows, changed: ChangedPrompts, n_components: int
) -> list[DifferenceDirections]:
    """Mean differences at the last tokens and in each group, and components over all tokens; none that is 0."""
    labels = changed.changed.long()
    found: list[DifferenceDirections] = []
    if bool(at_last.any()):
        if not bool(changed.changed.all()):
            decisions = DifferenceRows(difference=at_last, labels=labels, names=(_UNCHANGED, _CHANGED))
            found.append(mean_difference(decisions, against=_UNCHANGED))
        found.append(mean_difference(DifferenceRows(difference=at_last, labels=labels - 1, names=(_CHANGED,))))
    if bool(rows.difference.any()):
        found.append(mean_difference(rows))
        if len(rows.difference) > 1:
            found.append(difference_pca(rows, n_components))
    return found


def _effects(
    data: EvalData,
    located: Localisation,
    changed: ChangedPrompts,
    hook_name: str,
    directions: Float[Tensor, "direction d_model"],
) -> dict[str, list[Any]]:
    """Columns of steering effects over the most changed prompts."""
    assert data.pair is not None  # made by first_look
    assert data.tokens is not None
    most = located.kl_last.masked_fill(~changed.changed, -1).argsort(descending=True)
    chosen = most[: min(_MAX_STEERED, int(changed.changed.sum()))].sort().values
    last = located.last[chosen]
    effects = steering_effects(
        data.pair, data.tokens[chosen].cpu(), last, hook_name, directions, batch_size=data.batch_size
    )
    kl = located.kl_last[chosen].double()
    chat_ids = located.top_ids[chosen, last, 1, 0]
    common = [Counter(row).most_common(1)[0][0] for row in effects.next_ids.tolist()]
    return {
        "share_kl": (1 - effects.kl_to_chat.double().sum(dim=-1) / kl.sum()).tolist(),
        "kl_from_base": effects.kl_from_base.double().mean(dim=-1).tolist(),
        "frac_chat_token": (effects.next_ids == chat_ids).double().mean(dim=-1).tolist(),
        "next_token": [repr(text) for text in token_texts(data.pair, common)],
    }


def _promoted(pair: HookedModelPair, directions: Float[Tensor, "direction d_model"]) -> dict[str, list[str]]:
    """Tokens that each direction raises and lowers through chat's unembedding; empty for a host without a lens."""
    if not hasattr(pair.chat, "ln_final") or not hasattr(pair.chat, "W_U"):
        return {"raised": [""] * len(directions), "lowered": [""] * len(directions)}
    lens = logit_lens(pair.chat, directions, _N_TOKENS)
    columns = {"raised": lens.raised, "lowered": lens.lowered}
    return {
        name: [" ".join(map(repr, token_texts(pair, row))) for row in ids.tolist()] for name, ids in columns.items()
    }
