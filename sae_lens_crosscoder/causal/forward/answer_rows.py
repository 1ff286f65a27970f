"""answer_rows: a contrast read at the tokens of the chat model's own answers, instead of at the decision."""

import torch
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.activations.contrast_rows import ContrastRows
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.causal.patching.generation import generate_patched, until_end
from sae_lens_crosscoder.data.contrasts import Contrast
from sae_lens_crosscoder.models.pair import HookedModelPair


@validate_arguments
@torch.no_grad()
def answer_rows(
    pair: HookedModelPair,
    contrast: Contrast,
    hook_name: str,
    *,
    max_new_tokens: int = 24,
    batch_size: int = 32,
) -> ContrastRows:
    """Let the chat model answer the prompts of a contrast, and read both models on the answers.

    Much of a behaviour is written while it is being said: at one token of the answer or another. The rows of a prompt
    are all positive and all held out as the prompt is.

    Args:
        contrast: prompts up to their decision positions; what follows is left out.
        max_new_tokens: tokens per answer; an answer ends earlier at the tokenizer's end of sequence, which is read too.

    Returns:
        Rows named `NAME answers`, one per token of an answer.
    """
    rows: list[Tensor] = []
    origins: list[Tensor] = []
    lengths = contrast.positions + 1
    end = getattr(pair.tokenizer, "eos_token_id", None)
    for length in tqdm(lengths.unique().tolist(), desc="Answers", leave=False):
        for prompts in (lengths == length).nonzero()[:, 0].split(batch_size):
            asked = contrast.tokens[prompts, :length]
            answers = generate_patched(pair, asked, "chat", max_new_tokens=max_new_tokens)
            is_written = until_end(answers, end).cpu()
            stacked = pair.activations(torch.cat([asked, answers], dim=1), hook_name)[:, length:].cpu()
            rows.append(stacked[is_written])
            origins.append(prompts[is_written.nonzero()[:, 0]])
    origin = torch.cat(origins)
    return ContrastRows(
        name=f"{contrast.name} answers",
        activations=torch.cat(rows),
        positive=contrast.positive[origin],
        held_out=contrast.held_out[origin],
        model=contrast.model,
        kind_of_change=contrast.kind_of_change,
    )
