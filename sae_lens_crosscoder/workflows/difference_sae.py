"""A BatchTopK SAE on the difference of two models, the dictionary that a crosscoder is compared with."""

from tempfile import TemporaryDirectory
from typing import Any

import torch

from sae_lens_crosscoder.analysis.baselines.directions import DifferenceDirections, measured_directions
from sae_lens_crosscoder.analysis.baselines.rows import DifferenceRows
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.batchtopk import BatchTopKTrainingCrosscoder
from sae_lens_crosscoder.crosscoders.batchtopk_config import BatchTopKCrosscoderTrainingConfig
from sae_lens_crosscoder.loading.load import load
from sae_lens_crosscoder.synthetic.null_streams import shuffled_batches
from sae_lens_crosscoder.training import CrosscoderTrainer, CrosscoderTrainerConfig


@validate_arguments
def train_difference_sae(
    rows: DifferenceRows,
    *,
    d_sae: int = 256,
    k: float | int = 12,
    n_steps: int = 250,
    batch_size: int = 512,
    lr: float = 2e-3,
    seed: int = 0,
    device: str = "cpu",
) -> DifferenceDirections:
    """Train a BatchTopK SAE on chat - base: the package's crosscoder of one model.

    The rate warms up over the first 5 % of steps and decays over the last 20 %.

    Args:
        rows: chat - base to train on, at least one batch.
        d_sae: number of latents.
        k: latents active per token, on average over a batch.
        n_steps: training steps.
        batch_size: tokens per step.
        lr: learning rate.

    Raises:
        ValueError: for fewer rows than a batch.
    """
    d_model = rows.difference.shape[1]
    fields: dict[str, Any] = {"d_models": (d_model,), "d_sae": d_sae, "k": k, "activation_scaling": "per_model"}
    cfg = CrosscoderTrainerConfig(
        total_training_samples=n_steps * batch_size,
        train_batch_size_samples=batch_size,
        lr=lr,
        lr_warm_up_steps=n_steps // 20,
        lr_decay_steps=n_steps // 5,
        log_frequency=n_steps,
        device=device,
        max_norm_ratio=None,  # of the models' norms `rows` takes care; large differences are the point
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sae = BatchTopKTrainingCrosscoder(BatchTopKCrosscoderTrainingConfig(**fields))
    CrosscoderTrainer(cfg, sae, shuffled_batches(rows.difference, batch_size, seed)).fit()
    with TemporaryDirectory() as folder, torch.no_grad():
        sae.save_inference_model(folder)
        trained: Any = load(folder)
        return measured_directions(
            "sae",
            [f"latent {j}" for j in range(d_sae)],
            trained.W_dec.detach(),
            trained.b_dec.detach(),
            rows.difference,
            encoder=trained.W_enc.detach(),
            # The SAE reads the difference itself, the encoder here reads it without the bias.
            encoder_bias=trained.b_enc.detach() + trained.b_dec.detach() @ trained.W_enc.detach(),
            threshold=trained.thresholds.detach(),
        )
