"""The tables of a first look, from the measurements and the tokens' texts."""

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens_crosscoder.causal.forward.next_tokens import token_texts
from sae_lens_crosscoder.causal.localisation.changed_prompts import ChangedPrompts
from sae_lens_crosscoder.causal.localisation.hooks import block_of
from sae_lens_crosscoder.causal.localisation.localisation import Localisation, share_brought_back
from sae_lens_crosscoder.causal.localisation.recommendation import resampled_shares, shares_at_last
from sae_lens_crosscoder.data.token_groups import TokenGroups
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.resampling import quantiles

_CONTEXT_TOKENS = 12
_TEXT_TOKENS = 24
ALL = "all"


def hook_table(
    located: Localisation,
    changed: ChangedPrompts,
    ordinary: Bool[Tensor, "hook prompt pos"],
    special: Bool[Tensor, "prompt pos"],
    *,
    n_resamples: int,
    seed: int,
) -> pd.DataFrame:
    """`FirstLook.hooks`.

    Args:
        ordinary: the tokens that do not dominate, and are not special.
        special: special tokens.
    """
    low, high = quantiles(resampled_shares(located, changed, n_resamples, seed).T.contiguous())
    everyone, chosen = torch.ones(len(located.kl)), changed.changed.double()
    relative = located.difference / located.norms[..., 0]
    at_last = relative[:, torch.arange(len(located.last)), located.last]
    used = located.kl.isfinite()
    columns: dict[str, list[float | int | None]] = {
        "block": [block_of(name) for name in located.hook_names],
        "difference_last": at_last[:, changed.changed].nanmedian(dim=-1).values.tolist(),
        "difference_all": [_median(relative[h][ordinary[h]]) for h in range(len(relative))],
    }
    for m, model in enumerate(("base", "chat")):
        norms = located.norms[..., m]
        medians = [_median(norms[h][ordinary[h]]) for h in range(len(norms))]
        columns[f"position_0_{model}"] = [_median(norms[h, :, 0]) / medians[h] for h in range(len(norms))]
        columns[f"special_{model}"] = [_largest(norms[h][special & used]) / medians[h] for h in range(len(norms))]
    columns["n_left_out"] = [int((used & ~ordinary[h]).sum()) for h in range(len(ordinary))]
    columns["share_last"] = shares_at_last(located, changed).tolist()
    columns |= {"share_last_low": low.tolist(), "share_last_high": high.tolist()}
    columns["share_all"] = share_brought_back(located.patched_all, located.kl_last, chosen).tolist()
    columns["share_tokens"] = share_brought_back(located.patched_sum, located.kl_sum, everyone).tolist()
    return pd.DataFrame(columns, index=pd.Index(located.hook_names, name="hook_name"))


def prompt_table(
    pair: HookedModelPair, tokens: Int[Tensor, "prompt pos"], located: Localisation, changed: ChangedPrompts
) -> pd.DataFrame:
    """`FirstLook.prompts`."""
    rows: list[dict[str, object]] = []
    for i, last in enumerate(located.last.tolist()):
        ids = tokens[i, : last + 1].tolist()
        base, chat = (_predictions(pair, located, i, last, m) for m in (0, 1))
        rows.append(
            {
                "text": _text(pair, ids[-_TEXT_TOKENS:]),
                "n_tokens": int(located.kl[i].isfinite().sum()),
                "kl_nats": float(located.kl[i, last]),
                "kl_nats_tokens": float(located.kl[i].nanmean()),
                "changed": bool(changed.changed[i]),
                "base_next": base,
                "chat_next": chat,
            }
        )
    table = pd.DataFrame(rows).rename_axis("prompt")
    return table.sort_values("kl_nats", ascending=False, kind="stable")


def group_table(located: Localisation, groups: TokenGroups | None) -> pd.DataFrame:
    """`FirstLook.groups`."""
    used = located.kl.isfinite()
    total = float(located.kl_sum.double().sum())
    members = {ALL: used}
    if groups is not None:
        members |= {name: used & (groups.labels.cpu() == i) for i, name in enumerate(groups.names)}
    rows: dict[str, dict[str, float | int]] = {}
    for name, mask in members.items():
        kl = located.kl[mask].double()
        if len(kl):
            frac = float(kl.sum()) / total if total else float("nan")
            rows[name] = {"n_tokens": len(kl), "kl_nats": float(kl.mean()), "frac_kl": frac}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("group")


def position_table(
    pair: HookedModelPair,
    tokens: Int[Tensor, "prompt pos"],
    located: Localisation,
    groups: TokenGroups | None,
    n_positions: int,
) -> pd.DataFrame:
    """`FirstLook.positions`."""
    n_positions = min(n_positions, int(located.kl.isfinite().sum()))
    largest = located.kl.nan_to_num(-1).flatten().topk(n_positions).indices.tolist()
    rows: list[dict[str, object]] = []
    for index in largest:
        i, position = divmod(index, located.kl.shape[1])
        label = -1 if groups is None else int(groups.labels[i, position])
        ids = tokens[i, max(0, position - _CONTEXT_TOKENS) : position].tolist()
        rows.append(
            {
                "prompt": i,
                "position": position,
                "group": "" if groups is None or label < 0 else groups.names[label],
                "kl_nats": float(located.kl[i, position]),
                "context": _text(pair, ids),
                "token": token_texts(pair, [int(tokens[i, position])])[0],
                "base_next": _predictions(pair, located, i, position, 0),
                "chat_next": _predictions(pair, located, i, position, 1),
            }
        )
    return pd.DataFrame(rows)


def _predictions(pair: HookedModelPair, located: Localisation, prompt: int, position: int, m: int) -> str:
    """The most likely next tokens with their probabilities, such as "' I' 0.83, ' We' 0.04"."""
    ids, probs = located.top_ids[prompt, position, m].tolist(), located.top_probs[prompt, position, m].tolist()
    known = [(token, p) for token, p in zip(ids, probs, strict=True) if token >= 0]
    texts = token_texts(pair, [token for token, _ in known])
    return ", ".join(f"{text!r} {p:.2f}" for text, (_, p) in zip(texts, known, strict=True))


def _text(pair: HookedModelPair, ids: Sequence[int]) -> str:
    if pair.tokenizer is None:
        return " ".join(map(str, ids))
    return str(pair.tokenizer.decode(list(ids)))


def _median(values: Float[Tensor, " _"]) -> float:
    return float(values.nanmedian()) if values.numel() else float("nan")


def _largest(values: Float[Tensor, " _"]) -> float:
    return float(values.max()) if values.numel() else float("nan")
