"""Export of latent activations as delphi (github.com/EleutherAI/delphi) caches them for its explainers and scorers."""

import json
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.numpy import save_file
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.activations.harvest import harvest, validate_activations
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, validate_inference
from sae_lens_crosscoder.crosscoders.origin import validate_pair
from sae_lens_crosscoder.crosscoders.sparse_step.pairs import pairs_of
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.storage.atomic import atomic_folder


@validate_arguments
def write_delphi_cache(
    crosscoder: InferenceCrosscoder,
    pair: HookedModelPair,
    tokens: Tensor,
    folder: str | Path,
    *,
    n_splits: int = 5,
    batch_size: int = 32,
) -> Path:
    """Write every latent's activations as delphi 0.1 caches them, for `LatentDataset(raw_dir=folder)`.

    In `folder/HOOK_NAME/`, a file `FIRST_LAST.safetensors` for every range of latents holds `locations` (prompt,
    position, latent minus FIRST), `activations` in float16 and `tokens`; `config.json` names the model whose tokenizer
    delphi loads. All active pairs of token and latent are held in memory, 14 bytes each. Tokens that training left out
    because they dominate have no activations.

    Args:
        tokens: ids of shape (batch, pos).
        n_splits: number of files.
        batch_size: prompts per forward pass.

    Returns:
        The folder of the hook.

    Raises:
        ValueError: for a training crosscoder, a pair it was not trained on, more splits than latents, or activations
            that overflow float16.
    """
    crosscoder = validate_inference(crosscoder, "write_delphi_cache")
    d_sae = crosscoder.cfg.d_sae
    if not 1 <= n_splits <= d_sae:
        raise ValueError(f"n_splits={n_splits} must be between 1 and {d_sae}, the number of latents.")
    metadata, hook_name = crosscoder.cfg.metadata, validate_pair(crosscoder, pair)
    locations, activations = _active(crosscoder, pair, tokens, hook_name, batch_size)
    target = Path(folder) / hook_name
    borders = torch.linspace(0, d_sae, n_splits + 1).long().tolist()
    config = {
        "dataset_repo": metadata.dataset_path or "",
        "dataset_split": "train",
        "dataset_name": "",
        "dataset_column": "text",
        "batch_size": batch_size,
        "cache_ctx_len": tokens.shape[1],
        "n_tokens": tokens.numel(),
        "n_splits": n_splits,
        "model_name": metadata.chat_model_name or "",
    }
    with atomic_folder(target) as partial:
        for first, end in pairwise(borders):
            inside = (locations[:, 2] >= first) & (locations[:, 2] < end)
            places = locations[inside] - torch.tensor([0, 0, first], dtype=torch.int32)
            fits = max(*tokens.shape, end - first) <= 2**16
            arrays = {
                "locations": places.numpy().astype("uint16" if fits else "uint32"),
                "activations": activations[inside].numpy(),
                "tokens": tokens.cpu().numpy(),
            }
            save_file(arrays, partial / f"{first}_{end - 1}.safetensors")
        (partial / "config.json").write_text(json.dumps(config, indent=4) + "\n")
    return target


@torch.no_grad()
def _active(
    crosscoder: InferenceCrosscoder, pair: HookedModelPair, tokens: Tensor, hook_name: str, batch_size: int
) -> tuple[Int[Tensor, "pairs 3"], Float[Tensor, " pairs"]]:
    """Prompt, position and latent of every active pair, in this order, and its activation."""
    locations: list[Tensor] = []
    activations: list[Tensor] = []
    limits = crosscoder.trained_limits
    starts = range(0, len(tokens), batch_size)
    batches = harvest(pair, tokens, hook_name, batch_size)
    for start, batch in zip(tqdm(starts, desc="Caching", unit="batch", leave=False), batches, strict=True):
        batch = batch.to(crosscoder.W_dec)
        validate_activations(batch, crosscoder.layout, f"after the first {start} prompts")
        pairs, scores = pairs_of(crosscoder.encode_sparse(batch))
        is_used = limits.ordinary(batch)[pairs.token]
        pairs, scores = pairs[is_used], scores[is_used]
        prompt, position = start + pairs.token // tokens.shape[1], pairs.token % tokens.shape[1]
        locations.append(torch.stack([prompt, position, pairs.latent], dim=1).int().cpu())
        activations.append(scores.half().cpu())
        if not bool(torch.isfinite(activations[-1]).all()):
            raise ValueError(f"An activation of {float(scores.max()):.0f} overflows float16, delphi's type.")
    return torch.cat(locations), torch.cat(activations)
