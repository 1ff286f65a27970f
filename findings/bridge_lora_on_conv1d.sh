#!/usr/bin/env bash
# TransformerBridge drops a LoRA adapter on GPT-2's c_attn without a word.
#
# Seen with: transformer-lens==3.9.0 peft==0.21.2 torch==2.13.0 transformers==5.23.0
# The bridge splits GPT-2's fused projection (a Conv1D) into q, k and v when it is built, from the weights under the
# adapter. Its logits are those of the model without the adapter; nothing is raised or logged. Compare the logits
# with the wrapped model's.
#
# Fails if the behaviour changes. Needs Python 3.11 or newer and a package index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformer-lens==3.9.0 peft==0.21.2 torch==2.13.0 transformers==5.23.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import tempfile

import torch
from peft import LoraConfig, get_peft_model
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel

torch.manual_seed(0)
config = GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=64, n_positions=32, architectures=["GPT2LMHeadModel"])
base = GPT2LMHeadModel(config).eval()
folder = tempfile.mkdtemp()
base.save_pretrained(folder)
lora = LoraConfig(target_modules=["c_attn"], r=4, init_lora_weights=False, fan_in_fan_out=True)
adapted = get_peft_model(base, lora).eval()
tokens = torch.arange(16)[None]
with torch.no_grad():
    with_adapter = adapted(tokens).logits
    with adapted.disable_adapter():
        without = adapted(tokens).logits
    bridge = TransformerBridge.boot_transformers(folder, hf_model=adapted.get_base_model(), device="cpu")
    logits = bridge(tokens, return_type="logits")
moved = (with_adapter - without).abs().max().item()
from_adapted = (logits - with_adapter).abs().max().item()
from_base = (logits - without).abs().max().item()
print(f"the adapter moves logits by {moved:.3f}; the bridge is {from_adapted:.3f} from the adapted model and {from_base:.1e} from the base")
assert moved > 0.1 and from_adapted > 0.1 and from_base < 1e-5
PYTHON
