"""Checks before models run: the crosscoder belongs to the pair, and the chat model can go on from what it is given."""

from sae_lens_crosscoder.causal.forward.resume import validate_resumable
from sae_lens_crosscoder.crosscoders.compared import validate_two_models
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, validate_one_hook
from sae_lens_crosscoder.crosscoders.origin import validate_pair
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.stacking import hook_of_model


def validate_handover(crosscoder: InferenceCrosscoder, pair: HookedModelPair) -> str:
    """Return the hook, or raise a ValueError unless the chat model can read the base model's activation there."""
    validate_two_models(crosscoder, "Handing the base model's activation to the chat model")
    pair.validate_one_tokenizer("Handing the base model's activation to the chat model")
    hook_name = validate_pair(crosscoder, pair)
    validate_one_hook(crosscoder, "Handing the base model's activation to the chat model")
    if not crosscoder.layout.same_width:
        raise ValueError(
            f"The chat model cannot continue from the base model's activation: the widths are "
            f"{crosscoder.layout.d_models}. Only models of one width share a basis."
        )
    return hook_name


def validate_continuing(crosscoder: InferenceCrosscoder, pair: HookedModelPair) -> None:
    """Raise a ValueError unless the chat model's layers after the hook can run alone from the base activation."""
    hook_name = validate_handover(crosscoder, pair)
    validate_resumable(pair.chat, hook_of_model(hook_name, len(pair.members) - 1))
