"""One table with everything that is known about every latent."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.analysis.diagnosis.null_runs import require_nulls
from sae_lens_crosscoder.analysis.diagnosis.sums import DiagnosisSums
from sae_lens_crosscoder.analysis.diagnosis.verdict import MIN_ACTIVE, NuBounds, require_bounds
from sae_lens_crosscoder.analysis.inputs import Activations, DataSource, data_source, encoded, shard_block
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, require_inference
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.storage.accumulators import AccumulatorCheckpoint
from sae_lens_crosscoder.storage.checksums import named_fingerprint


def diagnose(
    crosscoder: InferenceCrosscoder,
    pair: HookedModelPair | None = None,
    tokens: Tensor | None = None,
    *,
    keep: Tensor | None = None,
    activations: Activations | None = None,
    null: pd.DataFrame | Sequence[pd.DataFrame] | None = None,
    free_directions: Literal["model_specific", "all"] = "model_specific",
    min_active: int = MIN_ACTIVE,
    bounds: NuBounds = "signed",
    batch_size_prompts: int = 32,
    checkpoint_path: str | Path | None = None,
) -> pd.DataFrame:
    """Classify every latent and say which of the model-specific ones are genuine.

    Args:
        crosscoder: an inference crosscoder, as `CrosscoderTrainingRunner.run()` returns or `slc.load` reads.
        pair, tokens: the two models, and held-out token ids of shape (batch, pos): not those it was trained on.
        keep: which of the tokens to diagnose on, True or False each, as `runner.held_out_kept`; None for all.
        activations: instead of a pair and tokens, raw stacked activations: one tensor, batches of them, or an
            `ActivationCache`.
        null: tables of null runs, which give q-values: crosscoders trained in the same way on a pair in which nothing
            differs, and diagnosed in the same way. Such pairs are a model and itself with jittered weights
            (`chat_model_name="NAME+jitter=0.02"`), or after more pre-training.
        free_directions: for which latents free directions are measured: those of class chat_only or base_only, or
            `all`, which takes two float64 numbers per latent and activation coordinate.
        min_active: latents that fire on fewer tokens get the verdict `rare`.
        bounds: whether a very negative nu also counts against a latent; see `verdict`.
        checkpoint_path: a file in which sums are saved every minute, and from which the same diagnosis goes on, to the
            same table, if it was interrupted. Removed at the end.

    Returns:
        A row per latent. `delta_norm` says where it writes (0 base, 1 chat), `label` is its class, `nu_error` and
        `nu_reconstruction` (with 95 % bootstrap intervals `_low`, `_high`) say whether that is an artifact, `verdict`
        sums it up. `nu_free` and `angle_degrees` compare the directions that the data prefer in both models, and
        `q_value` is the share of chance among latents as one-sided as this one. `rho_limit` (L1 only) is how weak the
        other model may have the latent and still get a decoder norm of 0. Columns ending in `_base_probe` mirror
        the nu for base-only latents, those in `_unfiltered` keep nu where its denominator may be 0, and those in `_raw`
        (only when models were scaled differently, or centred) are in the space of raw activations. `.attrs` holds the
        manifest: the conclusion in one sentence, versions, models, hook, number of tokens, FVE, L0.

    Raises:
        ValueError: for a training crosscoder, a pair it was not trained on, a null run that was trained differently,
            activations that are NaN, no data, or a checkpoint of another diagnosis.
    """
    crosscoder = require_inference(crosscoder, "diagnose")
    require_bounds(bounds)
    if free_directions not in ("model_specific", "all"):
        raise ValueError(f"free_directions={free_directions!r} is not one of 'model_specific', 'all'.")
    nulls = require_nulls(null, crosscoder)
    source = data_source(crosscoder, pair, tokens, activations, batch_size_prompts, "diagnose", keep)
    block_size = shard_block(tokens, keep)
    sums = DiagnosisSums(crosscoder, block_size, free_directions)
    checkpoint = None
    if checkpoint_path is not None:
        options = f"block_size={block_size}, free_directions={free_directions}"
        origin = {"crosscoder": named_fingerprint(crosscoder.state_dict()), "data source": source.fingerprint()}
        checkpoint = AccumulatorCheckpoint(
            checkpoint_path, "diagnosis", sums.parts, {**origin, "set of options": options}
        )
    _stream(source, crosscoder, sums, checkpoint)
    table = sums.table(nulls, min_active, bounds)
    if checkpoint is not None:
        checkpoint.remove()
    return table


@torch.no_grad()
def _stream(
    source: DataSource, crosscoder: InferenceCrosscoder, sums: DiagnosisSums, checkpoint: AccumulatorCheckpoint | None
) -> None:
    """Add all tokens, or those that the checkpoint does not hold."""
    n_seen = 0 if checkpoint is None else checkpoint.resume()
    total, seen = source.n_tokens, sums.scaling.n_tokens
    with tqdm(total=total, initial=seen, desc="Diagnosing", unit="token", unit_scale=True, leave=False) as bar:
        for n_batches, batch in enumerate(source.after(n_seen), start=n_seen + 1):
            for part in encoded(crosscoder, batch, sums.scaling.n_tokens):
                sums.add(part)
                bar.update(len(part.activations))
            if checkpoint is not None:
                checkpoint.save_if_due(n_batches)
