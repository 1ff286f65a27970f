"""Labels of carriers by a language model, which stand beside the evidence."""

from pathlib import Path

from sae_lens_crosscoder.activations.eval_data import EvalData
from sae_lens_crosscoder.analysis.audit.finding import Label
from sae_lens_crosscoder.analysis.examples.collect import collect_examples
from sae_lens_crosscoder.analysis.examples.file import EXAMPLES_FILENAME
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.data.answers import Answers as AnswerRows
from sae_lens_crosscoder.interpretation.answers import Answers
from sae_lens_crosscoder.interpretation.cases import interpretation_cases
from sae_lens_crosscoder.interpretation.clients import Client
from sae_lens_crosscoder.interpretation.embedding import sentence_embedder
from sae_lens_crosscoder.interpretation.interpret import interpret
from sae_lens_crosscoder.models.pair import HookedModelPair

ANSWERS_FILENAME = "labels.jsonl"
LABELLED = 3
"""Carriers of each finding, the largest share first."""
_N_WINDOWS = 1000


def label_latents(
    crosscoder: InferenceCrosscoder,
    pair: HookedModelPair,
    rows: AnswerRows,
    latents: list[int],
    client: Client,
    folder: Path,
    batch_size: int,
) -> dict[int, Label]:
    """Let a client explain latents by their contexts in the answers, and score each explanation on other contexts.

    Args:
        folder: that of the crosscoder; keeps the contexts and the client's answers.
    """
    data = EvalData(pair=pair, tokens=rows.tokens, token_mask=rows.token_mask, batch_size=batch_size)
    examples = collect_examples(crosscoder, data, folder / EXAMPLES_FILENAME)
    embed = sentence_embedder("words", "cpu")  # needs no model
    cases = interpretation_cases(crosscoder, data, examples, latents, embed, n_windows=_N_WINDOWS)
    table = interpret(cases, Answers(folder / ANSWERS_FILENAME, client)).table
    return {
        latent: Label(
            latent=latent, text=row["explanation"], detection=row["detection_hard"], interpreter=row["interpreter"]
        )
        for latent, row in zip(table.index.tolist(), table.to_dict("records"), strict=True)
        if row["explanation"]
    }
