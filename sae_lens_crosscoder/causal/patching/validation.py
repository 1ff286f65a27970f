"""Checks before models run: the crosscoder belongs to the pair, and the chat model can go on from what it is given."""

from sae_lens_crosscoder.causal.forward.resume import validate_resumable
from sae_lens_crosscoder.crosscoders.origin import validate_pair
from sae_lens_crosscoder.crosscoders.two_models import TwoModels
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.stacking import hook_of_model

HANDOVER = "Handing the base model's activation to the chat model"


def validate_handover(two: TwoModels, pair: HookedModelPair) -> str:
    """Return the hook, or raise a ValueError unless the chat model can read the base model's activation there."""
    pair.validate_one_tokenizer(HANDOVER)
    hook_name = validate_pair(two.crosscoder, pair)
    two.validate_one_width(HANDOVER)
    return hook_name


def validate_continuing(two: TwoModels, pair: HookedModelPair) -> None:
    """Raise a ValueError unless the chat model's layers after the hook can run alone from the base activation."""
    hook_name, place = validate_handover(two, pair), two.places[1]
    validate_resumable(pair.members[place], hook_of_model(hook_name, place))
