"""Prompts from a file, or those of the built-in pair."""

from collections.abc import Sequence

from sae_lens_crosscoder.data.prompts import Messages, load_prompts
from sae_lens_crosscoder.models.tiny import TINY_MODELS, dialogues


def given_prompts(path: str | None, names: Sequence[str], setting: str, n: int, seed: int) -> Sequence[Messages]:
    """Conversations from a file, or `n` requests of the built-in pair.

    Args:
        names: both models.
        setting: what the file's setting is called, for the message.

    Raises:
        ValueError: without a file for other models.
    """
    if path is not None:
        return load_prompts(path)
    if {name.partition("+")[0] for name in names} <= set(TINY_MODELS):
        return [messages[:1] for messages in dialogues(n, seed, "held_out")]
    raise ValueError(
        f"`{setting}` is missing: pass a file of requests, one per line, some on which the models should differ. Only "
        "the built-in pair has prompts of its own."
    )
