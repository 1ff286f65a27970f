"""Text that a patched pair writes, with both models' keys and values kept from token to token."""

from collections.abc import Generator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from sae_lens_crosscoder.activations.harvest import validate_tokens
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.models.cached_models import with_activations
from sae_lens_crosscoder.models.generation import token_chooser
from sae_lens_crosscoder.models.member_names import place_of
from sae_lens_crosscoder.models.pair import HookedModelPair


@validate_arguments
@torch.no_grad()
def generate_patched(
    pair: HookedModelPair,
    tokens: Int[Tensor, "prompt pos"],
    writer: str = "chat",
    *,
    max_new_tokens: int = 16,
    end: int | None = None,
    temperature: float = 0.0,
    seed: int = 0,
) -> Int[Tensor, "prompt new"]:
    """Generate with one model of the pair, under the pair's patches.

    Inside `with patched(pair, ...)` both models read every new token, because latents depend on both. Models other than
    HookedTransformer and TransformerBridge read all tokens again for each new one. Without patches this is the model's
    own generation.

    Args:
        tokens: prompts of one length, without padding.
        writer: the model whose next token is taken: `base`, `chat` or, of more models, a name. All models read it. With
            `read_by="chat"` the chat model writes from the base model's patched activations.
        end: the token that ends an answer, by default the tokenizer's `eos_token_id`.
        temperature: 0 for the most likely token; otherwise the softmax of logits / temperature is sampled.
        seed: of the samples; with one seed, answers with other patches or by another model draw the same numbers.

    Returns:
        The new tokens; finished answers are filled up with `end`.

    Raises:
        ValueError: for a temperature that is negative or not finite.
    """
    validate_tokens(tokens)
    validate_temperature(temperature)
    end = end_id(pair) if end is None else end
    uniforms = sampling_numbers(len(tokens), max_new_tokens, seed)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "uniforms": uniforms}
    answers = torch.stack(answer_prompts(pair, list(tokens), [writer] * len(tokens), end=end, **options))
    return answers[:, : int(until_end(answers, end).sum(dim=1).max())]


@torch.no_grad()
def answer_prompts(
    pair: HookedModelPair,
    prompts: Sequence[Int[Tensor, "_"]],
    writers: Sequence[str],
    *,
    max_new_tokens: int = 16,
    end: int | None = None,
    temperature: float = 0.0,
    uniforms: Float[Tensor, "prompt new"] | None = None,
) -> list[Int[Tensor, "_"]]:
    """Generate as `generate_patched` does, after prompts of any lengths, each with its own writer.

    Returns:
        `max_new_tokens` tokens of each prompt; after the one that ends an answer, they are `end`.
    """
    end = end_id(pair) if end is None else end
    filler = 0 if end is None else end
    steps = [*write_tokens(pair, prompts, writers, max_new_tokens, end, temperature, uniforms)]
    return [pad(row[row >= 0], (0, max_new_tokens), value=filler)[:max_new_tokens] for row in torch.stack(steps, dim=1)]


@torch.no_grad()
def write_tokens(
    pair: HookedModelPair,
    prompts: Sequence[Int[Tensor, "_"]],
    writers: Sequence[str],
    max_new_tokens: int,
    end: int | None,
    temperature: float = 0.0,
    uniforms: Float[Tensor, "prompt new"] | None = None,
) -> Generator[Int[Tensor, " prompt"]]:
    """Yield the token that each pass of the pair adds to each answer; -1 where it adds none.

    All prompts are read together up to the length of the shortest; then each step reads one more token of every row,
    its prompt's or its answer's, so that none is padded. An answer ends with `end`. Closing the generator ends the
    generation, and patches that are active around it stay.

    Args:
        writers: the model that writes each answer; both models read it.
        temperature: 0 for the most likely token; otherwise the softmax of logits / temperature is sampled.
        uniforms: numbers in [0, 1) that decide what is sampled, one for each new token.
    """
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=prompts[0].device)
    places = [place_of(pair.model_names, len(pair.members), writer) for writer in writers]
    rows, m = torch.arange(len(prompts)), torch.tensor(places)
    tokens = pad(pad_sequence(list(prompts), batch_first=True), (0, max_new_tokens))
    stops = lengths + max_new_tokens
    choose = token_chooser(temperature, None if uniforms is None else uniforms.to(tokens.device), lengths)
    cached, state = with_caches(pair), pair.patch_state
    state.prompt_length = int(lengths.max())
    try:
        for position in range(int(lengths.min()), int(stops.max())):
            logits = (pair if cached is None else cached)(tokens[:, state.n_tokens_read : position])[rows, -1, m]
            state.n_tokens_read = 0 if cached is None else position
            following = choose(logits, torch.full_like(lengths, position)).to(tokens)
            is_new = (position >= lengths) & (position < stops)
            tokens[:, position] = torch.where(is_new, following, tokens[:, position])
            stops = torch.where(is_new & (following == end), position + 1, stops)
            yield torch.where(is_new, following, -1)
            if bool((position + 1 >= stops).all()):
                break
    finally:
        state.n_tokens_read, state.prompt_length = 0, None


def sampling_numbers(n_prompts: int, n_tokens: int, seed: int) -> Float[Tensor, "prompt new"]:
    """Draw the numbers in [0, 1) that decide what is sampled."""
    return torch.rand(n_prompts, n_tokens, generator=torch.Generator().manual_seed(seed))


def validate_temperature(temperature: float) -> None:
    """Raise a ValueError for a temperature that is negative or not finite."""
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature={temperature} must be 0, for the most likely token, or a positive number.")


def end_id(pair: HookedModelPair) -> int | None:
    """The token that ends an answer, if the tokenizer has one."""
    return getattr(pair.tokenizer, "eos_token_id", None)


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
