"""FirstLook: what two models differ in, before any crosscoder is trained."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.causal.localisation.recommendation import Recommendation
from sae_lens_crosscoder.data.contrasts import Contrast
from sae_lens_crosscoder.storage.atomic import replacing_files
from sae_lens_crosscoder.storage.checksums import file_sha256, validate_checksums
from sae_lens_crosscoder.storage.json_files import load_json
from sae_lens_crosscoder.storage.tables import load_table
from sae_lens_crosscoder.storage.tensor_files import load_tensors, save_tensors

_TABLES = ("hooks", "prompts", "groups", "positions", "directions")
_FACTS_FILENAME, _TENSORS_FILENAME = "first_look.json", "first_look.safetensors"
_CONTRAST = ("tokens", "positions", "positive", "held_out")


@dataclass(frozen=True, kw_only=True)
class FirstLook:
    """A first look at two models; KL in nats, from the chat model's prediction to the base model's.

    A prompt's last token predicts the answer's first token. Changed prompts are those whose KL there stands apart, or
    the upper quarter.
    """

    recommendation: Recommendation
    hooks: pd.DataFrame
    """A row per hook, by `hook_name`. `difference_last` and `difference_all`: median of |chat - base| / |base| at the
    last tokens of the changed prompts and over all ordinary tokens. `position_0_base`, `position_0_chat` and
    `special_base`, `special_chat`: norm at position 0 (median) and at later special tokens (largest), relative to the
    median norm. `n_left_out`: tokens that dominate. `share_last` with its 95 % interval, `share_all`: share of the KL
    of the changed prompts that chat's activation brings back, patched at the last token and at all tokens.
    `share_tokens`: the same for the KL after all tokens of all prompts."""
    prompts: pd.DataFrame
    """A row per prompt, the most changed first: `text` (its end), `n_tokens`, `kl_nats` at the last token,
    `kl_nats_tokens` (mean over its tokens), `changed`, and both models' most likely next tokens."""
    groups: pd.DataFrame
    """A row per token group, and `all`: `n_tokens`, mean `kl_nats`, and `frac_kl`, its share of the whole."""
    positions: pd.DataFrame
    """The most changed positions of all prompts: `prompt`, `position`, `group`, `kl_nats`, the text before
    (`context`), the token, and both models' next tokens with their probabilities."""
    directions: pd.DataFrame
    """A row per baseline direction at the recommended hook and at the one that brings back half: its `kind` and
    `direction` (name), `norm`, `explained` (of the difference), `strength` (mean activation on the changed prompts),
    the tokens it raises and lowers, and what base + strength x direction does at the last token of changed prompts:
    `share_kl` (brought back), `kl_from_base`, `frac_chat_token` (predicts chat's most likely token), `next_token`."""
    vectors: Float[Tensor, "direction d_model"]
    """The directions in raw units, in the rows' order."""
    contrast: Contrast | None
    """The changed prompts against the others, or None if either are too few."""
    manifest: dict[str, Any]
    """Models, number of prompts and tokens, how the prompts were split, settings."""

    def __str__(self) -> str:
        """The recommendation in two lines."""
        hook = self.recommendation.hook_name or "none"
        head = f"Recommended hook: {hook} (confidence: {self.recommendation.confidence})."
        return f"{head}\n{self.recommendation.reason}"

    def save(self, folder: str | Path) -> Path:
        """Write the tables (Parquet), the vectors and `first_look.json` into a folder, which is created."""
        tensors = {"vectors": self.vectors.contiguous()}
        facts: dict[str, Any] = {"recommendation": self.recommendation.to_dict(), "manifest": self.manifest}
        if self.contrast is not None:
            tensors |= {name: getattr(self.contrast, name).contiguous() for name in _CONTRAST}
            facts["contrast"] = {"name": self.contrast.name, "model": self.contrast.model}
        with replacing_files(Path(folder), lambda name: name != _FACTS_FILENAME) as partial:
            for name in _TABLES:
                getattr(self, name).to_parquet(partial / f"{name}.parquet")
            save_tensors(tensors, partial / _TENSORS_FILENAME)
            facts["files"] = {path.name: file_sha256(path) for path in sorted(partial.iterdir())}
            (partial / _FACTS_FILENAME).write_text(json.dumps(facts, indent=1, allow_nan=False) + "\n")
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> "FirstLook":
        """Read what `save` wrote; a ValueError names a file that is missing or damaged."""
        folder = Path(folder)
        if missing := [name for name in (_FACTS_FILENAME, _TENSORS_FILENAME) if not (folder / name).exists()]:
            raise ValueError(f"{folder} has no {missing[0]}. Create it with slc.first_look(...).save(folder).")
        facts = load_json(folder / _FACTS_FILENAME)
        validate_checksums(folder, facts.get("files", {}), "Save the first look again.")
        tensors, _ = load_tensors(folder / _TENSORS_FILENAME)
        named = facts.get("contrast")
        fields: dict[str, Any] = {} if named is None else {**named, **{name: tensors[name] for name in _CONTRAST}}
        return cls(
            recommendation=Recommendation.from_dict(facts["recommendation"]),
            vectors=tensors["vectors"],
            contrast=Contrast(**fields) if fields else None,
            manifest=facts["manifest"],
            **{name: load_table(folder / f"{name}.parquet") for name in _TABLES},
        )


EMPTY_DIRECTIONS = pd.DataFrame(
    {
        name: pd.Series(dtype=dtype)
        for name, dtype in (
            *(("hook_name", object), ("kind", object), ("direction", object)),
            *((name, float) for name in ("norm", "explained", "strength")),
            *(("raised", object), ("lowered", object)),
            *((name, float) for name in ("share_kl", "kl_from_base", "frac_chat_token")),
            ("next_token", object),
        )
    }
)
"""The columns of `FirstLook.directions`."""
