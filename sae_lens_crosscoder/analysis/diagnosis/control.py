"""A topic-matched control: how much of each latent a model has that was tuned on the same topics otherwise.

A fine-tune meets topics that the base model knows less well, and learns them along with the behaviour it is meant to
learn. A control model, tuned on the same topics without the behaviour, has the former and not the latter. Its presence
is measured as that of the base model is: by deviations within groups of tokens, on the same tokens.
"""

from collections.abc import Iterator

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.activations.eval_data import EvalData
from sae_lens_crosscoder.analysis.diagnosis.verdict import PRESENCE_LIMIT
from sae_lens_crosscoder.analysis.encoding import Encoded
from sae_lens_crosscoder.analysis.inputs import GivenActivations, HarvestedActivations
from sae_lens_crosscoder.analysis.latent_scaling.centred_scaling import MIN_OWN_BETA
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, hook_name_of
from sae_lens_crosscoder.crosscoders.sparse_step.kernels import gather_dot
from sae_lens_crosscoder.crosscoders.sparse_step.pairs import pairs_of
from sae_lens_crosscoder.data.token_mask import as_token_mask
from sae_lens_crosscoder.storage.accumulators import Accumulator

_SUFFIXES = {0: "_base_probe", 1: ""}


class ControlRows:
    """Activations of the control model on the tokens of the data, in their order.

    Args:
        control: the base model beside the control model, on the same tokens.
    """

    def __init__(self, crosscoder: InferenceCrosscoder, data: EvalData, control: EvalData) -> None:
        _validate_control(crosscoder, data, control)
        self._width = crosscoder.layout.d_models[-1]
        if control.activations is None:
            raw = HarvestedActivations(control, hook_name_of(crosscoder))
        else:
            raw = GivenActivations(control.activations)
        self.n_tokens = raw.n_tokens
        self._batches: Iterator[Tensor] = iter(raw.after(0))
        self._rest = torch.zeros(0, self._width)

    def take(self, n_tokens: int) -> Float[Tensor, "token d_model"]:
        """The control model's activations on the next tokens."""
        parts = [self._rest]
        while sum(map(len, parts)) < n_tokens:
            batch = next(self._batches, None)
            if batch is None:
                raise ValueError("control has fewer tokens than the data. Pass it on the same tokens and mask.")
            if batch.ndim != 2 or batch.shape[1] != 2 * self._width:
                raise ValueError(
                    f"The activations of control have shape {tuple(batch.shape)}, expected (token, {2 * self._width}): "
                    "base and control model side by side, as wide as the crosscoder's models."
                )
            parts.append(batch[:, self._width :].cpu())
        rows = torch.cat([part.to(parts[-1]) for part in parts])
        self._rest = rows[n_tokens:]
        return rows[:n_tokens]


class ControlSums(Accumulator):
    """Accumulates how much of each latent the control model has, beside the model whose decoder is the probe.

    Args:
        crosscoder: of a pair of models of one width.
        n_groups: number of token groups, within which deviations are measured.
    """

    buffers = ("_n", "_f1", "_dots", "_targets")

    def __init__(self, crosscoder: InferenceCrosscoder, n_groups: int) -> None:
        self._crosscoder = crosscoder
        d_sae, width, device = crosscoder.cfg.d_sae, crosscoder.layout.d_models[0], crosscoder.W_dec.device
        zeros = torch.zeros(n_groups, d_sae, dtype=torch.float64, device=device)
        self._n, self._f1 = zeros.new_zeros(n_groups), zeros
        self._dots = zeros.new_zeros(2, 2, d_sae)
        """sum f <d^probe, h>: (probe, its own model or control, d_sae)."""
        self._targets = zeros.new_zeros(3, n_groups, width)
        """Sums of the activations of base, chat and control, (3, group, d_model)."""

    @torch.no_grad()
    def add(self, part: Encoded, control: Float[Tensor, "token d_model"], groups: Int[Tensor, " token"]) -> None:
        """Add tokens, with the control model's activation and the group of each."""
        groups, control = groups.to(self._n.device), control.to(part.activations)
        pairs, values = pairs_of(part.feature_acts)
        f = values.double()
        self._n.index_add_(0, groups, torch.ones_like(groups, dtype=torch.float64))
        self._f1.view(-1).index_add_(0, groups[pairs.token] * pairs.d_sae + pairs.latent, f)
        models = (*self._crosscoder.layout.split(part.activations), control)
        for total, rows in zip(self._targets, models, strict=True):
            total.index_add_(0, groups, rows.double())
        for probe, decoder in enumerate(self._crosscoder.decoders):
            for place, rows in enumerate((models[probe], control)):
                dots = gather_dot(rows, decoder.detach().to(rows), pairs.token, pairs.latent)
                self._dots[probe, place].index_add_(0, pairs.latent, f * dots)

    def presence(self, probe: int) -> Float[Tensor, " d_sae"]:
        """Factor of the control model's activation along a decoder, over that of the decoder's own model."""
        own, control = (
            self._dots[probe, place] - self._of_means(self._targets[target], probe)
            for place, target in enumerate((probe, 2))
        )
        return control / own

    def _of_means(self, target: Float[Tensor, "group d_model"], probe: int) -> Float[Tensor, " d_sae"]:
        means = target / self._n.clamp(min=1)[:, None]
        return ((self._f1.T @ means) * self._crosscoder.decoders[probe].detach().double()).sum(dim=-1)


def with_control(latents: pd.DataFrame, sums: ControlSums) -> pd.DataFrame:
    """The table with the presence in the control model, and which one-sided latents the control pair has too."""
    columns = dict[str, pd.Series]()
    for probe, suffix in _SUFFIXES.items():
        presence = pd.Series(sums.presence(probe).cpu().numpy(), index=latents.index)
        columns[f"control_presence{suffix}"] = presence.where(latents[f"beta_centred{suffix}"] >= MIN_OWN_BETA)
    gained = latents["label"].eq("chat_only") & (columns["control_presence"] >= PRESENCE_LIMIT)
    lost = latents["label"].eq("base_only") & (columns["control_presence_base_probe"] < PRESENCE_LIMIT)
    return latents.assign(**columns, in_control=gained | lost)


def _validate_control(crosscoder: InferenceCrosscoder, data: EvalData, control: EvalData) -> None:
    layout = crosscoder.layout
    if not (layout.is_pair and layout.same_width):
        raise ValueError(f"control needs a crosscoder of two models of one width, not of widths {layout.d_models}.")
    if data.tokens is not None and control.tokens is not None:
        masks = [
            as_token_mask(each.tokens, each.token_mask).cpu() for each in (data, control) if each.tokens is not None
        ]
        if not torch.equal(data.tokens.cpu(), control.tokens.cpu()) or not torch.equal(*masks):
            raise ValueError(
                "control has other tokens or another token_mask than the data. Pass the same: "
                "EvalData(pair=control_pair, tokens=data.tokens, token_mask=data.token_mask)."
            )
    if control.pair is not None:
        control.pair.validate_two("control")
        widths = control.pair.layout_at(hook_name_of(crosscoder)).d_models
        if widths != layout.d_models:
            raise ValueError(f"The models of control have widths {widths}, expected {layout.d_models} as in the pair.")
