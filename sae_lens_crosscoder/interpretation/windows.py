"""Random windows of text and the latents active in them: the source of negative examples."""

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
from sae_lens_crosscoder.crosscoders.sparse_step.kernels import indices_of
from sae_lens_crosscoder.crosscoders.sparse_step.pairs import pairs_of
from sae_lens_crosscoder.data.beginnings import document_start_id

TokenIds = tuple[int, ...]


@dataclass(frozen=True)
class DrawnWindows:
    """Distinct windows, and the selected latents that are active somewhere in each."""

    token_ids: tuple[TokenIds, ...]
    active: Bool[Tensor, "window latent"]


def draw_windows(
    crosscoder: InferenceCrosscoder,
    data: EvalData,
    latent_ids: Int[Tensor, " latent"],
    *,
    n_windows: int,
    window: tuple[int, int],
    seed: int,
) -> DrawnWindows:
    """Draw windows around uniformly drawn tokens; the models run on the prompts they are in.

    A text that is in several windows is returned once, and a latent is active in it if it is active in any of them,
    because the text before a window can decide it, which makes no clear negative.

    Args:
        window: tokens before and after the drawn one; a window never leaves its document or prompt.
    """
    source = PromptSource(crosscoder, data)
    tokens = source.tokens
    spans = TokenSpans(tokens, data.documents, document_start_id(data.tokenizer), source.token_mask)
    drawn = torch.randperm(len(spans.place), generator=torch.Generator().manual_seed(seed))
    drawn = spans.place[drawn[spans.is_text[drawn]][:n_windows].sort().values]
    start = torch.maximum(drawn - window[0], spans.first[drawn])
    stop = torch.minimum(drawn + window[1], spans.last[drawn]) + 1
    prompt = torch.div(start, tokens.shape[1], rounding_mode="floor")
    rows = torch.arange(len(tokens))
    if data.pair is not None:
        rows = prompt.unique()
        part = EvalData(
            pair=data.pair,
            tokens=tokens[rows],
            token_mask=source.token_mask[rows],
            batch_size=data.batch_size,
            max_norm_ratio=data.max_norm_ratio,
        )
        source = PromptSource(crosscoder, part)
    active = _active_in(crosscoder, source, rows, prompt, latent_ids, start, stop)
    index: dict[TokenIds, int] = {}
    slots: list[int] = []
    for first, last in zip(start.tolist(), stop.tolist(), strict=True):
        slots.append(index.setdefault(tuple(spans.tokens[first:last].tolist()), len(index)))
    active_anywhere = torch.zeros(len(index), len(latent_ids), dtype=torch.int64)
    active_anywhere.index_add_(0, torch.tensor(slots), active.long())
    return DrawnWindows(tuple(index), active_anywhere > 0)


def _active_in(
    crosscoder: InferenceCrosscoder,
    source: PromptSource,
    rows: Int[Tensor, " row"],
    prompt: Int[Tensor, " window"],
    latent_ids: Int[Tensor, " latent"],
    start: Int[Tensor, " window"],
    stop: Int[Tensor, " window"],
) -> Bool[Tensor, "window latent"]:
    """Latents active in each window, with windows sorted by prompt; `rows` are the prompts of the source."""
    context_size = source.tokens.shape[1]
    column = torch.full((crosscoder.cfg.d_sae,), -1)
    column[latent_ids] = torch.arange(len(latent_ids))
    active = torch.zeros(len(start), len(latent_ids), dtype=torch.bool)
    for batch, used, activations in tqdm(source, desc="Windows", unit="batch", leave=False):
        part, place = rows[batch], indices_of(used.flatten())
        token, columns = _active_pairs(crosscoder, activations, column)
        token = place[token]
        flat = part[token // context_size] * context_size + token % context_size  # ascending
        first, last = torch.searchsorted(prompt, part[0]), torch.searchsorted(prompt, part[-1], right=True)
        drawn = slice(int(first), int(last))
        begins, ends = (torch.searchsorted(flat, edge[drawn]).tolist() for edge in (start, stop))
        for window, begin, end in zip(range(drawn.start, drawn.stop), begins, ends, strict=True):
            active[window, columns[begin:end]] = True
    return active


@torch.no_grad()
def _active_pairs(
    crosscoder: InferenceCrosscoder, activations: Float[Tensor, "token d_in"], column: Int[Tensor, " d_sae"]
) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """Active pairs of a token and the column of a selected latent, sorted by token."""
    batch = activations.to(crosscoder.W_dec)
    validate_activations(batch, crosscoder.layout, "of windows drawn at random")
    pairs, _ = pairs_of(crosscoder.encode_sparse(batch))
    columns = column[pairs.latent.cpu()]
    return pairs.token.cpu()[columns >= 0], columns[columns >= 0]
