"""Explore the crosscoders of an audit on both models' answers."""

from collections.abc import Mapping, Sequence

from sae_lens_crosscoder.activations.eval_data import EvalData
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.data.answers import Answers
from sae_lens_crosscoder.data.contrasts import Contrast
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.report import Exploration
from sae_lens_crosscoder.workflows.explore import explore

EXPLORER_FILENAME = "explorer.html"
MOST_ROWS, N_PASSES = 256, 3
"""Answers to show, which are read about so many times."""


def explore_answers(
    crosscoders: Mapping[str, InferenceCrosscoder],
    pair: HookedModelPair,
    rows: Answers,
    contrasts: Sequence[Contrast] = (),
    *,
    n_rows: int = MOST_ROWS,
    batch_size: int,
    seed: int = 0,
) -> dict[str, Exploration]:
    """Explore crosscoders on the first answers.

    Args:
        contrasts: a finding's prompts against others; the latents that carry it are marked.
    """
    tokens, token_mask = rows.tokens[:n_rows], rows.token_mask[:n_rows]
    data = EvalData(pair=pair, tokens=tokens, token_mask=token_mask, batch_size=batch_size)
    return {name: explore(each, data, contrasts=contrasts, seed=seed) for name, each in crosscoders.items()}
