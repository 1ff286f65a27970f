"""The pair and the hook that a crosscoder was trained on: known from its metadata, or assumed by a loader."""

from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, hook_name_of
from sae_lens_crosscoder.models.pair import HookedModelPair


def validate_pair(crosscoder: InferenceCrosscoder, pair: HookedModelPair) -> str:
    """Return the hook that the crosscoder reads, or raise a ValueError if the pair has other activations there.

    Compares model names and widths; the widths are found by running one token. The message says so if the names of the
    models or of the hook were only assumed, because a published file left them open.
    """
    metadata = crosscoder.cfg.metadata
    hook_name = hook_name_of(crosscoder)
    try:
        pair.validate_trained_on(*crosscoder.model_names)
    except ValueError as error:
        if not is_assumed(crosscoder, "model_names"):
            raise
        raise ValueError(
            f"{metadata.model_name} and {metadata.chat_model_name} were assumed, as the crosscoder's file names no "
            f"models, but the pair is {' and '.join(pair.model_names or ())}. If it was trained on the pair, load it "
            f"with slc.load(..., model_names={pair.model_names})."
        ) from error
    try:
        pair.validate_hook(hook_name)
    except ValueError as error:
        if not is_assumed(crosscoder, "hook_name"):
            raise
        raise ValueError(
            f"The hook {hook_name!r} was assumed, as the crosscoder's file names none, and the pair does not have it. "
            "Load the crosscoder with slc.load(..., hook_name=...) to name the hook that it was trained on."
        ) from error
    d_models, pair_d_models = crosscoder.layout.d_models, pair.layout_at(hook_name).d_models
    if pair_d_models != d_models:
        raise ValueError(
            f"The crosscoder reads activations of widths {d_models}, but the models have widths {pair_d_models} at "
            f"{hook_name}. The crosscoder was trained on another pair: load that pair."
        )
    return hook_name


def is_assumed(crosscoder: InferenceCrosscoder, name: str) -> bool:
    """True if a loader assumed a setting that the crosscoder's file left open, such as `hook_name`."""
    assumptions: list[str] = crosscoder.cfg.metadata.assumptions or []
    return any(assumption.startswith(f"{name}=") for assumption in assumptions)
