"""Convert the crosscoders of Gemma Scope 2: four layers of one model, weakly causal, in one weights file per layer.

File i, `params_layer_{i}.safetensors`, holds the latents that read layer i:

    w_enc (d, n)   b_enc (n,)   threshold (n,)   w_dec (n, layer, d)   b_dec (d,)

A latent writes its layer and later ones; the weights into earlier layers are read as they are. Latents are JumpReLU,
with thresholds on pre-activations. Activations are read raw.
"""

import re
from typing import Any

import torch
from torch import Tensor

from sae_lens_crosscoder.crosscoders.canonical import Weights
from sae_lens_crosscoder.loading.formats.foreign import ForeignCrosscoder, ForeignFile, ForeignOptions, Source
from sae_lens_crosscoder.loading.formats.validation import validate_agreement, validate_shapes, validate_tensors
from sae_lens_crosscoder.stacking import StackedLayout

PART = re.compile(r"params_layer_(\d+)\.safetensors")
TENSORS = ("w_enc", "b_enc", "threshold", "w_dec", "b_dec")
_LAYERS = re.compile(r"model\.layers\.\{([\d, ]+)\}\.output")
_LAYER = re.compile(r"model\.layers\.(\d+)\.output")


def convert_gemma_scope_2(file: ForeignFile, options: ForeignOptions) -> ForeignCrosscoder:
    """Convert a folder of files; the stack holds the layers in the config's order.

    Raises:
        ValueError: for missing files, shapes that do not fit one another, a cross-layer transcoder or an affine
            connection, which a crosscoder has not, and a config that contradicts the weights.
    """
    _validate_kind(file, options)
    n_layers = 1 + max(_part_of(file, name) for name in file.tensors)
    names = [f"params_layer_{layer}.{name}" for layer in range(n_layers) for name in TENSORS]
    if any(name.endswith(".affine_skip_connection") for name in file.tensors):
        raise ValueError(f"{file.path} has an affine connection from input to output, so it is no crosscoder.")
    validate_tensors(file, tuple(names))
    layout, weights, thresholds = _stacked(file, n_layers)
    validate_agreement(file, {"width": len(thresholds)})
    sources = _sources(file, n_layers)
    if n_layers < 2:
        raise ValueError(f"{file.path} (gemma_scope_2) has {n_layers} layer, expected a crosscoder over at least 2.")
    return ForeignCrosscoder(
        format="gemma_scope_2",
        weights=weights,
        layout=layout,
        sources=sources,
        n_hooks=n_layers,
        score_norm="none",
        # Below 0 a threshold is none, because latents are rectified as well.
        theta=thresholds.clamp(min=0),
        assumptions=["params_layer_{i}.safetensors holds the latents that read layer i of the config's list"],
        details=_details(file, layout, weights),
    )


def _validate_kind(file: ForeignFile, options: ForeignOptions) -> None:
    kind = file.settings.get("type", "crosscoder")
    if kind != "crosscoder":
        raise ValueError(f"{file.path} is a Gemma Scope 2 {kind!s:.40}, not a crosscoder, and cannot be converted.")
    architecture = file.settings.get("architecture", "jump_relu")
    if architecture != "jump_relu":
        raise ValueError(f"{file.path} has architecture={architecture!r:.80}; only jump_relu can be converted.")
    if file.settings.get("affine_connection", False) is not False:
        raise ValueError(f"{file.path} has an affine_connection from input to output, so it is no crosscoder.")
    refused = [name for name in ("theta", "allow_relu", "activation_scales", "split_gates") if name in options.given]
    if refused:
        raise ValueError(f"{', '.join(refused)} cannot be set for {file.path}: Gemma Scope 2 states its thresholds.")


def _part_of(file: ForeignFile, name: str) -> int:
    part = re.match(r"params_layer_(\d{1,4})\.", name)
    if part is None:
        raise ValueError(f"{file.path} (gemma_scope_2) has a tensor {name!r:.80} outside of its params_layer files.")
    return int(part.group(1))


def _stacked(file: ForeignFile, n_layers: int) -> tuple[StackedLayout, Weights, Tensor]:
    parts = [{name: file.tensors[f"params_layer_{n}.{name}"] for name in TENSORS} for n in range(n_layers)]
    width = parts[0]["b_dec"].numel()
    layout = StackedLayout((width,) * n_layers)
    for n, part in enumerate(parts):
        n_latents = part["b_enc"].numel()
        shapes = {
            "w_enc": (width, n_latents),
            "b_enc": (n_latents,),
            "threshold": (n_latents,),
            "w_dec": (n_latents, n_layers, width),
            "b_dec": (width,),
        }
        validate_shapes(file, {f"params_layer_{n}.{name}": (part[name], shape) for name, shape in shapes.items()})
    encoders = [part["w_enc"] for part in parts]
    W_enc = encoders[0].new_zeros(layout.d_in, sum(encoder.shape[1] for encoder in encoders))
    first = 0
    for rows, encoder in zip(layout.split(W_enc.T), encoders, strict=True):
        rows[first : first + encoder.shape[1]] = encoder.T
        first += encoder.shape[1]
    joined = {name: torch.cat([part[name] for part in parts]) for name in ("b_enc", "threshold", "w_dec", "b_dec")}
    weights = Weights(W_enc, joined["b_enc"], joined["w_dec"].flatten(1), joined["b_dec"])
    return layout, weights, joined["threshold"]


def _details(file: ForeignFile, layout: StackedLayout, weights: Weights) -> dict[str, Any]:
    """Facts about the causality: the share of decoder norms in layers before the one that a latent reads."""
    norms, reads = layout.norms(weights.W_dec), layout.norms(weights.W_enc.T) > 0
    first_read = reads.double().argmax(dim=-1)
    earlier = torch.arange(layout.n_sources)[None] < first_read[:, None]
    share = (norms * earlier).sum() / norms.sum().clamp(min=torch.finfo(norms.dtype).tiny)
    target = file.settings.get("l0")
    details = {"causality": "weak", "frac_written_to_earlier_layers": float(share)}
    return details | ({"l0": target} if type(target) in (int, float) else {})


def _sources(file: ForeignFile, n_layers: int) -> tuple[Source, ...]:
    inner, outer = (file.settings.get(f"hf_hook_point_{end}") for end in ("in", "out"))
    model = file.settings.text("model_name")
    if inner is None and outer is None:
        return ((model, None),) * n_layers
    if inner != outer:
        raise ValueError(
            f"{file.path} reads {inner!r:.80} and writes {outer!r:.80}: it is a transcoder, not a crosscoder."
        )
    hooks = _hooks(file, inner)
    if len(hooks) != n_layers or len(set(hooks)) != n_layers:
        raise ValueError(
            f"The config beside {file.path} names {len(set(hooks))} layers, {inner!r:.80}, but there are {n_layers} "
            "params_layer files: files are missing, or belong to another crosscoder."
        )
    return tuple((model, hook) for hook in hooks)


def _hooks(file: ForeignFile, points: Any) -> list[str]:
    """TransformerLens's names of the outputs of blocks, from a list or `model.layers.{5,9}.output`."""
    if isinstance(points, str) and (listed := _LAYERS.fullmatch(points)):
        points = [f"model.layers.{layer.strip()}.output" for layer in listed.group(1).split(",")]
    found = [_LAYER.fullmatch(point) for point in points if isinstance(point, str)] if isinstance(points, list) else []
    if not found or None in found or len(found) != len(points):
        raise ValueError(
            f"The config beside {file.path} has hf_hook_point_in={points!r:.80}, expected the outputs of blocks, such "
            "as model.layers.{5,9,12,15}.output."
        )
    return [f"blocks.{int(match.group(1))}.hook_resid_post" for match in found if match is not None]
