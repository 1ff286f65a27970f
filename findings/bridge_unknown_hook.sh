#!/usr/bin/env bash
# TransformerBridge.run_with_hooks ignores a hook name that does not exist.
#
# Seen with: transformer-lens==3.9.0 torch==2.13.0 transformers==5.23.0
# HookedTransformer raises a KeyError for the same call. With the bridge a mistyped patch runs to the end and
# measures the unpatched model: an ablation without effect. Check names against hook_dict before a run.
#
# Fails if the behaviour changes. Needs Python 3.11 or newer and a package index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformer-lens==3.9.0 torch==2.13.0 transformers==5.23.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.model_bridge import TransformerBridge

torch.manual_seed(0)
shape = dict(n_layers=2, d_model=32, n_heads=2, d_head=16, d_mlp=64, d_vocab=50, n_ctx=32, act_fn="gelu")
tokens = torch.arange(8)[None]
zero = [("blocks.1.hook_resid_pots", lambda activation, hook: activation * 0)]
bridge = TransformerBridge.boot_native(shape)
with torch.no_grad():
    moved = (bridge.run_with_hooks(tokens, fwd_hooks=zero) - bridge(tokens)).abs().max().item()
try:
    HookedTransformer(HookedTransformerConfig(**shape)).run_with_hooks(tokens, fwd_hooks=zero)
    raised = "nothing"
except KeyError:
    raised = "KeyError"
print(f"a hook that does not exist moves the bridge's logits by {moved}; HookedTransformer raises {raised}")
assert moved == 0.0 and raised == "KeyError"
PYTHON
