#!/usr/bin/env bash
# SAELens loads a saved SAE whose config holds an unknown key, and drops the key.
#
# Seen with: sae-lens==6.54.12 torch==2.13.0 transformers==5.23.0
# A key that another version or plugin wrote (here a scale that inputs need) is left out without a warning, and the
# SAE encodes as if it were not there. Compare the keys of cfg.json with the config class before trusting a foreign
# folder.
#
# Fails if the behaviour changes. Needs Python 3.11 or newer and a package index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q sae-lens==6.54.12 torch==2.13.0 transformers==5.23.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import json
from pathlib import Path

import torch
from sae_lens import SAE, StandardSAE, StandardSAEConfig

torch.manual_seed(0)
StandardSAE(StandardSAEConfig(d_in=8, d_sae=16)).save_model("sae")
path = Path("sae/cfg.json")
path.write_text(json.dumps(json.loads(path.read_text()) | {"input_scale": 50.0}))
loaded = SAE.load_from_disk("sae")
kept = "input_scale" in json.dumps(loaded.cfg.to_dict())
print(f"loaded without an error; input_scale is in the loaded config: {kept}")
assert not kept
PYTHON
