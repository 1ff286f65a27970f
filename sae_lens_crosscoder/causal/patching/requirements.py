"""What must hold before models run: a crosscoder of this pair, and masks of these tokens."""

from torch import Tensor

from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, require_hook_name
from sae_lens_crosscoder.models.pair import HookedModelPair


def require_pair_of(crosscoder: InferenceCrosscoder, pair: HookedModelPair) -> str:
    """The hook whose activations the crosscoder reads, or a ValueError if this pair does not give them there.

    As far as names and widths tell; the widths are found by running one token.
    """
    metadata, widths = crosscoder.cfg.metadata, crosscoder.layout.d_models
    hook_name = require_hook_name(crosscoder)
    pair.validate_trained_on(metadata.model_name, metadata.chat_model_name)
    found = pair.layout_at(hook_name).d_models
    if found != widths:
        raise ValueError(
            f"The crosscoder reads activations of widths {widths}, but at {hook_name} the models are {found} wide: it "
            "was trained on another pair. Load that one."
        )
    return hook_name


def require_answers(
    pair: HookedModelPair,
    crosscoder: InferenceCrosscoder,
    tokens: Tensor,
    response: Tensor,
    template: Tensor | None = None,
) -> None:
    """Raise a ValueError unless the masks fit, and the chat model can go on from the base model's activation."""
    require_pair_of(crosscoder, pair)
    if not crosscoder.layout.same_width:
        raise ValueError(
            "The chat model cannot go on from the base model's activation: these models are "
            f"{crosscoder.layout.d_models} wide, and only models of one width share a basis."
        )
    for name, mask in (("response", response), ("template", template)):
        if mask is not None and mask.shape != tokens.shape:
            raise ValueError(
                f"{name} has shape {tuple(mask.shape)}, but tokens {tuple(tokens.shape)}: mark every token."
            )
    if not bool(response.any()):
        raise ValueError("response marks no token, so there is nothing to score.")
    if bool(response[:, 0].any()):
        raise ValueError("response marks the first token of a conversation, which no position predicts.")
