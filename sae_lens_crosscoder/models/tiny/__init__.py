"""The built-in tiny pair: real transformers with known differences, and text with a label for every token."""

from sae_lens_crosscoder.models.tiny.behaviour import behaviour_table, oracle_table
from sae_lens_crosscoder.models.tiny.dataset import TINY_CONTEXT_SIZE, tiny_dataset
from sae_lens_crosscoder.models.tiny.dialogues import dialogues
from sae_lens_crosscoder.models.tiny.documents import TINY_KINDS, plain_texts
from sae_lens_crosscoder.models.tiny.models import TINY_DATASET, TINY_HOOK, TINY_MODELS, load_tiny_model
from sae_lens_crosscoder.models.tiny.prompts import CONCEPT_KINDS, CONCEPTS, MatchedPrompts, matched_prompts
from sae_lens_crosscoder.models.tiny.tokenizer import tiny_tokenizer

__all__ = [
    "CONCEPTS",
    "CONCEPT_KINDS",
    "TINY_CONTEXT_SIZE",
    "TINY_DATASET",
    "TINY_HOOK",
    "TINY_KINDS",
    "TINY_MODELS",
    "MatchedPrompts",
    "behaviour_table",
    "dialogues",
    "load_tiny_model",
    "matched_prompts",
    "oracle_table",
    "plain_texts",
    "tiny_dataset",
    "tiny_tokenizer",
]
