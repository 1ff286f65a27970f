"""Train on a pair of language models, diagnose, and edit both models through the pair's hooks.

The same code runs the paper's pair: use the names "google/gemma-2-2b" and "google/gemma-2-2b-it", `d_model=2304`, and
the hook "blocks.13.hook_resid_post".
"""

import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.models.tiny import TINY_CONTEXT_SIZE, TINY_DATASET, TINY_HOOK

cfg = slc.CrosscoderRunnerConfig(
    sae=slc.BatchTopKCrosscoderTrainingConfig(d_model=96, d_sae=512, k=8),
    model_name="tiny-base",
    chat_model_name="tiny-chat",
    hook_name=TINY_HOOK,
    dataset_path=TINY_DATASET,
    context_size=TINY_CONTEXT_SIZE,
    training_tokens=300 * 512,
    train_batch_size_tokens=512,
    lr=2e-3,
    lr_warm_up_steps=30,
    dead_feature_window=100,
    checkpoint_path=None,
    output_path="tiny_crosscoder",
)
runner = slc.CrosscoderTrainingRunner(cfg)
crosscoder = runner.run()
diagnosis = slc.diagnose(crosscoder, runner.held_out_data())
print(diagnosis.manifest["fve"])
columns = ["delta_norm", "label", "verdict", "nu_error", "nu_reconstruction", "n_active"]
print(diagnosis.latents.nlargest(5, "delta_norm")[columns].round(2).to_string())

# Hooks see the stack, and each model goes on with its own slice: here, with the crosscoder's reconstruction.
tokens = runner.held_out_tokens[:16]


def reconstruct(activation: torch.Tensor, hook: object) -> torch.Tensor:
    return crosscoder.decode(crosscoder.encode(activation))


with torch.no_grad():
    original = runner.pair(tokens, return_type="loss")
    spliced = runner.pair.run_with_hooks(tokens, return_type="loss", fwd_hooks=[(TINY_HOOK, reconstruct)])
print("loss per model (base, chat):", original.tolist(), "with its activations reconstructed:", spliced.tolist())
