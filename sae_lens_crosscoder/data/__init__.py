"""Tokens to train on and to analyse: mixes of sources, packing, chat tokens, token groups, contrasts and answers."""

from sae_lens_crosscoder.data.answer_files import AnswerSettings, generate_answers
from sae_lens_crosscoder.data.answers import Answers
from sae_lens_crosscoder.data.chat_tokens import ChatTokens, chat_tokens
from sae_lens_crosscoder.data.contrasts import Contrast
from sae_lens_crosscoder.data.labelled_rows import LabelledRows, labelled_rows, tiny_labelled_rows
from sae_lens_crosscoder.data.mix import DataMix, MixSource
from sae_lens_crosscoder.data.prompts import TokenizedPrompts, load_prompts, tokenize_prompts
from sae_lens_crosscoder.data.tiny_contrasts import tiny_contrasts
from sae_lens_crosscoder.data.token_groups import TokenGroups, token_groups

__all__ = [
    "AnswerSettings",
    "Answers",
    "ChatTokens",
    "Contrast",
    "DataMix",
    "LabelledRows",
    "MixSource",
    "TokenGroups",
    "TokenizedPrompts",
    "chat_tokens",
    "generate_answers",
    "labelled_rows",
    "load_prompts",
    "tiny_contrasts",
    "tiny_labelled_rows",
    "token_groups",
    "tokenize_prompts",
]
