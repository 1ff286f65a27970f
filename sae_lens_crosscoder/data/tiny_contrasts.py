"""Contrasts of the built-in pair, whose change by fine-tuning is known."""

from collections.abc import Sequence

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.data.contrasts import Contrast
from sae_lens_crosscoder.models.tiny import CONCEPTS, matched_prompts


@validate_arguments
def tiny_contrasts(n_pairs: int, seed: int = 0, names: Sequence[str] = CONCEPTS) -> list[Contrast]:
    """Matched prompts of the built-in pair's concepts, as contrasts; the second half of the pairs is held out.

    Args:
        n_pairs: pairs of prompts per concept.
        names: concepts, from `models.tiny.CONCEPTS`.

    >>> contrast, = tiny_contrasts(4, names=["suppressed"])
    >>> contrast.kind_of_change, contrast.model, contrast.held_out.tolist()
    ('base_only', 'base', [False, False, True, True, False, False, True, True])
    """
    contrasts: list[Contrast] = []
    for name in names:
        prompts = matched_prompts(name, n_pairs=n_pairs, seed=seed)
        contrasts.append(
            Contrast.from_tokens(
                name,
                list(prompts.positive),
                list(prompts.negative),
                positions=[prompts.decision_position] * (2 * n_pairs),
                model="base" if prompts.kind_of_change == "base_only" else "chat",
                kind_of_change=prompts.kind_of_change,
            )
        )
    return contrasts
