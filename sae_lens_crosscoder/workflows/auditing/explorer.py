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


def write_answers_explorer(
    crosscoder: InferenceCrosscoder,
    pair: HookedModelPair,
    rows: Answers,
    contrasts: Sequence[Contrast],
    path: Path,
    batch_size: int,
) -> None:
    """Write the explorer of a crosscoder, on both models' answers.

    Args:
        contrasts: a finding's prompts against others; the latents that carry it are marked.
    """
    data = EvalData(pair=pair, tokens=rows.tokens, token_mask=rows.token_mask, batch_size=batch_size)
    write_explorer({"audit": explore(crosscoder, data, contrasts=contrasts)}, path)
