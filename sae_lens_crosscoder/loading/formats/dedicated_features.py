"""Convert Dedicated Feature Crosscoders (DFC), in which some latents are confined to one model by construction.

    W_enc (model, d, latent)   W_dec (latent, model, d)   enc_mask (model, latent)   dec_mask (latent, model)

or the tensors of `dictionary_learning` with a `_partition_config`. In both, model A comes first and is the tuned model,
B is base: the reverse of this package's order. The first `n_a` latents belong to A, the next `n_b` to B. Files with
masks select the k largest latents of every token and hold no threshold.
"""

from dataclasses import replace

import torch
from torch import Tensor

from sae_lens_crosscoder.crosscoders.canonical import Weights
from sae_lens_crosscoder.loading.formats.dictionary_learning import MAIN_TENSORS, convert_dictionary_learning
from sae_lens_crosscoder.loading.formats.facts import models_of, order_of
from sae_lens_crosscoder.loading.formats.foreign import Fact, ForeignCrosscoder, ForeignFile, ForeignOptions
from sae_lens_crosscoder.loading.formats.validation import (
    theta_of,
    validate_agreement,
    validate_pair,
    validate_shapes,
    validate_tensors,
)
from sae_lens_crosscoder.stacking import StackedLayout

PARTITION = "_partition_config."
MASKS = ("enc_mask", "dec_mask")
_TENSORS = ("W_enc", "W_dec", "b_enc", "b_dec")


def convert_dedicated_features(file: ForeignFile, options: ForeignOptions) -> ForeignCrosscoder:
    """Convert a file; latents confined to base come first, those confined to chat behind them.

    Raises:
        ValueError: for masks that describe no such partition, weights or a config that contradict it, and a file
            without a threshold (without `theta` or `allow_relu`).
    """
    if any(name in file.tensors for name in MAIN_TENSORS):
        foreign, n_first, n_second = _of_dictionary_learning(file, options)
    else:
        foreign, n_first, n_second = _of_masks(file, options)
    return _base_first(foreign, n_first, n_second)


def _of_masks(file: ForeignFile, options: ForeignOptions) -> tuple[ForeignCrosscoder, int, int]:
    assumptions: list[str] = []
    validate_tensors(file, _TENSORS, MASKS)
    W_enc, W_dec, b_enc, b_dec = (file.tensors[name] for name in _TENSORS)
    if W_enc.ndim != 3:
        raise ValueError(f"{file.path}: W_enc has shape {tuple(W_enc.shape)}, expected (model, d, latent).")
    n_models, width, d_sae = W_enc.shape
    validate_pair(file, n_models)
    ones = torch.ones(2, d_sae)
    encoder_mask, decoder_mask = file.tensors.get("enc_mask", ones), file.tensors.get("dec_mask", ones.T)
    validate_shapes(
        file,
        {
            "W_dec": (W_dec, (d_sae, 2, width)),
            "b_enc": (b_enc, (d_sae,)),
            "b_dec": (b_dec, (2, width)),
            "enc_mask": (encoder_mask, (2, d_sae)),
            "dec_mask": (decoder_mask, (d_sae, 2)),
        },
    )
    n_first, n_second = _partition(file, encoder_mask.to(W_enc), decoder_mask.to(W_enc))
    validate_agreement(file, {"activation_dim": width, "dict_size": d_sae, "n_a": n_first, "n_b": n_second})
    encoder, decoder = W_enc * encoder_mask.to(W_enc)[:, None], W_dec * decoder_mask.to(W_dec)[..., None]
    if not (torch.equal(encoder, W_enc) and torch.equal(decoder, W_dec)):
        assumptions.append("weights that the masks forbid are not 0 in the file; they were set to 0")
    theta = theta_of(file, None, options, assumptions)
    if theta is not None:
        assumptions.append(f"the file selects the k largest latents of every token; theta={options.theta:g} stands in")
    order = order_of(file, options, "chat_base")
    layout = StackedLayout((width, width))
    foreign = ForeignCrosscoder(
        format="dedicated_features",
        weights=Weights(encoder.reshape(2 * width, d_sae), b_enc, decoder.flatten(1), b_dec.flatten()),
        layout=layout,
        hook_name=_hook(file),
        model_names=_stated(models_of(file, layout, order.value)),
        model_order=order,
        score_norm="none" if theta is not None else "sum",
        theta=theta,
        scales=options.activation_scales,
        assumptions=assumptions,
        details={"k": k} if type(k := file.settings.get("k")) is int else {},
    )
    return foreign, n_first, n_second


def _of_dictionary_learning(file: ForeignFile, options: ForeignOptions) -> tuple[ForeignCrosscoder, int, int]:
    foreign = convert_dictionary_learning(file, options, default_order="chat_base")
    d_sae = file.tensors[MAIN_TENSORS[2]].shape[1]
    if len(foreign.weights.b_enc) != d_sae:
        raise ValueError(f"{file.path} is a decoupled crosscoder with dedicated latents, and cannot be converted.")
    shares = [file.settings.get(f"{PARTITION}model_{name}_exclusive_pct") for name in "ab"]
    if not all(type(share) in (int, float) and 0 <= share <= 1 for share in shares):
        raise ValueError(
            f"{file.path}: _partition_config has the shares {shares!r:.80}, expected model_a_exclusive_pct and "
            "model_b_exclusive_pct, from 0 to 1."
        )
    validate_agreement(ForeignFile(file.path, {}, file.settings), {f"{PARTITION}dict_size": d_sae})
    n_first, n_second = (int(d_sae * share) for share in shares)
    of_first, of_second = slice(0, n_first), slice(n_first, n_first + n_second)
    halves = [foreign.layout.split(rows) for rows in (foreign.weights.W_dec, foreign.weights.W_enc.T)]
    if any(bool(first[of_second].any()) or bool(second[of_first].any()) for first, second in halves):
        raise ValueError(
            f"{file.path}: latents that _partition_config confines to one model have weights in the other. The file "
            "is damaged, or its partition is another."
        )
    facts = {"hook_name": _stated(foreign.hook_name), "model_names": _stated(foreign.model_names)}
    kept = {**facts, "dropped_tokens": _stated(foreign.dropped_tokens)}
    return replace(foreign, format="dedicated_features", **kept), n_first, n_second


def _base_first(foreign: ForeignCrosscoder, n_first: int, n_second: int) -> ForeignCrosscoder:
    """Order the confined latents as this package does; the others keep their places."""
    if foreign.model_order.value == "base_chat":
        return replace(foreign, n_exclusive=(n_first, n_second))
    ids = torch.arange(len(foreign.weights.b_enc))
    n = n_first + n_second
    ids = torch.cat([ids[n_first:n], ids[:n_first], ids[n:]])
    W_enc, b_enc, W_dec, b_dec = foreign.weights
    moved = Weights(W_enc[:, ids], b_enc[ids], W_dec[ids], b_dec)
    assumptions = list(foreign.assumptions)
    if n_first and n_second:
        assumptions.append(
            f"latents were reordered: those of base (in the file {n_first} to {n - 1}) come first, then those of chat "
            f"(in the file 0 to {n_first - 1}); the others keep their ids"
        )
    return replace(foreign, weights=moved, n_exclusive=(n_second, n_first), assumptions=assumptions)


def _partition(file: ForeignFile, encoder_mask: Tensor, decoder_mask: Tensor) -> tuple[int, int]:
    """Return the numbers of latents of the first and of the second model."""
    n_first, n_second = (int((encoder_mask[other] == 0).sum()) for other in (1, 0))
    expected = torch.ones_like(encoder_mask)
    expected[1, :n_first] = 0
    expected[0, n_first : n_first + n_second] = 0
    if not (torch.equal(encoder_mask, expected) and torch.equal(decoder_mask, expected.T)):
        raise ValueError(
            f"{file.path}: enc_mask and dec_mask must be 0 or 1, equal, and confine the first latents to the first "
            "model and the next to the second. The file is damaged, or its partition is another."
        )
    return n_first, n_second


def _hook(file: ForeignFile) -> Fact:
    name = file.settings.text("hook_name")
    layer = file.settings.get("layer")
    if name is not None or type(layer) is not int or layer < 0:
        return Fact(name, stated=name is not None)
    return Fact(f"blocks.{layer}.hook_resid_post", stated=True)


def _stated(fact: Fact) -> Fact:
    """Drop a setting that the paper's layout would assume."""
    return fact if fact.stated else Fact()
