"""Text that a patched pair writes, with both models' keys and values kept from token to token."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from sae_lens_crosscoder.activations.harvest import validate_tokens
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.causal.patching.intervention import ModelName
from sae_lens_crosscoder.models.cached_models import with_activations
from sae_lens_crosscoder.models.pair import HookedModelPair


@validate_arguments
@torch.no_grad()
def generate_patched(
    pair: HookedModelPair,
    tokens: Int[Tensor, "prompt pos"],
    writer: ModelName = "chat",
    *,
    max_new_tokens: int = 16,
    end: int | None = None,
) -> Int[Tensor, "prompt new"]:
    """Generate greedily with one model of the pair, under the pair's patches.

    Inside `with patched(pair, ...)` both models read every new token, because latents depend on both. Models other than
    HookedTransformer and TransformerBridge read all tokens again for each new one. Without patches this is the model's
    own greedy generation.

    Args:
        tokens: prompts of one length, without padding.
        writer: the model whose next token is taken; both models read it. With `read_by="chat"` the chat model writes
            from the base model's patched activations.
        end: the token that ends an answer, by default the tokenizer's `eos_token_id`.

    Returns:
        The new tokens; finished answers are filled up with `end`.
    """
    if writer not in ("base", "chat"):
        raise ValueError(f"Unknown writer={writer!r}: expected 'base' or 'chat'.")
    validate_tokens(tokens)
    end = getattr(pair.tokenizer, "eos_token_id", None) if end is None else end
    answers = torch.stack(answer_prompts(pair, list(tokens), writer, max_new_tokens=max_new_tokens, end=end))
    return answers[:, : int(until_end(answers, end).sum(dim=1).max())]


@torch.no_grad()
def answer_prompts(
    pair: HookedModelPair,
    prompts: Sequence[Int[Tensor, "_"]],
    writer: ModelName = "chat",
    *,
    max_new_tokens: int = 16,
    end: int | None = None,
) -> list[Int[Tensor, "_"]]:
    """Generate as `generate_patched` does, after prompts of any lengths.

    All prompts are read together up to the length of the shortest; then each step reads one more token of every row,
    its prompt's or its answer's, so that none is padded.

    Returns:
        `max_new_tokens` tokens of each prompt; after the one that ends an answer, they are `end`.
    """
    end = getattr(pair.tokenizer, "eos_token_id", None) if end is None else end
    filler, m = 0 if end is None else end, 0 if writer == "base" else -1
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=prompts[0].device)
    tokens = pad(pad_sequence(list(prompts), batch_first=True), (0, max_new_tokens), value=filler)
    stops = lengths + max_new_tokens
    cached, state = with_caches(pair), pair.patch_state
    state.prompt_length = int(lengths.max())
    try:
        for position in range(int(lengths.min()), int(stops.max())):
            logits = (pair if cached is None else cached)(tokens[:, state.n_tokens_read : position])[:, -1, m]
            state.n_tokens_read = 0 if cached is None else position
            following = logits.argmax(dim=-1).to(tokens)
            is_new = (position >= lengths) & (position < stops)
            tokens[:, position] = torch.where(is_new, following, tokens[:, position])
            stops = torch.where(is_new & (following == end), position + 1, stops)
            if bool((position + 1 >= stops).all()):
                break
    finally:
        state.n_tokens_read, state.prompt_length = 0, None
    written: list[Tensor] = []
    for row, length, stop in zip(tokens, lengths.tolist(), stops.tolist(), strict=True):
        answer = row[length : length + max_new_tokens].clone()
        answer[stop - length :] = filler
        written.append(answer)
    return written


def until_end(answers: Int[Tensor, "prompt new"], end: int | None) -> Bool[Tensor, "prompt new"]:
    """True for the tokens of answers up to and with the one that ends them.

    >>> until_end(torch.tensor([[5, 0, 0], [5, 6, 7]]), end=0)
    tensor([[ True,  True, False],
            [ True,  True,  True]])
    """
    is_end = (answers == (-1 if end is None else end)).long()
    return is_end.cumsum(dim=1) - is_end == 0


def with_caches(pair: HookedModelPair) -> HookedModelPair | None:
    """The pair under the same hooks, with each forward pass continuing from the last; None if a host has no cache."""
    members = [with_activations(model) for model in pair.members]
    if any(model is None for model in members):
        return None
    cached_pair = HookedModelPair(*members)
    cached_pair.hook_dict, cached_pair.splices = pair.hook_dict, pair.splices
    cached_pair.joined_hooks = pair.joined_hooks
    return cached_pair
