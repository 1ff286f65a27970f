"""Train a crosscoder on activations you already have, and let planted truth say whether the verdicts are right.

No models are needed: anything that yields stacked activations of shape (batch, d_in), base first, can be trained on.
"""

import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.synthetic import score_card, shuffled_batches, truth_table, world_a

world = world_a(seed=0)  # 174 concepts, 16 of them only in the chat model
torch.manual_seed(0)  # of the crosscoder's start
training = world.sample(60_000, seed=1).activations

crosscoder = slc.BatchTopKTrainingCrosscoder(slc.BatchTopKCrosscoderTrainingConfig(d_model=64, d_sae=256, k=world.l0))
cfg = slc.CrosscoderTrainerConfig(
    total_training_samples=1500 * 512,
    train_batch_size_samples=512,
    lr=5e-3,
    lr_warm_up_steps=50,
    lr_decay_steps=300,
    dead_feature_window=200,
)
trainer = slc.CrosscoderTrainer(cfg, crosscoder, shuffled_batches(training, 512, seed=0))
trainer.fit()
print(trainer.history[["step", "loss", "fve_base", "fve_chat", "l0", "n_dead"]].round(3).to_string(index=False))

crosscoder.save_inference_model("planted_crosscoder")
crosscoder = slc.load("planted_crosscoder")

fresh = world.sample(24_000, seed=2)
diagnosis = slc.diagnose(crosscoder, slc.EvalData(activations=fresh.activations.split(2048)))
diagnosis.save("planted_crosscoder")
latents = diagnosis.latents
print(latents.groupby("label").verdict.value_counts().to_string())
print(diagnosis.conclusion)
print(score_card(world, truth_table(world, crosscoder, fresh), latents))
