#!/usr/bin/env bash
# TransformerBridge.hook_dict is rebuilt at every access, so a loop over hooks costs quadratic time.
#
# Seen with: transformer-lens==3.9.0 torch==2.13.0 transformers==5.23.0
# hook_dict is a property that walks all modules and resolves all aliases. Code that is written for
# HookedTransformer, where it is a plain dictionary, and reads it once per hook takes the square of the number of
# hooks. Read it once into a variable.
#
# Fails if the behaviour changes. Needs Python 3.11 or newer and a package index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformer-lens==3.9.0 torch==2.13.0 transformers==5.23.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import time

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.model_bridge import TransformerBridge

torch.manual_seed(0)
shape = dict(n_layers=8, d_model=32, n_heads=2, d_head=16, d_mlp=64, d_vocab=50, n_ctx=32, act_fn="gelu")
plain = HookedTransformer(HookedTransformerConfig(**shape))
bridge = TransformerBridge.boot_native(shape)


def seconds_per_access(model, n=50):
    start = time.perf_counter()
    for _ in range(n):
        model.hook_dict
    return (time.perf_counter() - start) / n


same = plain.hook_dict is plain.hook_dict, bridge.hook_dict is bridge.hook_dict
ratio = seconds_per_access(bridge) / seconds_per_access(plain)
print(f"HookedTransformer keeps one dictionary: {same[0]}; the bridge: {same[1]}; an access costs {ratio:.0f} times as much")
assert same == (True, False) and ratio > 100
PYTHON
