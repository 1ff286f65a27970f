"""Windows of text drawn at random, and which latents are on in them: where negative examples come from."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.activations.eval_data import EvalData
from sae_lens_crosscoder.activations.harvest import validate_activations
from sae_lens_crosscoder.analysis.examples.windows import TokenSpans
from sae_lens_crosscoder.analysis.inputs import PromptSource
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.crosscoders.sparse_step.codes import pairs_of
from sae_lens_crosscoder.crosscoders.sparse_step.kernels import indices_of

TokenIds = tuple[int, ...]


@dataclass(frozen=True)
class DrawnWindows:
    """Different windows, and which of the latents that were asked about are on somewhere in each."""

    token_ids: tuple[TokenIds, ...]
    on: Bool[Tensor, "window latent"]


def draw_windows(
    crosscoder: InferenceCrosscoder,
    data: EvalData,
    latents: Int[Tensor, " latent"],
    *,
    n_windows: int,
    window: tuple[int, int],
    seed: int,
) -> DrawnWindows:
    """Windows around tokens that are drawn uniformly; the models run on the prompts that these are in.

    The same text may be in several windows. It is kept once, and a latent is on in it if it is on in any of them: what
    is in front of a window can decide, and such a text is no clear negative.

    Args:
        window: tokens before and after the drawn one; a window never leaves its document or prompt.
    """
    source = PromptSource(crosscoder, data)
    tokens = source.tokens
    spans = TokenSpans(tokens, data.documents, getattr(data.tokenizer, "bos_token_id", None), source.token_mask)
    drawn = torch.randperm(len(spans.place), generator=torch.Generator().manual_seed(seed))
    drawn = spans.place[drawn[spans.is_text[drawn]][:n_windows].sort().values]
    start = torch.maximum(drawn - window[0], spans.first[drawn])
    stop = torch.minimum(drawn + window[1], spans.last[drawn]) + 1
    prompt = torch.div(start, tokens.shape[1], rounding_mode="floor")
    rows = torch.arange(len(tokens))
    if data.pair is not None:
        rows = prompt.unique()
        part = EvalData(
            pair=data.pair, tokens=tokens[rows], token_mask=source.token_mask[rows], batch_size=data.batch_size
        )
        source = PromptSource(crosscoder, part)
    on = _on(crosscoder, source, rows, prompt, latents, start, stop)
    index: dict[TokenIds, int] = {}
    slots: list[int] = []
    for first, last in zip(start.tolist(), stop.tolist(), strict=True):
        slots.append(index.setdefault(tuple(spans.tokens[first:last].tolist()), len(index)))
    on_anywhere = torch.zeros(len(index), len(latents), dtype=torch.int64)
    on_anywhere.index_add_(0, torch.tensor(slots), on.long())
    return DrawnWindows(tuple(index), on_anywhere > 0)


def _on(
    crosscoder: InferenceCrosscoder,
    source: PromptSource,
    rows: Int[Tensor, " row"],
    prompt: Int[Tensor, " window"],
    latents: Int[Tensor, " latent"],
    start: Int[Tensor, " window"],
    stop: Int[Tensor, " window"],
) -> Bool[Tensor, "window latent"]:
    """In which windows, sorted by prompt, which latents are on; `rows` are the prompts of the source."""
    context_size = source.tokens.shape[1]
    column = torch.full((crosscoder.cfg.d_sae,), -1)
    column[latents] = torch.arange(len(latents))
    on = torch.zeros(len(start), len(latents), dtype=torch.bool)
    for here, activations in tqdm(source, desc="Windows", unit="batch", leave=False):
        part, place = rows[here], indices_of(source.token_mask[here].flatten())
        token, where = _active(crosscoder, activations, column)
        token = place[token]
        flat = part[token // context_size] * context_size + token % context_size  # ascending
        first, last = torch.searchsorted(prompt, part[0]), torch.searchsorted(prompt, part[-1], right=True)
        drawn = slice(int(first), int(last))
        begins, ends = (torch.searchsorted(flat, edge[drawn]).tolist() for edge in (start, stop))
        for window, begin, end in zip(range(drawn.start, drawn.stop), begins, ends, strict=True):
            on[window, where[begin:end]] = True
    return on


@torch.no_grad()
def _active(
    crosscoder: InferenceCrosscoder, activations: Float[Tensor, "token d_in"], column: Int[Tensor, " d_sae"]
) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """Active pairs of a token and the column of a latent that was asked about, sorted by token."""
    batch = activations.to(crosscoder.W_dec)
    validate_activations(batch, crosscoder.layout, "of windows drawn at random")
    pairs, _ = pairs_of(crosscoder.encode_sparse(batch))
    where = column[pairs.latent.cpu()]
    return pairs.token.cpu()[where >= 0], where[where >= 0]
