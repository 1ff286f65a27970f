"""Explanations of latents by a language model, their scores, and an export for delphi (extra `autointerp`)."""

from sae_lens_crosscoder.interpretation.answers import Answers
from sae_lens_crosscoder.interpretation.cases import InterpretationCases, interpretation_cases
from sae_lens_crosscoder.interpretation.clients import CallableClient, Client, EndpointClient, LocalClient
from sae_lens_crosscoder.interpretation.cost import InterpretationCost, interpretation_cost
from sae_lens_crosscoder.interpretation.delphi import write_delphi_cache
from sae_lens_crosscoder.interpretation.embedding import sentence_embedder
from sae_lens_crosscoder.interpretation.interpret import interpret

__all__ = [
    "Answers",
    "CallableClient",
    "Client",
    "EndpointClient",
    "InterpretationCases",
    "InterpretationCost",
    "LocalClient",
    "interpret",
    "interpretation_cases",
    "interpretation_cost",
    "sentence_embedder",
    "write_delphi_cache",
]
