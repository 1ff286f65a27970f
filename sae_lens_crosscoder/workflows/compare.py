"""Compare both models on one prompt, and find the latents that account for the difference at one position."""

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from sae_lens_crosscoder.analysis.diagnosis.classes import delta_norm, labels_of
from sae_lens_crosscoder.analysis.statistics.difference import DifferenceShares, difference_shares
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.causal import Responses, latent_effects, next_tokens, token_kl
from sae_lens_crosscoder.causal.forward.prompt import Prompt, prompt_tokens
from sae_lens_crosscoder.causal.forward.resume import can_resume
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, hook_name_of, validate_inference
from sae_lens_crosscoder.crosscoders.origin import validate_pair
from sae_lens_crosscoder.crosscoders.two_models import TwoModels
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.report import Comparison
from sae_lens_crosscoder.report.explorer.token_texts import TokenTexts
from sae_lens_crosscoder.stacking import hook_of_model

_EFFECTS = ["kl_change_added", "kl_change_removed", "raises", "lowers"]
_TABLE_COLUMNS = ["exclusive", "verdict", "user_label", "explanation"]


@validate_arguments
@torch.no_grad()
def compare(
    crosscoder: InferenceCrosscoder,
    pair: HookedModelPair,
    prompt: Prompt,
    *,
    models: Sequence[str] | None = None,
    position: int = -1,
    k: int = 6,
    n_latents: int = 10,
    latents: pd.DataFrame | None = None,
) -> Comparison:
    """Compare both models on a prompt, and rank the latents behind their difference at one position.

    Args:
        prompt: messages, to which the chat template is applied; a text, which gets BOS and no template; or one row of
            token ids, such as `chat_tokens` makes of a conversation.
        models: names of the two models to compare, as in `diagnose`; needed for more than two.
        position: the token after which the models are compared.
        k: number of next tokens shown per model.
        n_latents: number of latents shown. Each costs two passes through the chat model's later layers to measure its
            effects, which are left out for models whose later layers cannot run alone.
        latents: the table of `diagnose`, for verdicts, labels and explanations.

    Raises:
        ValueError: as `next_tokens`, `difference_shares` and `latent_effects`; for a position outside the prompt,
            n_latents below 1, or a patched pair.
    """
    crosscoder = validate_inference(crosscoder, "compare")
    two = TwoModels.of(crosscoder, models, "compare")
    hook_name = validate_pair(crosscoder, pair)
    tokens = prompt_tokens(pair, prompt)
    n = tokens.shape[-1]
    if not -n <= position < n:
        raise ValueError(f"position={position} is outside the prompt of {n} tokens: expected {-n} to {n - 1}.")
    if n_latents < 1:
        raise ValueError(f"n_latents={n_latents} must be at least 1.")
    position %= n
    of_two = pair.of(*two.names) if len(pair.members) > 2 else pair
    predictions = next_tokens(of_two, tokens, k, position=position)
    if "base_patched" in predictions:
        raise ValueError("The pair is patched: leave the patch, or use slc.causal.next_tokens and token_kl inside it.")
    shares = difference_shares(crosscoder, pair.activations(tokens, hook_name)[0, position], models=models)
    return Comparison(
        next_tokens=predictions,
        token_kl=token_kl(of_two, tokens),
        latents=_with_effects(pair, two, tokens[:, : position + 1], shares, n_latents, latents),
        shares=shares,
        position=position,
        texts=tuple(map(TokenTexts(pair.tokenizer), tokens[0].tolist())),
    )


def _with_effects(
    pair: HookedModelPair,
    two: TwoModels,
    prompt: Int[Tensor, "1 pos"],
    shares: DifferenceShares,
    n_latents: int,
    latents: pd.DataFrame | None,
) -> pd.DataFrame:
    shown = shares.latents.head(n_latents)
    crosscoder, (_, chat) = two.crosscoder, two.places
    norms = crosscoder.decoder_norms.detach().double()[shown.index.tolist()][:, list(two.places)]
    table = shown.assign(delta_norm=delta_norm(norms).tolist(), label=labels_of(norms))
    if latents is not None:
        table = table.join(latents[[name for name in _TABLE_COLUMNS if name in latents]])
    if len(shown) and can_resume(pair.members[chat], hook_of_model(hook_name_of(crosscoder), chat)):
        # `latent_effects` measures the prediction of the last token, whose id does not matter.
        tokens = torch.cat([prompt, prompt[:, -1:]], dim=1)
        last = torch.zeros_like(tokens, dtype=torch.bool)
        last[:, -1] = True
        effects = latent_effects(crosscoder, pair, Responses(tokens, last), shown.index.tolist(), models=two.names, k=3)
        table = table.join(effects[_EFFECTS])
    return table
