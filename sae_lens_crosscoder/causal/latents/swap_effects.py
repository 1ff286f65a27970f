"""The effect of using a latent as the other model does: its code swapped, and the KL between the models."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.activations.eval_data import EvalData
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, validate_inference
from sae_lens_crosscoder.crosscoders.origin import validate_pair
from sae_lens_crosscoder.crosscoders.swap_readout import SwapReadout
from sae_lens_crosscoder.crosscoders.two_models import TwoModels
from sae_lens_crosscoder.models.hook_access import device_of, replaced_activations
from sae_lens_crosscoder.models.kl import kl_divergence, log_probs
from sae_lens_crosscoder.models.outputs import over_common_ids
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.resampling import bootstrap_counts, quantiles
from sae_lens_crosscoder.stacking import hook_of_model


@validate_arguments
@torch.no_grad()
def swap_effects(
    crosscoder: InferenceCrosscoder,
    data: EvalData,
    latent_ids: Sequence[int] | pd.Index,
    *,
    models: Sequence[str] | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Let each model use a latent as the other one does, and measure whether that brings the models together.

    The codes are those of one model alone, as `latent_use` reads them. In each model, the latent's part
    `f_model decoder_model` is replaced by `f_other decoder_model`, at every token of the data's mask. A latent that is
    only *read* differently, and changes nothing behind the hook, leaves the KL as it is.

    Args:
        data: held-out tokens with the pair. Means of the readout are those of these tokens.
        latent_ids: the latents, such as those that `latent_use` calls `more_in_...`. Each costs a pass of both models.
        models: names of the two models, as in `latent_use`; needed for more than two.
        n_resamples: of the contexts, for the intervals.

    Returns:
        A row per latent. For each model, `code_<model>` is the mean code of that model alone. `kl_before_<model>` is
        `KL(p_other || p_model)` in nats per token, the mean over the mask, `kl_after_<model>` the same with the code
        swapped in that model, and `kl_change_<model>` their difference with a 95 % interval (`_low`, `_high`) by a
        bootstrap over contexts: below 0, use of the latent is a part of what the models differ in.
        `kl_moved_<model>` is `KL(p_model || p_swapped)`, the size of the effect wherever it leads.

    Raises:
        ValueError: for data without a pair, a crosscoder of several hooks or of more than two models without `models`,
            models of different widths or tokenizers, or latents that are none, repeat or do not exist.
    """
    crosscoder = validate_inference(crosscoder, "swap_effects")
    two = TwoModels.of(crosscoder, models, "swap_effects")
    hook_name, ids = _validated(crosscoder, data, latent_ids)
    assert data.pair is not None  # as just checked
    run = _Run(two, data.pair, hook_name, ids)
    tokens, token_mask = data.contexts
    rows = [(tokens[part], token_mask[part]) for part in torch.arange(len(tokens)).split(data.batch_size)]
    readout = run.readout(rows)
    sums = _Sums.zeros(len(tokens), len(ids))
    first = 0
    for batch, mask in tqdm(rows, desc="Swapping", unit="batch", leave=False):
        run.add(sums, slice(first, first + len(batch)), batch, mask, readout)
        first += len(batch)
    return _table(sums, ids, two.names, n_resamples, seed)


@dataclass(frozen=True)
class _Sums:
    """Sums over the tokens of each context, float64; the first axis of KL is the edited model."""

    n_tokens: Float[Tensor, " context"]
    before: Float[Tensor, "model context"]
    after: Float[Tensor, "model latent context"]
    moved: Float[Tensor, "model latent context"]
    code: Float[Tensor, "model latent context"]

    @classmethod
    def zeros(cls, n_contexts: int, n_latents: int) -> "_Sums":
        def of(*shape: int) -> Tensor:
            return torch.zeros(*shape, n_contexts, dtype=torch.float64)

        return cls(of(), of(2), of(2, n_latents), of(2, n_latents), of(2, n_latents))


@dataclass(frozen=True)
class _Run:
    two: TwoModels
    pair: HookedModelPair
    hook_name: str
    ids: list[int]

    def readout(self, rows: Sequence[tuple[Tensor, Tensor]]) -> SwapReadout:
        """The swap readout, centred on the mean over the masked tokens."""
        crosscoder, n_tokens = self.two.crosscoder, 0
        total = torch.zeros(crosscoder.layout.d_in, dtype=torch.float64)
        code = torch.zeros(crosscoder.cfg.d_sae, dtype=torch.float64)
        for batch, mask in rows:
            stacked = self.pair.activations(batch, self.hook_name)
            used = stacked[self._used(stacked, mask)]
            total, n_tokens = total + used.double().sum(dim=0).cpu(), n_tokens + len(used)
            code += crosscoder.encode(used.to(crosscoder.W_dec)).double().sum(dim=0).cpu()
        if n_tokens == 0:
            raise ValueError("No token can be swapped: all tokens of the mask dominate (see EvalData.max_norm_ratio).")
        device = crosscoder.W_dec.device
        means, mean_code = (total / n_tokens)[None].to(device), (code / n_tokens).to(device)
        return SwapReadout(crosscoder, means, mean_code, self.two.places)

    def _used(self, stacked: Float[Tensor, "batch pos d_in"], mask: Bool[Tensor, "batch pos"]) -> Tensor:
        """Masked tokens that do not dominate, where latents are read and edited."""
        return mask.to(stacked.device) & self.two.crosscoder.trained_limits.ordinary(stacked).to(stacked.device)

    def add(
        self,
        sums: _Sums,
        contexts: slice,
        batch: Int[Tensor, "batch pos"],
        mask: Bool[Tensor, "batch pos"],
        readout: SwapReadout,
    ) -> None:
        """Add a batch of contexts."""
        stacked = self.pair.activations(batch, self.hook_name)
        used, parts = self._used(stacked, mask), self.two.split(stacked)
        logs = [log_probs(each) for each in over_common_ids(*(self._logits(m, batch, None) for m in range(2)))]
        codes = self._codes(stacked, used, readout)
        sums.n_tokens[contexts] = mask.sum(dim=1).double().cpu()
        for m in range(2):
            sums.code[m, :, contexts] = codes[m].double().sum(dim=1).T.cpu()
            sums.before[m, contexts] = _kl_sum(logs[1 - m], logs[m], mask)
            for j, edit in enumerate(self._edits(m, codes)):
                if not edit.any():  # nothing is swapped, so the pass would be the one above
                    sums.after[m, j, contexts] = sums.before[m, contexts]
                    continue
                swapped = self._logits(m, batch, parts[m] + edit.to(parts[m]))
                log_swapped = log_probs(swapped[..., : logs[m].shape[-1]])
                sums.after[m, j, contexts] = _kl_sum(logs[1 - m], log_swapped, mask)
                sums.moved[m, j, contexts] = _kl_sum(logs[m], log_swapped, mask)

    def _codes(self, stacked: Tensor, used: Tensor, readout: SwapReadout) -> list[Float[Tensor, "batch pos latent"]]:
        """Codes of each model alone; 0 at tokens that are not used."""
        W_dec = self.two.crosscoder.W_dec
        codes = [W_dec.new_zeros(*used.shape, len(self.ids)) for _ in range(2)]
        if used.any():
            read = stacked[used].to(W_dec)
            for code, alone in zip(codes, readout.alone(read, self.two.crosscoder.encode(read)), strict=True):
                code[used.to(code.device)] = alone.to_dense()[:, self.ids]
        return codes

    def _edits(self, m: int, codes: Sequence[Tensor]) -> Iterator[Float[Tensor, "batch pos d_model"]]:
        """What the swap of each latent adds to model m's activation."""
        change = codes[1 - m] - codes[m]
        for j, latent in enumerate(self.ids):
            yield change[..., j, None] * self.two.decoders[m][latent]

    def _logits(self, m: int, tokens: Tensor, activation: Tensor | None) -> Float[Tensor, "batch pos _"]:
        """Logits of one of the two models, with its activation at its hook replaced unless it is None."""
        place = self.two.places[m]
        model: Any = self.pair.members[place]
        values = {} if activation is None else {hook_of_model(self.hook_name, place): activation.to(device_of(model))}
        with replaced_activations(model, values):
            return model(tokens.to(device_of(model)), return_type="logits").cpu()


def _kl_sum(log_p: Tensor, log_q: Tensor, mask: Bool[Tensor, "batch pos"]) -> Float[Tensor, " batch"]:
    """KL(p || q) summed over the masked tokens of each context."""
    return (kl_divergence(log_p, log_q).double() * mask.to(log_p.device)).sum(dim=1)


def _validated(
    crosscoder: InferenceCrosscoder, data: EvalData, latent_ids: Sequence[int] | pd.Index
) -> tuple[str, list[int]]:
    """The hook, and the latents."""
    layout = crosscoder.layout
    if not layout.same_width:
        raise ValueError(
            f"swap_effects reads each model in the others' places, but the crosscoder's sources have widths "
            f"{layout.d_models}. Use a crosscoder of models of one width."
        )
    if data.pair is None:
        raise ValueError("swap_effects runs the models. Pass EvalData with pair and tokens.")
    hook_name = validate_pair(crosscoder, data.pair)
    data.pair.validate_one_tokenizer("swap_effects")
    ids, d_sae = [int(latent) for latent in latent_ids], crosscoder.cfg.d_sae
    if not ids or len(set(ids)) < len(ids) or not all(0 <= latent < d_sae for latent in ids):
        raise ValueError(f"latent_ids={ids!s:.80} must be different latents, from 0 to {d_sae - 1}, and at least one.")
    return hook_name, ids


def _table(sums: _Sums, ids: Sequence[int], names: Sequence[str], n_resamples: int, seed: int) -> pd.DataFrame:
    counts = bootstrap_counts(len(sums.n_tokens), n_resamples, seed)
    n_tokens, n_drawn = sums.n_tokens.sum(), counts @ sums.n_tokens
    columns: dict[str, Any] = {}
    for m, name in enumerate(names):
        change = sums.after[m] - sums.before[m]
        low, high = quantiles((change @ counts.T) / n_drawn)
        columns |= {
            f"code_{name}": (sums.code[m].sum(dim=-1) / n_tokens).tolist(),
            f"kl_before_{name}": float(sums.before[m].sum() / n_tokens),
            f"kl_after_{name}": (sums.after[m].sum(dim=-1) / n_tokens).tolist(),
            f"kl_change_{name}": (change.sum(dim=-1) / n_tokens).tolist(),
            f"kl_change_{name}_low": low.tolist(),
            f"kl_change_{name}_high": high.tolist(),
            f"kl_moved_{name}": (sums.moved[m].sum(dim=-1) / n_tokens).tolist(),
        }
    return pd.DataFrame(columns, index=pd.Index(ids, name="latent"))
