#!/usr/bin/env bash
# A short BatchTopK training in SAELens saves a threshold that is too low.
#
# Seen with: sae-lens==6.54.12 torch==2.13.0 transformers==5.23.0
# The running mean of the threshold starts at zero and is not corrected for its start, with rate 0.01 per step: after
# 60 steps it is 45 % of what it tends to. The saved JumpReLU SAE switches on 100 latents per row where training had 8;
# dividing by 1 - 0.99 ** steps leaves 54, because early thresholds were lower. Train for several hundred steps.
#
# Fails if the behaviour changes. Needs Python 3.11 or newer and a package index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q sae-lens==6.54.12 torch==2.13.0 transformers==5.23.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput

torch.manual_seed(0)
k, steps = 8, 60
sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=32, d_sae=256, k=k, device="cpu"))
optimizer = torch.optim.Adam(sae.parameters(), lr=1e-3)
rows = torch.randn(512, 32)
for step in range(steps):
    dead = torch.zeros(256, dtype=torch.bool)
    out = sae.training_forward_pass(
        TrainStepInput(sae_in=rows, coefficients={}, dead_neuron_mask=dead, n_training_steps=step, is_logging_step=False)
    )
    optimizer.zero_grad()
    out.loss.backward()
    optimizer.step()
with torch.no_grad():
    l0 = (sae.encode(rows) > 0).float().sum(-1).mean().item()
    pre = torch.relu(rows @ sae.W_enc - sae.b_dec @ sae.W_enc + sae.b_enc) if sae.cfg.apply_b_dec_to_input else torch.relu(rows @ sae.W_enc + sae.b_enc)
    scores = pre * sae.W_dec.norm(dim=-1)
    threshold = float(sae.topk_threshold)
    saved_l0 = (scores > threshold).float().sum(-1).mean().item()
    corrected = (scores > threshold / (1 - 0.99**steps)).float().sum(-1).mean().item()
print(f"k {k}, L0 in training {l0:.1f}; with the saved threshold {saved_l0:.1f}, with a corrected one {corrected:.1f}")
assert saved_l0 > 1.5 * k and corrected < saved_l0
PYTHON
