"""The loss of each model with its activation replaced by the crosscoder's reconstruction."""

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.activations.harvest import validate_tokens
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, validate_inference
from sae_lens_crosscoder.crosscoders.origin import validate_pair
from sae_lens_crosscoder.data.token_mask import right_padding, validate_padding
from sae_lens_crosscoder.models.hook_access import device_of, replaced_activations
from sae_lens_crosscoder.models.kl import kl_terms, log_probs
from sae_lens_crosscoder.models.pair import HookedModelPair

_SPLICED = ("reconstruction", "zero", "mean")


@validate_arguments
@torch.no_grad()
def splice_evals(
    crosscoder: InferenceCrosscoder,
    pair: HookedModelPair,
    tokens: Int[Tensor, "prompt pos"],
    scored: Bool[Tensor, "prompt pos"] | None = None,
    *,
    batch_size: int = 8,
) -> pd.DataFrame:
    """Measure each model on its own reconstructed activation, against a zero and a mean activation.

    The activation is replaced at every position but those of tokens that dominate, after which nothing is scored.
    SAELens's `run_evals` takes the pair too, but averages over models and
    compares with zero only.

    Args:
        tokens: held-out prompts, padded on the right if at all.
        scored: mask of the tokens whose prediction counts, such as `chat_tokens(...).response`; None means all but the
            first and padding.

    Returns:
        A row per model. `ce_nats` is the unpatched model's cross-entropy per token, `ce_nats_reconstruction`, `_zero`
        and `_mean` that with a replaced activation, and `kl_nats_...` the KL from the unpatched model.
        `ce_recovered_zero` is the share of the loss under zero that the reconstruction recovers: 1 is all, 0 none; nan
        if zero costs nothing. `_recovered_mean` compares with the mean over all positions that predict a scored token.

    Raises:
        ValueError: for a pair the crosscoder was not trained on, tokens that are not (prompt, pos), or a mask that
            selects no prediction.
    """
    crosscoder = validate_inference(crosscoder, "splice_evals")
    hook_name = validate_pair(crosscoder, pair)
    pair.validate_one_tokenizer("splice_evals")
    validate_tokens(tokens)
    validate_padding(tokens, None, pair.tokenizer)
    predicts = _predicting(tokens, ~right_padding(tokens, pair.tokenizer) if scored is None else scored)
    layout, limits = crosscoder.layout, crosscoder.trained_limits
    batches = [rows for rows in torch.arange(len(tokens)).split(batch_size) if predicts[rows].any()]
    total = torch.zeros(layout.d_in, dtype=torch.float64)
    for rows in batches:
        stacked = pair.activations(tokens[rows], hook_name).cpu()
        predicts[rows] &= limits.ordinary(stacked)
        total += stacked[predicts[rows]].double().sum(dim=0)
    n_scored = int(predicts.sum())
    if n_scored == 0:
        raise ValueError("No prediction can be scored: every token that predicts a scored one dominates. Mark others.")
    mean = (total / n_scored).to(crosscoder.W_dec)
    sums = torch.zeros(layout.n_models, 1 + len(_SPLICED), 2, dtype=torch.float64)
    for rows in tqdm(batches, desc="Splicing", unit="batch", leave=False):
        batch, selected = tokens[rows], predicts[rows]
        stacked = pair.activations(batch, hook_name).to(crosscoder.W_dec)
        spliced = [crosscoder.decode(crosscoder.encode(stacked)), torch.zeros_like(stacked), mean.expand_as(stacked)]
        used = limits.ordinary(stacked)[..., None]
        parts = [layout.of_models.split(torch.where(used, activation, stacked)) for activation in spliced]
        for m, model in enumerate(pair.members):
            replaced = [layout.at_hooks(by_model[m], m, hook_name) for by_model in parts]
            sums[m] += _sums(model, batch, selected, replaced)
    rows = [_row(per_token) for per_token in (sums / n_scored).unbind()]
    return pd.DataFrame(rows, index=list(layout.of_models.names)).assign(n_tokens=n_scored)


def _predicting(tokens: Tensor, scored: Tensor) -> Bool[Tensor, "prompt pos"]:
    """The positions that predict a scored token."""
    if scored.shape != tokens.shape:
        raise ValueError(
            f"scored has shape {tuple(scored.shape)}, but tokens has shape {tuple(tokens.shape)}: mark every token."
        )
    predicts = torch.zeros_like(scored)
    predicts[:, :-1] = scored[:, 1:]
    if not bool(predicts.any()):
        raise ValueError("scored marks no token after the first, so no prediction can be scored: mark later tokens.")
    return predicts.cpu()


def _sums(
    model: torch.nn.Module, tokens: Tensor, selected: Tensor, spliced: list[dict[str, Tensor]]
) -> Float[Tensor, "activation 2"]:
    """Cross-entropy and KL summed over the selected positions: unpatched first, then with each activation."""
    device = device_of(model)
    targets = tokens.roll(-1, dims=1)[selected].to(device)

    def run() -> Float[Tensor, "selected d_vocab"]:
        return log_probs(model(tokens.to(device), return_type="logits")[selected.to(device)])

    unpatched = run()
    sums: list[Tensor] = []
    for activations in ({}, *spliced):
        values = {name: value.to(device, next(model.parameters()).dtype) for name, value in activations.items()}
        with replaced_activations(model, values):
            patched = run() if values else unpatched
        entropy = -patched.gather(-1, targets[:, None]).double().sum()
        sums.append(torch.stack([entropy, kl_terms(unpatched, patched).double().sum()]))
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


def _recovered(cost: float, ablation_cost: float) -> float:
    return float("nan") if ablation_cost == 0 else 1 - cost / ablation_cost
