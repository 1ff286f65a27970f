"""The canonical form of a converted crosscoder, its metadata, and the warning about its assumed settings."""

import warnings
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from sae_lens.saes.sae import SAEMetadata

from sae_lens_crosscoder.crosscoders.canonical import Weights, fold_activation_scales, fold_scores
from sae_lens_crosscoder.crosscoders.inference import JumpReLUCrosscoderConfig, ReLUCrosscoderConfig
from sae_lens_crosscoder.crosscoders.scores import Score, score_norms
from sae_lens_crosscoder.loading.formats.foreign import ForeignCrosscoder, ForeignFile, ForeignOptions
from sae_lens_crosscoder.stacking import StackedLayout, join_hooks
from sae_lens_crosscoder.storage.names import printable_names

_OF_PAIR = ("hook_name", "model_names", "dropped_tokens")
_ORDERS = {
    "base_chat": "on the model axis, 0 is base and 1 is chat",
    "chat_base": "on the model axis, 0 is chat and 1 is base: the two were swapped, because base comes first here",
}


def canonical_state(
    foreign: ForeignCrosscoder, options: ForeignOptions, file: ForeignFile
) -> tuple[dict[str, Any], dict[str, Float[torch.Tensor, "..."]]]:
    """Convert to config and tensors in canonical form, as SAELens's loaders return them.

    The activation is the score `f (n_base + n_chat)`. A crosscoder trained with another norm keeps its name in
    `score_norm`, and its threshold becomes one per latent, so that the same latents are on.
    """
    metadata = _metadata(foreign, options, file)
    if foreign.model_order.value == "chat_base":
        foreign = foreign.swapped()
    layout, weights = foreign.layout, foreign.weights
    norms = _norms(weights, layout, "sum")
    folded = fold_scores(weights, norms)
    if foreign.scales is not None:
        scales = torch.tensor(foreign.scales, dtype=torch.float64)
        folded = fold_activation_scales(folded, layout, scales, foreign.means)
    state = {name: tensor.contiguous() for name, tensor in folded._asdict().items()}
    if foreign.theta is not None:
        trained_norms = _norms(weights, layout, foreign.score_norm)
        # A latent with a zero decoder never fires after folding, at any threshold.
        state["threshold"] = foreign.theta * torch.where(norms > 0, norms / trained_norms, torch.ones_like(norms))
    if not all(bool(tensor.isfinite().all()) for tensor in (norms, *state.values())):
        raise ValueError(
            f"The weights of {file.path} ({foreign.format}) become infinite in canonical form: the file is damaged, or "
            "must be loaded with dtype='float64'."
        )
    means = None if foreign.means is None else [mean.tolist() for mean in layout.split(foreign.means)]
    shared: dict[str, Any] = {
        "d_models": layout.d_models,
        "hook_names": _hook_names(foreign),
        "d_sae": len(norms),
        "dtype": str(norms.dtype).removeprefix("torch."),
        "score_norm": foreign.score_norm,
        "activation_scales": foreign.scales,
        "activation_means": means,
        "metadata": SAEMetadata(**metadata),
    }
    if foreign.theta is None:
        return ReLUCrosscoderConfig(**shared).to_dict(), state
    n_base, n_chat = foreign.n_exclusive
    cfg = JumpReLUCrosscoderConfig(**shared, n_base_exclusive=n_base, n_chat_exclusive=n_chat)
    return cfg.to_dict(), state


def _norms(weights: Weights, layout: StackedLayout, score: Score) -> Float[torch.Tensor, " d_sae"]:
    """Compute norms in float64, in which squares neither overflow nor vanish."""
    return score_norms(weights.W_dec.double(), layout, score).to(weights.W_dec)


def _metadata(foreign: ForeignCrosscoder, options: ForeignOptions, file: ForeignFile) -> dict[str, Any]:
    assumptions = list(foreign.assumptions)
    common = {"converted_from": foreign.format, "assumptions": assumptions, **foreign.details}
    values: dict[str, Any] = {}
    for name in _OF_PAIR if foreign.sources is None else ("dropped_tokens",):
        fact, given = getattr(foreign, name), getattr(options, name)
        values[name] = fact.value if given is None else given
        if given is not None or fact.stated:
            continue
        if fact.value is None:
            assumptions.append(f"{name} is unknown: the file does not state it")
        else:
            assumptions.append(f"{name}={fact.value!r}")
    if foreign.sources is None and not foreign.model_order.stated:
        assumptions.insert(0, _ORDERS[foreign.model_order.value])
    assumptions += file.settings.conflicts
    if unread := file.settings.unread():
        assumptions.append(f"not read from the config: {printable_names(unread)}")
    if foreign.sources is not None:
        _validate_no_pair_options(foreign, options)
        models = [model for model, _ in foreign.sources[:: foreign.n_hooks]]
        known = dict(zip(("model_name", "chat_model_name"), models, strict=False)) if len(models) <= 2 else {}
        hooks = [hook for _, hook in foreign.sources[: foreign.n_hooks]]
        joined = None if None in hooks else join_hooks([str(hook) for hook in hooks])
        sources = [{"model_name": name, "hook_name": hook} for name, hook in foreign.sources]
        return {**known, "hook_name": joined, "sources": sources, "dropped_tokens": values["dropped_tokens"], **common}
    base, chat = values.pop("model_names") or (None, None)
    return {"model_name": base, "chat_model_name": chat, **values, **common}


def _hook_names(foreign: ForeignCrosscoder) -> tuple[str, ...] | None:
    """Names of the hooks at which every model is read, numbered where they are unknown; None for one hook."""
    if foreign.sources is None or foreign.n_hooks == 1:
        return None
    return tuple(hook or f"hook_{i}" for i, (_, hook) in enumerate(foreign.sources[: foreign.n_hooks]))


def _validate_no_pair_options(foreign: ForeignCrosscoder, options: ForeignOptions) -> None:
    given = [name for name in ("hook_name", "model_names", "model_order", "activation_scales") if name in options.given]
    if given:
        raise ValueError(
            f"{', '.join(given)} cannot be set: this {foreign.format} crosscoder reads {foreign.layout.n_sources} "
            "activations of one token, not a pair of models at one hook."
        )


def warn_of_assumptions(cfg: dict[str, Any], path: Path) -> None:
    """List the assumed settings in one warning."""
    metadata = cfg["metadata"]
    if not metadata["assumptions"]:
        return
    lines = "".join(f"\n - {assumption}" for assumption in metadata["assumptions"])
    warnings.warn(
        f"{path} was loaded as {metadata['converted_from']}, with assumed settings (see cfg.metadata.assumptions; "
        f"arguments of slc.load override them):{lines}",
        stacklevel=6,  # the caller of slc.load or SAE.from_pretrained
    )
