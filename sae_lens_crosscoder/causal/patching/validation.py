"""Checks before models run: the crosscoder belongs to the pair, and the chat model can read the base activation."""

from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.crosscoders.origin import validate_trained_on
from sae_lens_crosscoder.models.pair import HookedModelPair


def validate_pair(crosscoder: InferenceCrosscoder, pair: HookedModelPair) -> str:
    """Return the hook the crosscoder reads, or raise a ValueError if the pair has other activations there.

    Compares model names and widths; the widths are found by running one token.
    """
    d_models = crosscoder.layout.d_models
    hook_name = validate_trained_on(crosscoder, pair)
    pair_d_models = pair.layout_at(hook_name).d_models
    if pair_d_models != d_models:
        raise ValueError(
            f"The crosscoder reads activations of widths {d_models}, but the models have widths {pair_d_models} at "
            f"{hook_name}. The crosscoder was trained on another pair: load that pair."
        )
    return hook_name


def validate_handover(crosscoder: InferenceCrosscoder, pair: HookedModelPair) -> None:
    """Raise a ValueError unless the chat model's layers can continue from the base model's activation."""
    validate_pair(crosscoder, pair)
    if not crosscoder.layout.same_width:
        raise ValueError(
            f"The chat model cannot continue from the base model's activation: the widths are "
            f"{crosscoder.layout.d_models}. Only models of one width share a basis."
        )
