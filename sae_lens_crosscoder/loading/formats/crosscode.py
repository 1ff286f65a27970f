"""Crosscoders in the layout of Neel Nanda's script, of Kissane et al. and of crosscode (oli-clive-griffin).

    W_enc (model, d, latent)   W_dec (latent, model, d)   b_enc (latent,)   b_dec (model, d)

crosscode has one more axis, of hooks, behind that of models. ReLU, and the norm n_base + n_chat.
"""

from torch import Tensor

from sae_lens_crosscoder.crosscoders.canonical import Weights
from sae_lens_crosscoder.loading.formats.foreign import (
    ForeignCrosscoder,
    ForeignFile,
    ForeignFormat,
    ForeignOptions,
    require_pair,
    require_shapes,
    require_tensors,
)
from sae_lens_crosscoder.stacking import StackedLayout

TENSORS = ("W_enc", "W_dec", "b_enc", "b_dec")
HOOK = "blocks.14.hook_resid_pre"
KISSANE_SCALES = (0.2758961493232058, 0.24422852496546169)
"""sqrt(d) / mean |h^m|, of base and chat. The file does not hold them; public copies of the authors' notebook do."""


def read_kissane(file: ForeignFile, options: ForeignOptions) -> ForeignCrosscoder:
    """Kissane et al.'s crosscoder of Gemma 2 2B, whose weights expect scaled activations.

    With the default scales it takes raw activations, and `delta_norm` is that of the file's own norms, which give the
    published 265 / 14,652 / 98 / 1,369 latents per class; `delta_norm_raw` is that of raw activations.
    """
    return _read(file, options, "kissane", KISSANE_SCALES, "BOS (and no chat template was used)")


def read_crosscode(file: ForeignFile, options: ForeignOptions) -> ForeignCrosscoder:
    """A crosscoder of crosscode, or of Neel Nanda's script; scales were folded in before saving, if there were any."""
    return _read(file, options, "crosscode", None, "BOS")


def _read(
    file: ForeignFile,
    options: ForeignOptions,
    format: ForeignFormat,
    default_scales: tuple[float, float] | None,
    dropped_tokens: str,
) -> ForeignCrosscoder:
    _require_relu(file, options)
    assumptions = ["on the model axis, 0 is base and 1 is chat", "latents are ReLU, with no threshold"]
    layout, weights = _weights(file)
    scales = options.activation_scales or default_scales
    if options.activation_scales is None:
        of = "are raw" if scales is None else f"were multiplied by {scales[0]:g} (base) and {scales[1]:g} (chat)"
        assumptions.append(f"the activations that the weights expect {of}")
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
        raise ValueError(f"The config beside {file.path} says hook_point={name!r:.80}, which is no hook's name.")
    return name


def _require_relu(file: ForeignFile, options: ForeignOptions) -> None:
    if options.theta is not None:
        raise ValueError(f"{file.path} is a ReLU crosscoder, for which theta={options.theta} means nothing.")
    activation = file.settings.get("activation_fn")
    name = activation.get("classname") if isinstance(activation, dict) else activation
    if name is not None and str(name).lower().removesuffix("activation") != "relu":
        raise ValueError(
            f"The config beside {file.path} names the activation {name!s:.80}: only ReLU can be converted."
        )


def _weights(file: ForeignFile) -> tuple[StackedLayout, Weights]:
    require_tensors(file, TENSORS)
    W_enc, W_dec, b_enc, b_dec = (file.tensors[name] for name in TENSORS)
    if W_enc.ndim not in (3, 4):
        raise ValueError(
            f"{file.path}: W_enc has shape {tuple(W_enc.shape)}; a crosscoder's is (model, d, latent), or (model, "
            "hook, d, latent). This is an SAE of one activation, which SAELens itself may read."
        )
    n_models, *hooks, width, d_sae = W_enc.shape
    require_pair(file, n_models)
    if hooks not in ([], [1]):
        raise ValueError(f"{file.path} reads {hooks[0]} hooks at once: a pair of models is compared at one.")
    require_shapes(
        file,
        {
            "W_dec": (tuple(W_dec.shape), (d_sae, n_models, *hooks, width)),
            "b_enc": (tuple(b_enc.shape), (d_sae,)),
            "b_dec": (tuple(b_dec.shape), (n_models, *hooks, width)),
        },
    )
    layout = StackedLayout((width,) * n_models)

    def stack(tensor: Tensor) -> Tensor:
        """From (..., model, d) to the stacked axis."""
        return layout.stack(tensor.unbind(dim=-2))

    if hooks:
        W_enc, W_dec, b_dec = W_enc.squeeze(1), W_dec.squeeze(2), b_dec.squeeze(1)
    return layout, Weights(stack(W_enc.permute(2, 0, 1)).T, b_enc, stack(W_dec), stack(b_dec))
