"""Answers that a model writes after prompts of any length, in one batch and with its key/value cache."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sae_lens_crosscoder.models.cached_models import with_logits
from sae_lens_crosscoder.models.hook_access import device_of

# Logits of all positions of a batch that are in memory at once, in numbers: 0.25 GB in float32.
_MAX_LOGITS = 2**26
# A batch ends where prompts get this much longer than its shortest one, because each token above it costs a step.
_MAX_SPREAD = 48

_Choose = Callable[[Float[Tensor, "prompt d_vocab"], Int[Tensor, " prompt"]], Int[Tensor, " prompt"]]


def vocabulary_size(model: Any) -> int:
    """Number of ids that a model has logits for."""
    config = model.cfg if hasattr(model, "cfg") else model.model.config.get_text_config()
    return int(config.d_vocab if hasattr(config, "d_vocab") else config.vocab_size)


def context_limit(model: Any) -> int:
    """Number of positions that a model can read."""
    config = model.cfg if hasattr(model, "cfg") else model.model.config.get_text_config()
    return int(config.n_ctx if hasattr(config, "n_ctx") else config.max_position_embeddings)


def validate_room(prompts: Sequence[Int[Tensor, "_"]], max_new_tokens: int, n_ctx: int) -> None:
    """Raise a ValueError if prompts leave no room for answers in a context."""
    longest = max(len(prompt) for prompt in prompts)
    if longest + max_new_tokens > n_ctx:
        generated = f" plus max_new_tokens={max_new_tokens}" if max_new_tokens else ""
        raise ValueError(
            f"The longest conversation has {longest} tokens{generated}, but the model's context holds only {n_ctx}. "
            f"Drop long conversations{', or lower max_new_tokens' if max_new_tokens else ''}."
        )


def similar_lengths(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices of prompts in batches of similar length.

    >>> similar_lengths([9, 300, 8, 10], batch_size=2)
    [[2, 0], [3], [1]]
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        is_full = not batches or len(batches[-1]) == batch_size
        if is_full or lengths[row] - lengths[batches[-1][0]] > _MAX_SPREAD:
            batches.append([])
        batches[-1].append(row)
    return batches


@torch.no_grad()
def generate(
    model: Any,
    prompts: Sequence[Int[Tensor, "_"]],
    end_ids: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    uniforms: Float[Tensor, "prompt new"] | None = None,
    d_vocab: int | None = None,
) -> list[Int[Tensor, "_"]]:
    """Generate after each prompt, up to and including the first of `end_ids`.

    All prompts are read together up to the length of the shortest; then each step reads one more token of every row,
    its prompt's or its answer's. So nothing is padded, no mask is needed, and prompts of similar length cost little.

    Args:
        model: a HookedTransformer, TransformerBridge or HookedProxyLM.
        temperature: 0 for the most likely token; otherwise the softmax of logits / temperature is sampled.
        uniforms: numbers in [0, 1) that decide what is sampled, one for each new token.
        d_vocab: only ids below it are written; None for all that the model has.

    Returns:
        The new tokens of each prompt, on the CPU.
    """
    device = device_of(model)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    stops = lengths + max_new_tokens
    tokens = pad_sequence([prompt.long() for prompt in prompts], batch_first=True).to(device)
    tokens = torch.nn.functional.pad(tokens, (0, max_new_tokens))
    choose = token_chooser(temperature, None if uniforms is None else uniforms.to(device), lengths)
    ends = torch.tensor(list(end_ids), device=device)
    read = with_logits(model)
    position = int(lengths.min())
    chunk = max(1, _MAX_LOGITS // (len(prompts) * vocabulary_size(model)))
    logits = [read(part)[:, -1:] for part in tokens[:, :position].split(chunk, dim=1)][-1]
    while True:
        following = choose(logits[:, -1, :d_vocab], torch.full_like(lengths, position))
        is_new = (position >= lengths) & (position < stops)
        tokens[:, position] = torch.where(is_new, following, tokens[:, position])
        ended = is_new & torch.isin(following, ends)
        position += 1
        stops = torch.where(ended, position, stops)
        if position >= int(stops.max()):
            break
        logits = read(tokens[:, position - 1 : position])
    spans = zip(tokens.cpu(), lengths.tolist(), stops.tolist(), strict=True)
    return [row[start:stop].clone() for row, start, stop in spans]


def token_chooser(
    temperature: float, uniforms: Float[Tensor, "prompt new"] | None, starts: Int[Tensor, " prompt"]
) -> _Choose:
    """Make the rule that picks the next token of every prompt from its logits, at a position.

    Args:
        temperature: 0 for the most likely token; otherwise the softmax of logits / temperature is sampled.
        uniforms: numbers in [0, 1) that decide what is sampled, one for each new token.
        starts: position of each answer's first token.

    Raises:
        ValueError: for sampling without `uniforms`.
    """

    def most_likely(logits: Tensor, positions: Tensor) -> Tensor:
        return logits.argmax(dim=-1)

    def sampled(logits: Tensor, positions: Tensor) -> Tensor:
        assert uniforms is not None
        n_written = (positions - starts).clamp(0, uniforms.shape[1] - 1)
        drawn = uniforms.gather(1, n_written[:, None]).double()
        shares = (logits.double() / temperature).softmax(dim=-1).cumsum(dim=-1)
        return torch.searchsorted(shares, drawn * shares[:, -1:], right=True)[:, 0].clamp(max=logits.shape[-1] - 1)

    if temperature == 0:
        return most_likely
    if uniforms is None:
        raise ValueError(f"temperature={temperature} samples, so pass uniforms: a number for each new token.")
    return sampled
