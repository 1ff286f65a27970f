"""Convert the crosscoders of OpenMOSS's Llamascopium (before: lm-saes), over several hooks of one model.

    W_E (head, d, latent)   b_E (head, latent)   W_D (head, latent, d)   b_D (head, d)

A head is a hook of `hook_points`. All heads share the sum of their pre-activations; the activation function is taken
per head, on that sum times the head's decoder norm. With JumpReLU or TopK a latent may thus be on at one hook and off
at another. Inputs may be scaled by `sqrt(d) / dataset_average_activation_norm.{hook}`.
"""

import math

import torch
from torch import Tensor

from sae_lens_crosscoder.crosscoders.canonical import Weights
from sae_lens_crosscoder.loading.formats.foreign import ForeignCrosscoder, ForeignFile, ForeignOptions, split_gates
from sae_lens_crosscoder.loading.formats.validation import (
    scalar,
    theta_of,
    validate_agreement,
    validate_shapes,
    validate_tensors,
)
from sae_lens_crosscoder.stacking import StackedLayout

TENSORS = ("W_E", "b_E", "W_D", "b_D")
LOG_THRESHOLD = "activation_function.log_jumprelu_threshold"
NORM = "dataset_average_activation_norm."


def convert_llamascopium(file: ForeignFile, options: ForeignOptions) -> ForeignCrosscoder:
    """Convert a crosscoder; with a threshold, only with `split_gates`, as one latent per hook.

    Raises:
        ValueError: for another kind of dictionary, fewer than two hooks, inputs that are normalised token by token or
            batch by batch, and a threshold that is unknown or per hook, without the option that says what to do.
    """
    assumptions: list[str] = []
    hooks = _hooks(file)
    layout, weights = _weights(file, hooks)
    _validate_activation(file)
    theta = theta_of(file, _thresholds(file, len(weights.b_enc)), options, assumptions)
    if theta is not None:
        weights, theta = _split(file, weights, layout, theta, options, assumptions)
    model = file.settings.text("model_name")
    return ForeignCrosscoder(
        format="llamascopium",
        weights=weights,
        layout=layout,
        sources=tuple((model, hook) for hook in hooks),
        n_hooks=len(hooks),
        theta=theta,
        scales=_scales(file, hooks, layout, options),
        assumptions=assumptions,
    )


def _hooks(file: ForeignFile) -> tuple[str, ...]:
    kind = file.settings.get("sae_type", "crosscoder")
    if kind != "crosscoder":
        raise ValueError(f"{file.path} is a Llamascopium {kind!s:.40}, not a crosscoder, and cannot be converted.")
    hooks = file.settings.texts("hook_points")
    if hooks is None:
        raise ValueError(f"{file.path} (llamascopium) has no config.json with hook_points: download the whole folder.")
    if len(hooks) < 2:
        raise ValueError(f"{file.path} (llamascopium) reads {len(hooks)} hook of one model: it is no crosscoder.")
    return hooks


def _weights(file: ForeignFile, hooks: tuple[str, ...]) -> tuple[StackedLayout, Weights]:
    validate_tensors(
        file, TENSORS, (LOG_THRESHOLD, *(NORM + hook for hook in hooks)), tuple(NORM + hook for hook in hooks)
    )
    W_E, b_E, W_D, b_D = (file.tensors[name] for name in TENSORS)
    if W_E.ndim != 3:
        raise ValueError(f"{file.path}: W_E has shape {tuple(W_E.shape)}, expected (head, d, latent).")
    n_heads, width, d_sae = W_E.shape
    if n_heads != len(hooks):
        raise ValueError(f"{file.path} has {n_heads} heads, but the config beside it names {len(hooks)} hook_points.")
    shapes = {"b_E": (b_E, (n_heads, d_sae)), "W_D": (W_D, (n_heads, d_sae, width)), "b_D": (b_D, (n_heads, width))}
    validate_shapes(file, shapes)
    validate_agreement(file, {"d_model": width, "sparsity_include_decoder_norm": True, "use_decoder_bias": True})
    factor = file.settings.get("expansion_factor", d_sae / width)
    if type(factor) not in (int, float) or int(width * factor) != d_sae:
        raise ValueError(
            f"The config beside {file.path} has expansion_factor={factor!r:.80}, expected {d_sae / width:g}: one of "
            "the two belongs to another crosscoder."
        )
    layout = StackedLayout((width,) * n_heads)
    W_dec = layout.stack([*W_D])
    return layout, Weights(W_E.reshape(layout.d_in, d_sae), b_E.sum(dim=0), W_dec, b_D.flatten())


def _validate_activation(file: ForeignFile) -> None:
    name = file.settings.get("act_fn", "relu")
    if name not in ("relu", "jumprelu", "topk", "batchtopk") or (name != "jumprelu" and LOG_THRESHOLD in file.tensors):
        raise ValueError(
            f"The config beside {file.path} has act_fn={name!r:.80}, which does not fit the tensors, or is unknown: "
            "relu, jumprelu, topk and batchtopk can be converted."
        )


def _thresholds(file: ForeignFile, d_sae: int) -> Tensor | None:
    logarithm = file.tensors.get(LOG_THRESHOLD)
    if logarithm is None:
        return None
    validate_shapes(file, {LOG_THRESHOLD: (logarithm, (d_sae,))})
    return logarithm.exp()


def _split(
    file: ForeignFile,
    weights: Weights,
    layout: StackedLayout,
    theta: float | Tensor,
    options: ForeignOptions,
    assumptions: list[str],
) -> tuple[Weights, Tensor]:
    if not options.split_gates:
        raise ValueError(
            f"{file.path} (llamascopium) takes its threshold hook by hook, so a latent has no one activation. Pass "
            f"split_gates=True to load every latent as {layout.n_sources} that write one hook each, the same function."
        )
    d_sae = len(weights.b_enc)
    assumptions.append(
        f"every latent of the file became {layout.n_sources}: latent m {d_sae} + j is latent j as it writes hook m"
    )
    thresholds = torch.as_tensor(theta).to(weights.b_enc).expand(d_sae)
    return split_gates(weights, layout, [thresholds] * layout.n_sources)


def _scales(
    file: ForeignFile,
    hooks: tuple[str, ...],
    layout: StackedLayout,
    options: ForeignOptions,
) -> tuple[float, ...] | None:
    if options.activation_scales is not None:
        raise ValueError(f"{file.path} (llamascopium) states its scales: leave activation_scales out.")
    mode = file.settings.get("norm_activation", "dataset-wise")
    if mode == "inference":
        return None
    if mode != "dataset-wise":
        raise ValueError(
            f"{file.path} (llamascopium) normalises its inputs {mode!r:.40}, with a factor that depends on the token. "
            "A crosscoder here has one factor per hook, so it cannot be converted."
        )
    norms = [scalar(file, NORM + hook) for hook in hooks]
    if not all(0 < norm < math.inf for norm in norms):
        raise ValueError(
            f"{file.path} (llamascopium) has the average activation norms {norms!r:.80}, expected a positive number "
            "for every hook: the scale of its inputs is unknown."
        )
    width = layout.d_models[0]
    return tuple(math.sqrt(width) / norm for norm in norms)
