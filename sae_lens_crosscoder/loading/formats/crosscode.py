"""Convert crosscoders of crosscode (oli-clive-griffin) and of Neel Nanda's script.

    W_enc (model, d, latent)   W_dec (latent, model, d)   b_enc (latent,)   b_dec (model, d)

crosscode has an axis of hooks after that of models, other names for the same tensors, leaves out biases that are off,
and may hold the logarithm of JumpReLU's thresholds. Scores have the norm n_base + n_chat; thresholds are on latents.
"""

from typing import Any

import torch
from torch import Tensor

from sae_lens_crosscoder.crosscoders.canonical import Weights, fold_activation_scales
from sae_lens_crosscoder.loading.formats.facts import hook_of, models_of, of_paper, order_of
from sae_lens_crosscoder.loading.formats.foreign import (
    ForeignCrosscoder,
    ForeignFile,
    ForeignFormat,
    ForeignOptions,
    Source,
)
from sae_lens_crosscoder.loading.formats.validation import (
    scalar,
    theta_of,
    validate_agreement,
    validate_pair,
    validate_shapes,
    validate_tensors,
)
from sae_lens_crosscoder.stacking import StackedLayout

TENSORS = ("W_enc", "W_dec", "b_enc", "b_dec")
HOOK = "blocks.14.hook_resid_pre"
LOG_THRESHOLD = "activation_fn.log_threshold"
# By the order of their axes: X crosscoding dimensions (M models, P hookpoints, L layers), D width, L or H latents.
ALIASES = {
    "_W_enc_XiDiL": "W_enc",
    "_W_dec_LXoDo": "W_dec",
    "b_enc_L": "b_enc",
    "_b_dec_XoDo": "b_dec",
    "W_enc_XDH": "W_enc",
    "W_dec_HXD": "W_dec",
    "b_enc_H": "b_enc",
    "b_dec_XD": "b_dec",
    "_activation_fn.log_threshold_L": LOG_THRESHOLD,
    "activation_fn.log_threshold_L": LOG_THRESHOLD,
    "activation_fn.log_threshold_H": LOG_THRESHOLD,
}
FOLDED = ("is_folded", "folded_scaling_factors_in_Xi", "folded_scaling_factors_out_Xo")
_HOOK_KEYS = ("hook_point", "hookpoint", "hook_name")


def convert_crosscode(file: ForeignFile, options: ForeignOptions) -> ForeignCrosscoder:
    """Convert a file whose scales, if there were any, were folded in before saving."""
    renamed = {ALIASES.get(name, name): tensor for name, tensor in file.tensors.items()}
    if len(renamed) < len(file.tensors):
        raise ValueError(f"{file.path} holds one tensor under two names: it mixes two versions of the layout.")
    W_dec = renamed.get("W_dec")
    if W_dec is not None and W_dec.ndim > 2:
        # A crosscoder without biases leaves them out, and its config says so.
        missing = {"b_enc": W_dec.new_zeros(len(W_dec)), "b_dec": torch.zeros_like(W_dec[0])}
        for name, key in (("b_enc", "use_encoder_bias"), ("b_dec", "use_decoder_bias")):
            if file.settings.get(key) is False and name not in renamed:
                renamed[name] = missing[name]
    return convert_stacked(ForeignFile(file.path, renamed, file.settings), options, "crosscode", None, "BOS")


def convert_stacked(
    file: ForeignFile,
    options: ForeignOptions,
    format: ForeignFormat,
    default_scales: tuple[float, float] | None,
    dropped_tokens: str,
) -> ForeignCrosscoder:
    """Convert the tensors of this layout.

    Args:
        default_scales: factors of the activations that the weights expect, where the options give none.
    """
    assumptions: list[str] = []
    n_models, n_hooks, layout, weights = _weights(file)
    theta = theta_of(file, _thresholds(file, len(weights.b_enc)), options, assumptions)
    shared: dict[str, Any] = {"format": format, "layout": layout, "theta": theta, "assumptions": assumptions}
    if theta is not None:
        shared["score_norm"] = "none"
    elif not _says_relu(file):
        assumptions.append("latents are ReLU, with no threshold")
    scales = _folded_scales(file, (n_models, n_hooks))
    if scales is not None:
        if options.activation_scales is not None:
            raise ValueError(f"{file.path} holds its activation scales: leave activation_scales out.")
        weights = fold_activation_scales(weights, layout, 1 / torch.tensor(scales, dtype=torch.float64))
    elif options.activation_scales is not None or default_scales is not None:
        scales = options.activation_scales or default_scales
    if options.activation_scales is None and (scales is None or scales is default_scales):
        unit = "raw" if scales is None else f"multiplied by {scales[0]:g} (base) and {scales[1]:g} (chat)"
        assumptions.append(f"the weights expect activations that are {unit}")
    if n_hooks > 1 or n_models != 2:
        sources = _sources(file, n_models, n_hooks)
        return ForeignCrosscoder(**shared, weights=weights, scales=scales, sources=sources, n_hooks=n_hooks)
    validate_pair(file, n_models)
    order = order_of(file, options)
    return ForeignCrosscoder(
        **shared,
        weights=weights,
        scales=scales,
        hook_name=hook_of(file, layout, HOOK, *_HOOK_KEYS),
        model_names=models_of(file, layout, order.value),
        model_order=order,
        dropped_tokens=of_paper(layout, dropped_tokens),
    )


def _says_relu(file: ForeignFile) -> bool:
    name = file.settings.get("activation_fn.classname", file.settings.get("activation_fn"))
    if name is not None and str(name).lower().removesuffix("activation") != "relu":
        selection = file.settings.selection()
        if selection is None:  # or the caller allowed it
            raise ValueError(
                f"The config beside {file.path} names the activation {name!s:.80}; only ReLU, JumpReLU and TopK can be "
                "converted."
            )
    return name is not None


def _weights(file: ForeignFile) -> tuple[int, int, StackedLayout, Weights]:
    """Return the numbers of models and of hooks, the layout and the stacked weights."""
    validate_tensors(file, TENSORS, (LOG_THRESHOLD, *FOLDED))
    W_enc, W_dec, b_enc, b_dec = (file.tensors[name] for name in TENSORS)
    if W_enc.ndim not in (3, 4):
        raise ValueError(
            f"{file.path}: W_enc has shape {tuple(W_enc.shape)}, expected (model, d, latent) or (model, hook, d, "
            "latent). SAELens may load it, as an SAE of one activation."
        )
    n_models, *hooks, width, d_sae = W_enc.shape
    validate_shapes(
        file,
        {
            "W_dec": (W_dec, (d_sae, n_models, *hooks, width)),
            "b_enc": (b_enc, (d_sae,)),
            "b_dec": (b_dec, (n_models, *hooks, width)),
        },
    )
    n_hooks = hooks[0] if hooks else 1
    expected = {"n_models": n_models, "n_hookpoints": n_hooks, "d_model": width, "n_latents": d_sae}
    validate_agreement(file, {**expected, "d_in": width, "dict_size": d_sae})
    layout = StackedLayout((width,) * (n_models * n_hooks))
    stacked_encoder = W_enc.reshape(layout.d_in, d_sae)
    return n_models, n_hooks, layout, Weights(stacked_encoder, b_enc, W_dec.flatten(1), b_dec.flatten())


def _thresholds(file: ForeignFile, d_sae: int) -> Tensor | None:
    logarithm = file.tensors.get(LOG_THRESHOLD)
    if logarithm is None:
        return None
    validate_shapes(file, {LOG_THRESHOLD: (logarithm, (d_sae,))})
    return logarithm.exp()


def _folded_scales(file: ForeignFile, shape: tuple[int, int]) -> tuple[float, ...] | None:
    """Return the factors that crosscode has folded into the weights, one per part of the stack; None if it has not."""
    if not scalar(file, "is_folded", default=0.0):
        return None
    inner, outer = (file.tensors.get(name) for name in FOLDED[1:])
    if inner is None or outer is None or inner.shape != shape or not torch.equal(inner, outer):
        raise ValueError(
            f"{file.path} was folded with scales that are missing, or that differ between encoder and decoder: it is "
            "no crosscoder of the activations that it reads."
        )
    return tuple(inner.flatten().tolist())


def _sources(file: ForeignFile, n_models: int, n_hooks: int) -> tuple[Source, ...]:
    """Name every part of the stack, models first."""
    if n_models * n_hooks == 1:
        raise ValueError(f"{file.path} (crosscode) reads one hook of one model: it is an SAE, and no crosscoder.")
    hooks = _names(file, "hooks", n_hooks, ("hookpoints", "hook_points", "hook_names", *_HOOK_KEYS))
    models = _names(file, "models", n_models, ("model_names", "models", "model_name"))
    return tuple((model, hook) for model in models for hook in hooks)


def _names(file: ForeignFile, what: str, n: int, keys: tuple[str, ...]) -> tuple[str | None, ...]:
    for key in keys:
        value = file.settings.get(key) if key in file.settings else None
        names = (file.settings.text(key),) if isinstance(value, str) else file.settings.texts(key)
        if names is None:
            continue
        if len(names) != n:
            raise ValueError(f"The config beside {file.path} names {len(names)} {what}, but the tensors have {n}.")
        return names
    return (None,) * n
