"""Convert crosscoders of `dictionary_learning`, the library of the paper's authors: five generations of a layout.

    encoder.weight (model, d, latent)   encoder.bias (latent,)
    decoder.weight (model, latent, d)   decoder.bias (model, d)

Model 0 is base, 1 is chat. The generations add tensors: none (L1), `k` and `threshold` (BatchTopK),
`code_normalization_id` (other norms), `activation_mean`, `activation_std` and `activation_global_scale` (a normaliser,
later with one scale per model). The tensors identify a file; its config must agree with them.
"""

import math

import torch
from torch import Tensor

from sae_lens_crosscoder.crosscoders.canonical import Weights
from sae_lens_crosscoder.crosscoders.scores import Score
from sae_lens_crosscoder.loading.formats.foreign import (
    PAPER_MODELS,
    ForeignCrosscoder,
    ForeignFile,
    ForeignOptions,
    scalar,
    validate_pair,
    validate_shapes,
    validate_tensors,
)
from sae_lens_crosscoder.stacking import StackedLayout

MAIN_TENSORS = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
NORMALISER = ("activation_mean", "activation_std", "activation_global_scale")
OPTIONAL_TENSORS = ("k", "threshold", "code_normalization_id", "target_rms", *NORMALISER)
NORM_IDS: dict[int, Score] = {1: "sum", 2: "l2", 3: "mixed", 4: "none"}
DECOUPLED_ID = 5
PAPER_LAYER = 13


def convert_dictionary_learning(file: ForeignFile, options: ForeignOptions) -> ForeignCrosscoder:
    """Convert a file, with the paper's models, layer and tokens as defaults.

    Raises:
        ValueError: for an incomplete crosscoder, another kind of dictionary, shapes or a config that contradict each
            other, decoupled crosscoders (two activations per latent have no canonical form), a threshold that was not
            estimated (without `theta` or `allow_relu`), and a normaliser other than one factor per model.
    """
    validate_tensors(file, MAIN_TENSORS, OPTIONAL_TENSORS, may_be_nan=(*NORMALISER, "threshold"))
    assumptions = ["on the model axis, 0 is base and 1 is chat"]
    layout, weights = _weights(file, assumptions)
    score_norm = _score_norm(file, assumptions)
    scales, means = _normaliser(file, layout, options, assumptions)
    _validate_agreement(file, layout, len(weights.b_enc))
    base, chat = PAPER_MODELS
    is_of_paper = file.settings.get("lm_name") in (None, f"{chat}-{base}")
    return ForeignCrosscoder(
        format="dictionary_learning",
        weights=weights,
        layout=layout,
        # Their layer n is the output of block n, counted from 0.
        hook_name=f"blocks.{_layer(file)}.hook_resid_post",
        model_names=PAPER_MODELS if is_of_paper else None,
        dropped_tokens="none (BOS and chat template were kept)",
        score_norm=score_norm,
        theta=_theta(file, options, assumptions),
        scales=scales,
        means=means,
        assumptions=assumptions,
        details={"k": _whole_number(file, "k")} if "k" in file.tensors else {},
    )


def _whole_number(file: ForeignFile, name: str) -> int:
    value = scalar(file, name)
    if not value.is_integer():
        raise ValueError(f"{file.path}: {name} is {value:g}, expected a whole number.")
    return int(value)


def _layer(file: ForeignFile) -> int:
    layer = file.settings.get("layer", PAPER_LAYER)
    if type(layer) is not int or not 0 <= layer < 10_000:
        raise ValueError(f"The config beside {file.path} has layer={layer!r:.80}, expected the number of a layer.")
    return layer


def _weights(file: ForeignFile, assumptions: list[str]) -> tuple[StackedLayout, Weights]:
    encoder, b_enc, decoder, b_dec = (file.tensors[name] for name in MAIN_TENSORS)
    if encoder.ndim != 3:
        raise ValueError(
            f"{file.path}: encoder.weight has shape {tuple(encoder.shape)}, expected (model, d, latent). SAELens may "
            "load it, as an SAE of one activation."
        )
    n_models, width, d_sae = encoder.shape
    validate_pair(file, n_models)
    if b_enc.ndim == 2:  # in the oldest files, whose encoder added it per model and then summed
        validate_shapes(file, {"encoder.bias": (tuple(b_enc.shape), (n_models, d_sae))})
        assumptions.append("encoder.bias, one per model, is summed over the models")
        b_enc = b_enc.sum(dim=0)
    validate_shapes(
        file,
        {
            "encoder.bias": (tuple(b_enc.shape), (d_sae,)),
            "decoder.weight": (tuple(decoder.shape), (n_models, d_sae, width)),
            "decoder.bias": (tuple(b_dec.shape), (n_models, width)),
        },
    )
    layout = StackedLayout((width,) * n_models)
    W_enc = layout.stack([weight.T for weight in encoder]).T
    return layout, Weights(W_enc, b_enc, layout.stack([*decoder]), layout.stack([*b_dec]))


def _score_norm(file: ForeignFile, assumptions: list[str]) -> Score:
    tensors = file.tensors
    norm_id = _whole_number(file, "code_normalization_id") if "code_normalization_id" in tensors else None
    if norm_id == DECOUPLED_ID or tensors.get("threshold", torch.zeros(())).numel() > 1:
        raise ValueError(
            f"{file.path} is a decoupled crosscoder (code_normalization_id 5) and cannot be converted: its latents "
            "have an activation and a threshold per model."
        )
    if norm_id is None:
        assumptions.append("without a code_normalization_id, the norm is the crosscoder's, n_base + n_chat")
        return "sum"
    if norm_id not in NORM_IDS:
        raise ValueError(f"{file.path}: code_normalization_id {norm_id} is not one of {sorted([*NORM_IDS, 5])}.")
    alphas = [file.settings.get(f"code_normalization_alpha_{name}") for name in ("sae", "cc")]
    if NORM_IDS[norm_id] == "mixed" and any(
        a not in (None, usual) for a, usual in zip(alphas, (1.0, 0.1), strict=True)
    ):
        raise ValueError(
            f"{file.path} mixes its norms with the weights {alphas}; only 1 (stacked norm) and 0.1 (sum) are supported."
        )
    return NORM_IDS[norm_id]


def _theta(file: ForeignFile, options: ForeignOptions, assumptions: list[str]) -> float | None:
    """Return the threshold, the only sign of a BatchTopK crosscoder; None for a ReLU crosscoder."""
    tensors = file.tensors
    is_batchtopk = "threshold" in tensors or "k" in tensors
    if options.theta is not None:
        if not is_batchtopk:
            raise ValueError(f"theta does not apply to {file.path}: an L1 crosscoder has no threshold.")
        return options.theta
    theta = scalar(file, "threshold")
    if not is_batchtopk:
        return None
    if 0 <= theta < math.inf:
        return theta
    if options.allow_relu:
        assumptions.append(
            "the threshold was not estimated, so every positive latent is active (allow_relu=True), many more than in "
            "training"
        )
        return None
    raise ValueError(
        f"{file.path}: the threshold is {theta:g}, so it was not estimated in training. Give theta=..., estimated on "
        "data, or allow_relu=True to use every positive latent, which is another crosscoder."
    )


def _normaliser(
    file: ForeignFile, layout: StackedLayout, options: ForeignOptions, assumptions: list[str]
) -> tuple[tuple[float, ...] | None, Tensor | None]:
    """Return c_m and the stacked mean_m of `c_m (h^m - mean_m)`; None, None if activations are read raw.

    The 1e-8 that the authors' code adds to c in the decoder is left out.
    """
    mean, std, scale = (file.tensors.get(name) for name in NORMALISER)
    if mean is None or bool(mean.isnan().all()):
        if options.activation_scales is None:
            assumptions.append("without a normaliser in the file, activations were neither scaled nor centred")
        return options.activation_scales, None
    if options.activation_scales is not None:
        raise ValueError(f"{file.path} contains activation_global_scale: leave activation_scales out.")
    shape = (layout.n_models, layout.d_in // layout.n_models)
    if scale is None or not bool(scale.isfinite().all()) or not bool(mean.isfinite().all()):
        raise ValueError(
            f"Incomplete normaliser: {file.path} needs finite activation_mean and activation_global_scale."
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in (("mean", mean), ("std", std)) if tensor is not None}
    validate_shapes(file, {f"activation_{name}": (actual, shape) for name, actual in shapes.items()})
    if scale.shape not in ((), (layout.n_models,)):
        raise ValueError(
            f"{file.path}: activation_global_scale has shape {tuple(scale.shape)}, expected one factor, or one per "
            "model."
        )
    if std is not None:
        _validate_scaling(file, std, scale)
    return tuple(scale.expand(layout.n_models).tolist()), layout.stack([*mean])


def _validate_scaling(file: ForeignFile, std: Tensor, scale: Tensor) -> None:
    """Refuse scaling by coordinate, which the authors' code does while its global scale stays at 1."""
    if bool(std.isnan().any()):
        raise ValueError(
            f"{file.path}: activation_mean is set but activation_std is NaN, so that the authors' code does not "
            "normalise. Set both, or make both NaN."
        )
    rms = scalar(file, "target_rms", default=1.0)
    of_variances = rms / std.double().square().sum().sqrt().item()
    left_at_one = bool((scale == 1).all()) and not math.isclose(of_variances, 1, rel_tol=1e-3)
    in_coordinates = left_at_one and not torch.allclose(std, torch.ones_like(std), atol=1e-3)
    if in_coordinates or file.settings.get("keep_relative_variance") is False:
        raise ValueError(
            f"{file.path} divides every coordinate by its own activation_std (keep_relative_variance off) and cannot "
            "be converted: decoder norms, and so Delta_norm, would change."
        )


def _validate_agreement(file: ForeignFile, layout: StackedLayout, d_sae: int) -> None:
    """Raise a ValueError for settings that belong to other weights."""
    width = layout.d_in // layout.n_models
    for key, value in {"num_layers": layout.n_models, "activation_dim": width, "dict_size": d_sae}.items():
        setting = file.settings.get(key, value)
        if setting != value:
            raise ValueError(
                f"The config beside {file.path} has {key}={setting!r}, but the tensors have {value}: one of the two "
                "belongs to another crosscoder."
            )
