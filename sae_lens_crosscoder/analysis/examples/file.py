"""Max-activating examples on disk: one file, from which single latents are loaded."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sae_lens_crosscoder.analysis.examples.text import marked_text
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.stacking import StackedLayout
from sae_lens_crosscoder.storage.checksums import digest, mismatch, named_fingerprint
from sae_lens_crosscoder.storage.field_types import naming_file
from sae_lens_crosscoder.storage.json_files import parse_json
from sae_lens_crosscoder.storage.names import printable_names
from sae_lens_crosscoder.storage.tensor_files import save_tensors

EXAMPLES_FILENAME = "examples.safetensors"
"""In a crosscoder's folder."""
FORMAT_VERSION = 3
_PER_LATENT = ("b_enc", "n_contexts", "scores", "shares", "token", "token_ids")
_CHECKSUM = "sha256"
"""The tensor that holds every latent's checksum, so that a latent can be checked without reading all others."""


@dataclass(frozen=True)
class Example:
    """One context of a latent: the tokens around its peak, the first token with the context's highest score."""

    prompt: int
    position: int
    """Place of the peak: `tokens[prompt, position]` of the tokens that the examples were collected from."""
    peak: int
    """Index of the peak in the window."""
    token_ids: Int[Tensor, " pos"]
    scores: Float[Tensor, " pos"]
    """nan, like the shares, on tokens outside the token mask."""
    shares: Float[Tensor, "pos model"]
    """`<e_j^m, h^m>`, each model's part of the pre-activation; with b_enc they add up to an active score."""

    @property
    def score(self) -> float:
        """Highest score of the context."""
        return float(self.scores[self.peak])

    @property
    def is_strong(self) -> Bool[Tensor, " pos"]:
        """Mask of tokens whose score is at least half the peak's."""
        return self.scores >= self.score / 2

    def text(self, tokenizer: Any) -> str:
        """Decode the window on one line, with strong tokens in «»."""
        return marked_text(self.token_ids, self.is_strong, tokenizer)


@dataclass(frozen=True)
class LatentExamples:
    """Contexts of one latent; a dead one has none."""

    latent: int
    n_contexts: int
    """Contexts in which it is active."""
    b_enc: float
    top: tuple[Example, ...]
    """The contexts with the highest scores, highest first."""
    quantiles: tuple[tuple[Example, ...], ...]
    """Bands of a uniform sample of its contexts, each sorted by score: the weakest band first."""
    model_names: tuple[str, ...]

    def show(self, tokenizer: Any, n: int = 3) -> str:
        """Format the first `n` examples of the top and of each band, with the models' shares at the peak."""
        lines = [f"latent {self.latent}: active in {self.n_contexts} contexts"]
        n_bands = len(self.quantiles)
        groups = [("top", self.top)]
        groups += [(f"quantile {n_bands - q} of {n_bands}", band) for q, band in enumerate(reversed(self.quantiles))]
        for title, examples in groups:
            lines += [title] if examples else []
            for example in examples[:n]:
                parts = zip(self.model_names, example.shares[example.peak].tolist(), strict=True)
                shares = ", ".join(f"{name} {share:+.2f}" for name, share in parts)
                lines.append(f"  {example.score:.2f} ({shares})  {example.text(tokenizer)}")
        return "\n".join(lines)


class ExamplesFile:
    """A file of `collect_examples`: `examples[latent]` loads one latent and nothing else.

    Raises:
        ValueError: for another file, or a damaged one; damage in one latent's examples is found when they are loaded.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"{str(path)!r} does not exist. Create it with slc.analysis.collect_examples.")
        try:
            self._file: Any = safe_open(self.path, "pt")
        except SafetensorError as error:
            raise ValueError(
                f"{path} is not an examples file ({error}). Create one with slc.analysis.collect_examples."
            ) from error
        metadata: dict[str, str] = self._file.metadata() or {}
        with naming_file(self.path):
            self.manifest: dict[str, Any] = parse_json(metadata.get("manifest", "{}"))
        sha256 = self.manifest.pop(_CHECKSUM, None)
        if self.manifest.get("examples_format") != FORMAT_VERSION:
            raise ValueError(
                f"{path} has examples_format={self.manifest.get('examples_format')}, but this version reads "
                f"{FORMAT_VERSION}. Create the file again with slc.analysis.collect_examples."
            )
        if sha256 != digest(self.manifest):
            raise ValueError(mismatch(self.path, "Make the file again with slc.analysis.collect_examples."))
        names = set(self._file.keys())
        if names != {*_PER_LATENT, _CHECKSUM}:
            raise ValueError(f"{path} is damaged: it holds {printable_names(names)}. Make it again.")
        if any(self._file.get_slice(name).get_shape()[:1] != [len(self)] for name in names):
            raise ValueError(f"{path} is damaged: it does not hold examples of {len(self)} latents. Make it again.")

    def __len__(self) -> int:
        """Number of latents, also of those without examples."""
        return self.manifest["n_latents"]

    def __getitem__(self, latent: int) -> LatentExamples:
        if not 0 <= latent < len(self):
            raise IndexError(f"latent={latent} does not exist: the crosscoder has latents 0 to {len(self) - 1}.")
        try:
            rows = {name: self._file.get_slice(name)[latent : latent + 1][0] for name in _PER_LATENT}
            checksum = self._file.get_slice(_CHECKSUM)[latent : latent + 1][0]
        except SafetensorError as error:
            raise ValueError(f"{self.path} cannot be read; it may be truncated. ({error})") from error
        if checksum.tolist() != _checksum(latent, rows).tolist():
            remedy = f"Latent {latent} is affected. Make the file again with slc.analysis.collect_examples."
            raise ValueError(mismatch(self.path, remedy))
        n_top, n_quantiles = self.manifest["n_top"], self.manifest["n_quantiles"]
        layout = StackedLayout(tuple(self.manifest["d_models"]), tuple(self.manifest.get("hook_names", ())))
        top = self._examples(rows, slice(0, n_top))
        sample = self._examples(rows, slice(n_top, None))
        bands: list[list[Example]] = [[] for _ in range(n_quantiles)]
        for rank, example in enumerate(sample):
            bands[rank * n_quantiles // len(sample)].append(example)
        return LatentExamples(
            latent=latent,
            n_contexts=int(rows["n_contexts"]),
            b_enc=float(rows["b_enc"]),
            top=tuple(top),
            quantiles=tuple(map(tuple, bands)),
            model_names=layout.names,
        )

    def peaks(self) -> Int[Tensor, "d_sae slot"]:
        """Place of every example's peak among all tokens, `prompt * context_size + position`; -1 without one."""
        return self._file.get_tensor("token")

    def _examples(self, rows: Mapping[str, Tensor], slots: slice) -> list[Example]:
        before, context_size = self.manifest["window"][0], self.manifest["context_size"]
        examples: list[Example] = []
        names = ("token", "token_ids", "scores", "shares")
        for token, token_ids, scores, shares in zip(*(rows[name][slots] for name in names), strict=True):
            if token < 0:  # an empty slot, and so are all after it
                break
            prompt, position = divmod(int(token), context_size)
            there = token_ids >= 0
            peak = int(there[:before].sum())
            examples.append(Example(prompt, position, peak, token_ids[there], scores[there], shares[there]))
        return examples


def save_examples(tensors: Mapping[str, Tensor], path: Path, manifest: Mapping[str, Any]) -> None:
    """Save examples atomically."""
    n_latents = len(tensors["n_contexts"])
    described = {"examples_format": FORMAT_VERSION, "n_latents": n_latents, **manifest}
    rows = ({name: tensors[name][latent] for name in _PER_LATENT} for latent in range(n_latents))
    checksums = torch.stack([_checksum(latent, row) for latent, row in enumerate(rows)])
    # In one entry, because safetensors writes several in any order.
    metadata = {"manifest": json.dumps({**described, _CHECKSUM: digest(described)})}
    save_tensors({**tensors, _CHECKSUM: checksums}, path, metadata)


def _checksum(latent: int, rows: Mapping[str, Tensor]) -> UInt8[Tensor, "32"]:
    """SHA-256 of a latent's rows and index."""
    return torch.tensor([*bytes.fromhex(digest([latent, named_fingerprint(rows)]))], dtype=torch.uint8)


@validate_arguments
def load_examples(path: str | Path) -> ExamplesFile:
    """Open a file of `collect_examples`; `examples[latent]` loads one latent."""
    return ExamplesFile(path)
