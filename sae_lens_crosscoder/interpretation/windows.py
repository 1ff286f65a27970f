"""Windows of text drawn at random, and which latents are on in them: where negative examples come from."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.activations.checks import require_finite
from sae_lens_crosscoder.activations.harvest import harvest
from sae_lens_crosscoder.analysis.example_windows import TokenSpans
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, require_hook_name
from sae_lens_crosscoder.crosscoders.sparse import pairs_of
from sae_lens_crosscoder.models.pair import HookedModelPair

TokenIds = tuple[int, ...]


@dataclass(frozen=True)
class DrawnWindows:
    """Different windows, and which of the latents that were asked about are on somewhere in each."""

    token_ids: tuple[TokenIds, ...]
    on: Bool[Tensor, "window latent"]


def draw_windows(
    crosscoder: InferenceCrosscoder,
    pair: HookedModelPair,
    tokens: Int[Tensor, "batch pos"],
    latents: Int[Tensor, " latent"],
    *,
    n_windows: int,
    window: tuple[int, int],
    documents: Int[Tensor, "batch pos"] | None,
    seed: int,
    batch_size_prompts: int,
) -> DrawnWindows:
    """Windows around tokens that are drawn uniformly; the models run on the prompts that these are in.

    The same text may be in several windows. It is kept once, and a latent is on in it if it is on in any of them: what
    is in front of a window can decide, and such a text is no clear negative.

    Args:
        window: tokens before and after the drawn one; a window never leaves its document or prompt.
        documents: as for `collect_examples`.
    """
    spans = TokenSpans(tokens, documents, getattr(pair.tokenizer, "bos_token_id", None))
    drawn = torch.randperm(tokens.numel(), generator=torch.Generator().manual_seed(seed))
    drawn = drawn[spans.is_text[drawn]][:n_windows].sort().values
    start = torch.maximum(drawn - window[0], spans.first[drawn])
    stop = torch.minimum(drawn + window[1], spans.last[drawn]) + 1
    on = _on(crosscoder, pair, tokens, latents, start, stop, batch_size_prompts)
    index: dict[TokenIds, int] = {}
    slots: list[int] = []
    for first, last in zip(start.tolist(), stop.tolist(), strict=True):
        slots.append(index.setdefault(tuple(spans.tokens[first:last].tolist()), len(index)))
    on_anywhere = torch.zeros(len(index), len(latents), dtype=torch.int64)
    on_anywhere.index_add_(0, torch.tensor(slots), on.long())
    return DrawnWindows(tuple(index), on_anywhere > 0)


def _on(
    crosscoder: InferenceCrosscoder,
    pair: HookedModelPair,
    tokens: Int[Tensor, "batch pos"],
    latents: Int[Tensor, " latent"],
    start: Int[Tensor, " window"],
    stop: Int[Tensor, " window"],
    batch_size_prompts: int,
) -> Bool[Tensor, "window latent"]:
    """In which windows, sorted by prompt, which latents are on."""
    context_size = tokens.shape[1]
    column = torch.full((crosscoder.cfg.d_sae,), -1)
    column[latents] = torch.arange(len(latents))
    prompt = start // context_size
    rows = prompt.unique()
    on = torch.zeros(len(start), len(latents), dtype=torch.bool)
    batches = harvest(pair, tokens[rows], require_hook_name(crosscoder), batch_size_prompts)
    parts = rows.split(batch_size_prompts)
    for part, activations in zip(tqdm(parts, desc="Windows", unit="batch", leave=False), batches, strict=True):
        token, where = _active(crosscoder, activations, column)
        flat = part[token // context_size] * context_size + token % context_size  # ascending
        first, last = torch.searchsorted(prompt, part[0]), torch.searchsorted(prompt, part[-1], right=True)
        here = slice(int(first), int(last))
        begins, ends = (torch.searchsorted(flat, edge[here]).tolist() for edge in (start, stop))
        for row, begin, end in zip(range(here.start, here.stop), begins, ends, strict=True):
            on[row, where[begin:end]] = True
    return on


@torch.no_grad()
def _active(
    crosscoder: InferenceCrosscoder, activations: Float[Tensor, "token d_in"], column: Int[Tensor, " d_sae"]
) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """Active pairs of a token and the column of a latent that was asked about, sorted by token."""
    batch = activations.to(crosscoder.W_dec)
    require_finite(batch, crosscoder.layout, "of windows drawn at random")
    pairs, _ = pairs_of(crosscoder.encode_sparse(batch))
    where = column[pairs.latent.cpu()]
    return pairs.token.cpu()[where >= 0], where[where >= 0]
