"""What each model loses when its activation is replaced by what the crosscoder makes of it."""

from collections.abc import Callable

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.activations.harvest import validate_tokens
from sae_lens_crosscoder.causal.patching.requirements import require_pair_of
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, require_inference
from sae_lens_crosscoder.models.hook_access import device_of, replaced_activations
from sae_lens_crosscoder.models.pair import HookedModelPair

_SPLICED = ("reconstruction", "zero", "mean")


@torch.no_grad()
def splice_evals(
    pair: HookedModelPair,
    crosscoder: InferenceCrosscoder,
    tokens: Int[Tensor, "prompt pos"],
    scored: Bool[Tensor, "prompt pos"] | None = None,
    *,
    batch_size: int = 8,
) -> pd.DataFrame:
    """How well each model works on its own reconstructed activation, against its activation set to zero or to its mean.

    The activation is replaced at every position. SAELens's `run_evals` takes the pair too, and gives the averages over
    both models against zero; here models are kept apart.

    Args:
        tokens: held-out prompts, padded on the right if at all.
        scored: the tokens whose prediction counts, such as `chat_tokens(...).response`; None means all but the first.

    Returns:
        A row per model. `ce_nats` is its cross-entropy per token by itself, `ce_nats_reconstruction`, `_zero`, `_mean`
        that with its activation replaced, and `kl_nats_...` the KL from the model by itself. `ce_recovered_zero` says
        how much of what zero costs the reconstruction gives back: 1 all, 0 nothing; nan where zero costs nothing.
        `_recovered_mean` is against the mean over all positions that predict a scored token.

    Raises:
        ValueError: for a pair the crosscoder was not trained on, tokens that are no (prompt, pos) tensor, or nothing
            to score.
    """
    crosscoder = require_inference(crosscoder, "splice_evals")
    hook_name = require_pair_of(crosscoder, pair)
    validate_tokens(tokens)
    predicts = _predicting(tokens, scored)
    layout = crosscoder.layout
    batches = [rows for rows in torch.arange(len(tokens)).split(batch_size) if predicts[rows].any()]
    n_scored = int(predicts.sum())
    total = torch.zeros(layout.d_in, dtype=torch.float64)
    for rows in batches:
        total += pair.activations(tokens[rows], hook_name).cpu()[predicts[rows]].double().sum(dim=0)
    mean = (total / n_scored).to(crosscoder.W_dec)
    sums = torch.zeros(layout.n_models, 1 + len(_SPLICED), 2, dtype=torch.float64)
    for rows in tqdm(batches, desc="Splicing", unit="batch", leave=False):
        some, wanted = tokens[rows], predicts[rows]
        stacked = pair.activations(some, hook_name).to(crosscoder.W_dec)
        spliced = [crosscoder.decode(crosscoder.encode(stacked)), torch.zeros_like(stacked), mean.expand_as(stacked)]
        parts = [layout.split(activation) for activation in spliced]
        for m, model in enumerate(pair.members):
            sums[m] += _sums(model, some, wanted, hook_name, [of_model[m] for of_model in parts])
    return pd.DataFrame([_row(per_token) for per_token in (sums / n_scored).unbind()], index=list(layout.names)).assign(
        n_tokens=n_scored
    )


def _predicting(tokens: Tensor, scored: Tensor | None) -> Bool[Tensor, "prompt pos"]:
    """The positions that predict a scored token."""
    if scored is None:
        scored = torch.ones_like(tokens, dtype=torch.bool)
    if scored.shape != tokens.shape:
        raise ValueError(f"scored has shape {tuple(scored.shape)}, but tokens {tuple(tokens.shape)}: mark every token.")
    predicts = torch.zeros_like(scored)
    predicts[:, :-1] = scored[:, 1:]
    if not bool(predicts.any()):
        raise ValueError("There is nothing to score: no token that another one precedes is marked.")
    return predicts.cpu()


def _sums(
    model: torch.nn.Module, tokens: Tensor, wanted: Tensor, hook_name: str, spliced: list[Tensor]
) -> Float[Tensor, "activation 2"]:
    """Cross-entropy and KL, summed over the wanted positions: the model's own, then with each activation."""
    device = device_of(model)
    following = tokens.roll(-1, dims=1)[wanted].to(device)

    def log_probs(run: Callable[..., Tensor]) -> Float[Tensor, "selected d_vocab"]:
        return run(tokens.to(device), return_type="logits")[wanted.to(device)].float().log_softmax(dim=-1)

    own = log_probs(model)
    sums: list[Tensor] = []
    for activation in (None, *spliced):
        if activation is None:
            new = own
        else:
            with replaced_activations(model, {hook_name: activation.to(device, next(model.parameters()).dtype)}):
                new = log_probs(model)
        entropy = -new.gather(-1, following[:, None]).double().sum()
        sums.append(torch.stack([entropy, (own.exp() * (own - new)).double().sum()]))
    return torch.stack(sums).cpu()


def _row(per_token: Float[Tensor, "activation 2"]) -> dict[str, float]:
    (ce, _), *costs = per_token.tolist()
    row = {"ce_nats": ce}
    row |= {f"ce_nats_{name}": cost[0] for name, cost in zip(_SPLICED, costs, strict=True)}
    row |= {f"kl_nats_{name}": cost[1] for name, cost in zip(_SPLICED, costs, strict=True)}
    for ablation in ("zero", "mean"):
        row[f"ce_recovered_{ablation}"] = _recovered(
            row["ce_nats_reconstruction"] - ce, row[f"ce_nats_{ablation}"] - ce
        )
        row[f"kl_recovered_{ablation}"] = _recovered(row["kl_nats_reconstruction"], row[f"kl_nats_{ablation}"])
    return row


def _recovered(cost: float, cost_of_ablation: float) -> float:
    return float("nan") if cost_of_ablation == 0 else 1 - cost / cost_of_ablation
