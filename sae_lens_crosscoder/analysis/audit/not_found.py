"""Sentences on what an audit looked for without result."""

from collections.abc import Sequence

from sae_lens_crosscoder.analysis.answers.phrases import PhraseChange
from sae_lens_crosscoder.analysis.changed.significance import Q_LIMIT

_SHOWN = 3


def not_found(changes: Sequence[PhraseChange], is_traced: bool) -> list[str]:
    """Phrases that were tested and differ by chance, and whether latents could be looked for.

    Args:
        is_traced: False if no hook brings back what changed.
    """
    missed = sorted((c for c in changes if c.q_value > Q_LIMIT), key=lambda change: change.q_value)
    said = [
        f"\u201c{change.text}\u201d is no more frequent in {change.writer}'s answers to held-out prompts than by "
        f"chance: {change.n_with} against {change.n_against} (q = {change.q_value:.2g})."
        for change in missed[:_SHOWN]
    ]
    if len(missed) > len(said):
        said.append(f"The same holds for {len(missed) - len(said)} more phrases.")
    if not changes:
        said.append("No phrase was more frequent in one model's answers by enough to test.")
    if not is_traced:
        said.append("No crosscoder was trained, because no hook brings back what changed.")
    return said
