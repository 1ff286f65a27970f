"""The explorer of an audit: its first crosscoder on the answers, with the findings as concepts."""

from collections.abc import Sequence
from pathlib import Path

from sae_lens_crosscoder.activations.eval_data import EvalData
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.data.answers import Answers
from sae_lens_crosscoder.data.contrasts import Contrast
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.report.explorer.page import write_explorer
from sae_lens_crosscoder.workflows.explore import explore

EXPLORER_FILENAME = "explorer.html"
MOST_ROWS, N_PASSES = 256, 8
"""Answers to show, which are read about so many times."""


def write_answers_explorer(
    crosscoder: InferenceCrosscoder,
    pair: HookedModelPair,
    rows: Answers,
    contrasts: Sequence[Contrast],
    path: Path,
    batch_size: int,
) -> None:
    """Write the explorer of a crosscoder, on the first 256 of both models' answers.

    Args:
        contrasts: a finding's prompts against others; the latents that carry it are marked.
    """
    tokens, token_mask = rows.tokens[:MOST_ROWS], rows.token_mask[:MOST_ROWS]
    data = EvalData(pair=pair, tokens=tokens, token_mask=token_mask, batch_size=batch_size)
    write_explorer({"audit": explore(crosscoder, data, contrasts=contrasts)}, path)
