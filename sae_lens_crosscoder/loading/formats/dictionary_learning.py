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
from sae_lens_crosscoder.loading.formats.exported import with_exported_facts
from sae_lens_crosscoder.loading.formats.facts import models_of, of_paper, order_of
from sae_lens_crosscoder.loading.formats.foreign import (
    PAPER_MODELS,
    Fact,
    ForeignCrosscoder,
    ForeignFile,
    ForeignOptions,
    ModelOrder,
    split_gates,
)
from sae_lens_crosscoder.loading.formats.validation import (
    NO_THRESHOLD,
    scalar,
    theta_of,
    validate_agreement,
    validate_pair,
    validate_shapes,
    validate_tensors,
)
from sae_lens_crosscoder.stacking import StackedLayout

MAIN_TENSORS = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
NORMALISER = ("activation_mean", "activation_std", "activation_global_scale")
OPTIONAL_TENSORS = ("k", "threshold", "code_normalization_id", "target_rms", *NORMALISER)
NORM_IDS: dict[int, Score] = {1: "sum", 2: "l2", 3: "mixed", 4: "none"}
NORM_NAMES = {1: "CROSSCODER", 2: "SAE", 3: "MIXED", 4: "NONE", 5: "DECOUPLED"}
DECOUPLED_ID = 5
PAPER_LAYER = 13


def convert_dictionary_learning(
    file: ForeignFile, options: ForeignOptions, default_order: ModelOrder = "base_chat"
) -> ForeignCrosscoder:
    """Convert a file, with the paper's models, layer and tokens as defaults if the widths are those of its models.

    Args:
        default_order: the order of the models where neither the caller nor the config states it.

    Raises:
        ValueError: for an incomplete crosscoder, another kind of dictionary, shapes or a config that contradict each
            other, decoupled crosscoders without `split_gates`, a threshold that was not estimated (without `theta` or
            `allow_relu`), and a normaliser other than one factor per model.
    """
    validate_tensors(file, MAIN_TENSORS, OPTIONAL_TENSORS, may_be_nan=(*NORMALISER, "threshold"))
    assumptions: list[str] = []
    layout, weights = _weights(file, assumptions)
    is_decoupled = _is_decoupled(file)
    score_norm = "sum" if is_decoupled else _score_norm(file, assumptions)
    scales, means = _normaliser(file, layout, options, assumptions)
    width = layout.d_in // layout.n_sources
    validate_agreement(file, {"num_layers": layout.n_sources, "activation_dim": width, "dict_size": len(weights.b_enc)})
    if is_decoupled:
        weights, theta = _split(file, weights, layout, options, assumptions)
    else:
        theta = _theta(file, options, assumptions)
    order = order_of(file, options, default_order)
    foreign = ForeignCrosscoder(
        format="dictionary_learning",
        weights=weights,
        layout=layout,
        hook_name=_hook(file, layout),
        model_names=_models(file, layout, order),
        model_order=order,
        dropped_tokens=of_paper(layout, "none (BOS and chat template were kept)"),
        score_norm=score_norm,
        theta=theta,
        scales=scales,
        means=means,
        assumptions=assumptions,
        details={"k": _whole_number(file, "k")} if "k" in file.tensors else {},
    )
    return with_exported_facts(file, foreign)


def _whole_number(file: ForeignFile, name: str) -> int:
    value = scalar(file, name)
    if not value.is_integer():
        raise ValueError(f"{file.path}: {name} is {value:g}, expected a whole number.")
    return int(value)


def _hook(file: ForeignFile, layout: StackedLayout) -> Fact:
    """Return the hook that our own export names, or the output of their layer n: block n, counted from 0."""
    layer = file.settings.get("layer")
    if layer is not None and (type(layer) is not int or not 0 <= layer < 10_000):
        raise ValueError(f"The config beside {file.path} has layer={layer!r:.80}, expected the number of a layer.")
    if layer is None:
        return of_paper(layout, f"blocks.{PAPER_LAYER}.hook_resid_post")
    return Fact(f"blocks.{layer}.hook_resid_post", stated=True)


def _models(file: ForeignFile, layout: StackedLayout, order: Fact) -> Fact:
    base, chat = PAPER_MODELS
    # Their name for another pair joins two names with a dash, and cannot be taken apart.
    name = file.settings.text("lm_name")
    if name == f"{chat}-{base}":
        return Fact(PAPER_MODELS, stated=True)
    found = models_of(file, layout, order.value)
    return found if name is None or found.stated else Fact()


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
        validate_shapes(file, {"encoder.bias": (b_enc, (n_models, d_sae))})
        assumptions.append("encoder.bias, one per model, is summed over the models")
        b_enc = b_enc.sum(dim=0)
    validate_shapes(
        file,
        {
            "encoder.bias": (b_enc, (d_sae,)),
            "decoder.weight": (decoder, (n_models, d_sae, width)),
            "decoder.bias": (b_dec, (n_models, width)),
        },
    )
    layout = StackedLayout((width,) * n_models)
    W_enc = layout.stack([weight.T for weight in encoder]).T
    return layout, Weights(W_enc, b_enc, layout.stack([*decoder]), layout.stack([*b_dec]))


def _norm_id(file: ForeignFile) -> int | None:
    """Return the id of the norm in the tensors, or of its name in the config; None if neither has it."""
    norm_id = _whole_number(file, "code_normalization_id") if "code_normalization_id" in file.tensors else None
    name = file.settings.text("code_normalization")
    if name is None:
        return norm_id
    named = next((known for known, text in NORM_NAMES.items() if text == name.upper()), None)
    if named is None or norm_id not in (None, named):
        raise ValueError(
            f"The config beside {file.path} has code_normalization={name!r:.40}, which is unknown, or differs from the "
            f"tensors' code_normalization_id ({norm_id}). Known are {NORM_NAMES}."
        )
    return named


def _is_decoupled(file: ForeignFile) -> bool:
    return _norm_id(file) == DECOUPLED_ID or file.tensors.get("threshold", torch.zeros(())).numel() > 1


def _split(
    file: ForeignFile, weights: Weights, layout: StackedLayout, options: ForeignOptions, assumptions: list[str]
) -> tuple[Weights, Tensor]:
    """Return one latent per model from every latent of a decoupled crosscoder, and their thresholds."""
    if not options.split_gates:
        raise ValueError(
            f"{file.path} is a decoupled crosscoder (code_normalization_id 5): its latents have an activation and a "
            "threshold per model, so a latent has no one activation. Pass split_gates=True to load every latent as two "
            "that write one model each; Delta_norm is then 0 or 1 by construction."
        )
    theta = file.tensors.get("threshold")
    if options.theta is not None:
        theta = torch.full((layout.n_sources,), options.theta)
    if theta is None or theta.shape != (layout.n_sources,) or not bool((theta >= 0).all()):
        found = None if theta is None else [round(value, 6) for value in theta.flatten().tolist()]
        raise ValueError(
            f"{file.path} is a decoupled crosscoder with the thresholds {found}, expected one estimated threshold per "
            "model. Pass theta=..., estimated on data."
        )
    d_sae = len(weights.b_enc)
    assumptions.append(
        f"every latent of the file became two: latent j writes its first model, latent {d_sae} + j its second, each "
        "with its own threshold. Delta_norm is 0 or 1 by construction"
    )
    return split_gates(weights, layout, [value.expand(d_sae) for value in theta.to(weights.b_enc)])


def _score_norm(file: ForeignFile, assumptions: list[str]) -> Score:
    norm_id = _norm_id(file)
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


def _theta(file: ForeignFile, options: ForeignOptions, assumptions: list[str]) -> float | Tensor | None:
    """Return the threshold, the only sign of a BatchTopK crosscoder; None for a ReLU crosscoder."""
    if "threshold" not in file.tensors and "k" not in file.tensors:
        return theta_of(file, None, options, assumptions)
    if options.theta is not None:
        return options.theta
    theta = scalar(file, "threshold")
    if 0 <= theta < math.inf:
        return theta_of(file, theta, options, assumptions)
    if options.allow_relu:
        assumptions.append(NO_THRESHOLD)
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
    rms = file.settings.get("target_rms")
    if rms is not None and rms != scalar(file, "target_rms", default=1.0):
        raise ValueError(f"{file.path} and the config beside it have different values of target_rms.")
    if mean is None or bool(mean.isnan().all()):
        if options.activation_scales is None:
            assumptions.append("without a normaliser in the file, activations were neither scaled nor centred")
        return options.activation_scales, None
    if options.activation_scales is not None:
        raise ValueError(f"{file.path} contains activation_global_scale: leave activation_scales out.")
    shape = (layout.n_sources, layout.d_in // layout.n_sources)
    if scale is None or not bool(scale.isfinite().all()) or not bool(mean.isfinite().all()):
        raise ValueError(
            f"Incomplete normaliser: {file.path} needs finite activation_mean and activation_global_scale."
        )
    given = {name: tensor for name, tensor in (("mean", mean), ("std", std)) if tensor is not None}
    validate_shapes(file, {f"activation_{name}": (tensor, shape) for name, tensor in given.items()})
    if scale.shape not in ((), (layout.n_sources,)):
        raise ValueError(
            f"{file.path}: activation_global_scale has shape {tuple(scale.shape)}, expected one factor, or one per "
            "model."
        )
    if std is not None:
        _validate_scaling(file, std, scale)
    return tuple(scale.expand(layout.n_sources).tolist()), layout.stack([*mean])


def _validate_scaling(file: ForeignFile, std: Tensor, scale: Tensor) -> None:
    """Refuse scaling by coordinate, which the authors' code does while its global scale stays at 1."""
    if bool(std.isnan().any()):
        raise ValueError(
            f"{file.path}: activation_mean is set but activation_std is NaN, so that the authors' code does not "
            "normalise. Set both, or make both NaN."
        )
    rms = scalar(file, "target_rms", default=1.0)
    # One factor is that of all variances; later versions have one per model.
    variances = std.double().square().sum(dim=None if scale.ndim == 0 else -1)
    of_variances = rms / variances.sqrt()
    left_at_one = bool((scale == 1).all()) and not torch.allclose(of_variances, scale.double(), rtol=1e-3, atol=0)
    in_coordinates = left_at_one and not torch.allclose(std, torch.ones_like(std), atol=1e-3)
    if in_coordinates or file.settings.get("keep_relative_variance") is False:
        raise ValueError(
            f"{file.path} divides every coordinate by its own activation_std (keep_relative_variance off) and cannot "
            "be converted: decoder norms, and so Delta_norm, would change."
        )
