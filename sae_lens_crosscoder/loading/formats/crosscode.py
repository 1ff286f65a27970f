"""Convert crosscoders of crosscode (oli-clive-griffin) and of Neel Nanda's script.

    W_enc (model, d, latent)   W_dec (latent, model, d)   b_enc (latent,)   b_dec (model, d)

crosscode has an axis of hooks after that of models. Latents are ReLU, with the norm n_base + n_chat.
"""

from torch import Tensor

from sae_lens_crosscoder.crosscoders.canonical import Weights
from sae_lens_crosscoder.loading.formats.foreign import (
    ForeignCrosscoder,
    ForeignFile,
    ForeignFormat,
    ForeignOptions,
    validate_pair,
    validate_shapes,
    validate_tensors,
)
from sae_lens_crosscoder.stacking import StackedLayout

TENSORS = ("W_enc", "W_dec", "b_enc", "b_dec")
HOOK = "blocks.14.hook_resid_pre"


def convert_crosscode(file: ForeignFile, options: ForeignOptions) -> ForeignCrosscoder:
    """Convert a file whose scales, if there were any, were folded in before saving."""
    return convert_stacked(file, options, "crosscode", None, "BOS")


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
    _validate_relu(file, options)
    assumptions = ["on the model axis, 0 is base and 1 is chat", "latents are ReLU, with no threshold"]
    layout, weights = _weights(file)
    scales = options.activation_scales or default_scales
    if options.activation_scales is None:
        unit = "raw" if scales is None else f"multiplied by {scales[0]:g} (base) and {scales[1]:g} (chat)"
        assumptions.append(f"the weights expect activations that are {unit}")
    return ForeignCrosscoder(
        format=format,
        weights=weights,
        layout=layout,
        hook_name=_hook_name(file),
        dropped_tokens=dropped_tokens,
        scales=scales,
        assumptions=assumptions,
        details={},
    )


def _hook_name(file: ForeignFile) -> str:
    name = file.settings.get("hook_point", HOOK)
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) < 200:
        raise ValueError(f"The config beside {file.path} has hook_point={name!r:.80}, expected the name of a hook.")
    return name


def _validate_relu(file: ForeignFile, options: ForeignOptions) -> None:
    if options.theta is not None:
        raise ValueError(f"theta={options.theta} does not apply to {file.path}: a ReLU crosscoder has no threshold.")
    activation = file.settings.get("activation_fn")
    name = activation.get("classname") if isinstance(activation, dict) else activation
    if name is not None and str(name).lower().removesuffix("activation") != "relu":
        raise ValueError(
            f"The config beside {file.path} names the activation {name!s:.80}; only ReLU can be converted."
        )


def _weights(file: ForeignFile) -> tuple[StackedLayout, Weights]:
    validate_tensors(file, TENSORS)
    W_enc, W_dec, b_enc, b_dec = (file.tensors[name] for name in TENSORS)
    if W_enc.ndim not in (3, 4):
        raise ValueError(
            f"{file.path}: W_enc has shape {tuple(W_enc.shape)}, expected (model, d, latent) or (model, hook, d, "
            "latent). SAELens may load it, as an SAE of one activation."
        )
    n_models, *hooks, width, d_sae = W_enc.shape
    validate_pair(file, n_models)
    if hooks not in ([], [1]):
        raise ValueError(f"{file.path} reads {hooks[0]} hooks at once, expected one.")
    validate_shapes(
        file,
        {
            "W_dec": (tuple(W_dec.shape), (d_sae, n_models, *hooks, width)),
            "b_enc": (tuple(b_enc.shape), (d_sae,)),
            "b_dec": (tuple(b_dec.shape), (n_models, *hooks, width)),
        },
    )
    layout = StackedLayout((width,) * n_models)

    def stack(tensor: Tensor) -> Tensor:
        """Stack (..., model, d) on the last axis."""
        return layout.stack(tensor.unbind(dim=-2))

    if hooks:
        W_enc, W_dec, b_dec = W_enc.squeeze(1), W_dec.squeeze(2), b_dec.squeeze(1)
    return layout, Weights(stack(W_enc.permute(2, 0, 1)).T, b_enc, stack(W_dec), stack(b_dec))
