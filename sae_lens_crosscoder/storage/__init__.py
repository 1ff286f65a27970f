"""Files on disk: strict JSON, checksums, atomic writes, resumable accumulators, secrets. Internal."""
