"""Runs both models once per batch, then base again from each hook with chat's activation there."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.causal.forward.resume import can_resume
from sae_lens_crosscoder.causal.localisation.continuing import EMBEDDED, Continuation
from sae_lens_crosscoder.causal.localisation.hooks import validate_hooks
from sae_lens_crosscoder.causal.localisation.localisation import Localisation
from sae_lens_crosscoder.data.token_mask import validate_padding
from sae_lens_crosscoder.models.hook_access import device_of
from sae_lens_crosscoder.models.kl import kl_divergence, log_probs
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.models.token_replacements import validate_embedded
from sae_lens_crosscoder.stacking import StackedLayout

N_TOP = 3
_MAX_LOGITS = 2**26
"""Logits of one model in memory at a time."""


@validate_arguments
@torch.no_grad()
def locate_difference(
    pair: HookedModelPair,
    tokens: Int[Tensor, "prompt pos"],
    token_mask: Bool[Tensor, "prompt pos"],
    hook_names: Sequence[str],
    *,
    n_shown: int = 20,
    batch_size: int = 8,
) -> Localisation:
    """Measure the difference of two models on prompts, hook by hook.

    Both models run once. Base then continues from each hook with chat's activation, at the last token and at all
    tokens; tokens that all prompts begin with run once. A hook at which the activations are equal needs no run. Blocks
    below the hook run again only for models that cannot resume (`HookedProxyLM`).

    Args:
        token_mask: the tokens to measure. The last one of each row is the prompt's last token; padding is on the right.
        hook_names: hooks on the residual stream, in order.
        n_shown: number of positions, those of the largest KL, whose most likely next tokens are kept.
        batch_size: prompts per forward pass at most; fewer for long prompts and large vocabularies.

    Raises:
        ValueError: for an unknown hook, a row without tokens, padding on the left, or models of different width.
    """
    pair.validate_two("locate_difference")
    validate_hooks(pair, hook_names)
    validate_embedded(pair, tokens)
    validate_padding(tokens, token_mask, pair.tokenizer)
    tokens, token_mask = tokens.cpu(), token_mask.cpu()
    if not bool(token_mask.any(dim=-1).all()):
        row = int((~token_mask.any(dim=-1)).nonzero()[0])
        raise ValueError(f"token_mask leaves out all tokens of row {row}. Leave out the row, or mark its tokens.")
    layout = pair.layout_at(hook_names[0])
    if not layout.same_width:
        raise ValueError(
            f"Patching needs models of one width, but the widths are {layout.d_models}. Compare a model and its "
            "fine-tune."
        )
    lengths = token_mask.shape[1] - token_mask.flip(1).long().argmax(dim=1)
    sums = _Sums(tokens, lengths - 1, hook_names, layout)
    with tqdm(total=len(tokens), desc="Looking", unit="prompt", leave=False) as bar:
        for rows in _batches(lengths, batch_size, _d_vocab(pair)):
            width = int(lengths[rows].max())
            _measure_batch(pair, tokens[rows, :width], token_mask[rows, :width], rows, hook_names, layout, sums)
            bar.update(len(rows))
    return sums.result(n_shown)


def _batches(lengths: Int[Tensor, " prompt"], batch_size: int, d_vocab: int) -> list[Int[Tensor, " row"]]:
    """Prompts of similar length, so that little is padded, in batches whose logits fit in memory."""
    order = lengths.argsort(stable=True)
    longest = int(lengths.max())
    return list(order.split(max(1, min(batch_size, _MAX_LOGITS // (longest * d_vocab)))))


def _d_vocab(pair: HookedModelPair) -> int:
    token = torch.zeros(1, 1, dtype=torch.long)
    return int(pair.chat(token.to(device_of(pair.chat)), return_type="logits").shape[-1])


def _measure_batch(
    pair: HookedModelPair,
    tokens: Int[Tensor, "row pos"],
    mask: Bool[Tensor, "row pos"],
    rows: Int[Tensor, " row"],
    hook_names: Sequence[str],
    layout: StackedLayout,
    sums: "_Sums",
) -> None:
    resumes = EMBEDDED in pair.hook_dict and all(can_resume(pair.base, hook_name) for hook_name in hook_names)
    names = [*hook_names, EMBEDDED] if resumes else list(hook_names)
    logits, cache = pair.run_with_cache(tokens, names_filter=list(dict.fromkeys(names)))
    selected = mask.to(logits.device)
    base_log, chat_log = (log_probs(logits[..., m, :][selected]) for m in (0, -1))
    del logits
    kl = kl_divergence(chat_log, base_log).cpu()
    sums.add_predictions(rows, mask, kl, base_log, chat_log)
    is_last = torch.zeros_like(mask)
    is_last[torch.arange(len(rows)), sums.last[rows]] = True
    embedded = layout.split(cache[EMBEDDED])[0] if resumes else None
    continuation = Continuation(pair.base, tokens, mask, is_last, chat_log, embedded)
    for h, hook_name in enumerate(hook_names):
        base, *_, chat = layout.split(cache[hook_name])
        sums.add_activations(h, rows, mask, base, chat)
        if torch.equal(base[selected], chat[selected]):
            sums.add_patched(h, rows, mask, kl, kl[is_last[mask]])
            continue
        everywhere = continuation.left_everywhere(hook_name, torch.where(selected[..., None], chat, base))
        at_last = torch.where(is_last.to(base.device)[..., None], chat, base)
        sums.add_patched(h, rows, mask, everywhere, continuation.left_at_last(hook_name, at_last))


class _Sums:
    """Measurements as they come in, prompt by prompt, on the CPU."""

    def __init__(
        self, tokens: Tensor, last: Int[Tensor, " prompt"], hook_names: Sequence[str], layout: StackedLayout
    ) -> None:
        n_prompts, n_pos = tokens.shape
        n_hooks, nan = len(hook_names), float("nan")
        self.hook_names, self.last = tuple(hook_names), last
        self.kl = torch.full((n_prompts, n_pos), nan)
        self.left = {name: torch.zeros(n_hooks, n_prompts) for name in ("last", "all", "sum")}
        self.norms = torch.full((n_hooks, n_prompts, n_pos, 2), nan)
        self.difference = torch.full((n_hooks, n_prompts, n_pos), nan)
        self.last_activations = torch.zeros(n_hooks, n_prompts, 2, layout.d_models[0])
        self.top_ids = torch.full((n_prompts, n_pos, 2, N_TOP), -1)
        self.top_probs = torch.full((n_prompts, n_pos, 2, N_TOP), nan)

    def add_predictions(self, rows: Tensor, mask: Tensor, kl: Tensor, base_log: Tensor, chat_log: Tensor) -> None:
        """Add the KL and the most likely next tokens at the masked positions."""
        n = min(N_TOP, chat_log.shape[-1])
        tops = [log.topk(n, dim=-1) for log in (base_log, chat_log)]
        prompt, pos = self._places(rows, mask)
        self.kl[prompt, pos] = kl.cpu()
        self.top_ids[prompt, pos, :, :n] = torch.stack([top.indices.cpu() for top in tops], dim=1)
        self.top_probs[prompt, pos, :, :n] = torch.stack([top.values.exp().cpu() for top in tops], dim=1)

    def add_activations(self, h: int, rows: Tensor, mask: Tensor, base: Tensor, chat: Tensor) -> None:
        """Add norms at the masked positions, and the activations at the last token."""
        base, chat = base.float().cpu(), chat.float().cpu()
        prompt, pos = self._places(rows, mask)
        self.norms[h, prompt, pos] = torch.stack([part[mask].norm(dim=-1) for part in (base, chat)], dim=-1)
        self.difference[h, prompt, pos] = (chat - base)[mask].norm(dim=-1)
        at = torch.arange(len(rows)), self.last[rows]
        self.last_activations[h, rows] = torch.stack([base[at], chat[at]], dim=1)

    def add_patched(self, h: int, rows: Tensor, mask: Tensor, everywhere: Tensor, at_last: Tensor) -> None:
        """Add the KL left at the masked positions under the patch at all tokens, and at the last under that there."""
        left = torch.zeros(mask.shape, dtype=torch.float64)
        left[mask] = everywhere.double().cpu()
        self.left["sum"][h, rows] = left.sum(dim=-1).float()
        self.left["all"][h, rows] = left[torch.arange(len(rows)), self.last[rows]].float()
        self.left["last"][h, rows] = at_last.float().cpu()

    def result(self, n_shown: int) -> Localisation:
        """The measurements, with next tokens at the last tokens and at the `n_shown` of the largest KL."""
        shown = torch.zeros(self.kl.shape, dtype=torch.bool)
        largest = self.kl.nan_to_num(-1).flatten().topk(min(n_shown, self.kl.numel())).indices
        shown.view(-1)[largest] = True
        shown[torch.arange(len(shown)), self.last] = True
        return Localisation(
            hook_names=self.hook_names,
            last=self.last,
            kl=self.kl,
            patched_last=self.left["last"],
            patched_all=self.left["all"],
            patched_sum=self.left["sum"],
            norms=self.norms,
            difference=self.difference,
            last_activations=self.last_activations,
            top_ids=self.top_ids.masked_fill(~shown[..., None, None], -1),
            top_probs=self.top_probs.masked_fill(~shown[..., None, None], float("nan")),
        )

    @staticmethod
    def _places(rows: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Prompt and position of each masked token, in order."""
        row, pos = mask.nonzero(as_tuple=True)
        return rows[row], pos
