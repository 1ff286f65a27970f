"""DifferenceDirections: directions that explain chat - base without a crosscoder, the result of every baseline."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.arguments import validate_arguments, validate_width
from sae_lens_crosscoder.storage.atomic import replacing_files
from sae_lens_crosscoder.storage.checksums import file_sha256, validate_checksums
from sae_lens_crosscoder.storage.json_files import load_json
from sae_lens_crosscoder.storage.tensor_files import load_tensors, save_tensors

Kind = Literal["mean_difference", "pca", "sae"]
_DIRECTIONS, _FACTS = "directions.safetensors", "directions.json"
_TENSORS = ("directions", "encoder", "encoder_bias", "bias", "threshold", "explained")
_BLOCK = 4096


@dataclass(frozen=True, kw_only=True)
class DifferenceDirections:
    """Directions d_j that explain y = chat - base - bias of a token by `a_j d_j`, with activations a_j.

    Mean differences and principal components have signed activations, the token's coordinate along the direction. An
    SAE's are not negative, and 0 on most tokens.
    """

    kind: Kind
    names: tuple[str, ...]
    """One name per direction: a group, a component, a latent."""
    directions: Float[Tensor, "direction d_model"]
    """In raw units of the residual stream, for an activation of 1."""
    encoder: Float[Tensor, "d_model direction"]
    encoder_bias: Float[Tensor, " direction"]
    bias: Float[Tensor, " d_model"]
    """The part of the difference that all tokens share; 0 for a mean difference that is not against another group."""
    threshold: Float[Tensor, " direction"] | None
    """Activations not above it are 0; None for signed activations."""
    explained: Float[Tensor, " direction"]
    """Share of sum |y|^2 that each direction explains alone, 1 - sum |y - a_j d_j|^2 / sum |y|^2."""
    explained_together: float
    """The same for all of them: an SAE's reconstruction, or else the best one within their span."""
    n_tokens: int
    """Tokens that the directions were computed from."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind={self.kind!r} is not one of {get_args(Kind)}.")
        n, d_model = self.directions.shape
        shapes = {"encoder": (d_model, n), "encoder_bias": (n,), "bias": (d_model,), "explained": (n,)}
        for name, shape in shapes.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(
                    f"{name} has shape {tuple(getattr(self, name).shape)}, expected {shape} for {n} directions of "
                    f"width {d_model}."
                )
        if len(self.names) != n:
            raise ValueError(f"Got {len(self.names)} names for {n} directions. Pass one name per direction.")

    @validate_arguments
    def activations(self, difference: Float[Tensor, "token d_model"]) -> Float[Tensor, "token direction"]:
        """Activations on chat - base of given tokens, in raw units."""
        validate_width("difference", difference, len(self.bias))
        acts = (difference.to(self.bias) - self.bias) @ self.encoder + self.encoder_bias
        return acts if self.threshold is None else acts.relu() * (acts > self.threshold)

    @validate_arguments
    def contrast_shares(
        self, positive: Float[Tensor, "positive d_model"], negative: Float[Tensor, "negative d_model"]
    ) -> Float[Tensor, " direction"]:
        """Share of each direction in a contrast, the mean difference of `positive` minus that of `negative` tokens.

        The mean activation's change times how far the direction reaches along the contrast, relative to the contrast's
        length: 1 writes all of it, below 0 works against it.

        Args:
            positive: chat - base of the tokens that show the contrast.
            negative: chat - base of the tokens that do not.
        """
        contrast = positive.double().mean(dim=0) - negative.double().mean(dim=0)
        change = self.activations(positive).double().mean(dim=0) - self.activations(negative).double().mean(dim=0)
        return change * (self.directions.double() @ contrast.to(self.directions.device)) / contrast.square().sum()

    @property
    def table(self) -> pd.DataFrame:
        """One row per direction: its `norm` in raw units and what it has `explained`."""
        columns = {"norm": self.directions.norm(dim=-1).tolist(), "explained": self.explained.tolist()}
        return pd.DataFrame(columns, index=pd.Index(self.names, name=self.kind))

    @validate_arguments
    def save(self, folder: str | Path) -> Path:
        """Write `directions.safetensors` and `directions.json` into a folder, which is created."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
        facts = {"kind": self.kind, "names": list(self.names), "n_tokens": self.n_tokens}
        with replacing_files(Path(folder), lambda name: name != _FACTS) as partial:
            save_tensors(contiguous, partial / _DIRECTIONS)
            facts |= {"explained_together": self.explained_together}
            facts |= {"files": {_DIRECTIONS: file_sha256(partial / _DIRECTIONS)}}
            (partial / _FACTS).write_text(pd.Series(facts).to_json(double_precision=15) + "\n")
        return Path(folder)

    @classmethod
    @validate_arguments
    def load(cls, folder: str | Path) -> "DifferenceDirections":
        """Read what `save` wrote."""
        folder = Path(folder)
        facts = load_json(folder / _FACTS)
        validate_checksums(folder, facts.get("files", {}), "Save the directions again.")
        tensors, _ = load_tensors(folder / _DIRECTIONS)
        together = facts["explained_together"]
        return cls(
            kind=facts["kind"],
            names=tuple(facts["names"]),
            n_tokens=facts["n_tokens"],
            explained_together=float("nan") if together is None else together,
            **{name: tensors.get(name) for name in _TENSORS},  # pyright: ignore[reportArgumentType]
        )


@torch.no_grad()
def measured_directions(
    kind: Kind,
    names: Sequence[str],
    directions: Float[Tensor, "direction d_model"],
    bias: Float[Tensor, " d_model"],
    difference: Float[Tensor, "token d_model"],
    *,
    encoder: Float[Tensor, "d_model direction"] | None = None,
    encoder_bias: Float[Tensor, " direction"] | None = None,
    threshold: Float[Tensor, " direction"] | None = None,
) -> DifferenceDirections:
    """Directions with what they explain of the difference on the given tokens.

    Args:
        encoder: by default the coordinate along each direction, 1 where y is the direction itself.
    """
    directions, bias = directions.float(), bias.float()
    if encoder is None:
        squares = directions.square().sum(dim=-1, keepdim=True)
        encoder = torch.where(squares > 0, directions / squares, torch.zeros_like(directions)).T
    unmeasured = DifferenceDirections(
        kind=kind,
        names=tuple(names),
        directions=directions,
        encoder=encoder.float(),
        encoder_bias=torch.zeros(len(directions)) if encoder_bias is None else encoder_bias.float(),
        bias=bias,
        threshold=threshold,
        explained=torch.zeros(len(directions)),
        explained_together=float("nan"),
        n_tokens=len(difference),
    )
    explained, together = _explained(unmeasured, difference)
    return replace(unmeasured, explained=explained, explained_together=together)


def _explained(
    directions: DifferenceDirections, difference: Float[Tensor, "token d_model"]
) -> tuple[Float[Tensor, " direction"], float]:
    """`explained` and `explained_together`, with sums in float64; nan where the difference is 0 everywhere."""
    d = directions.directions.double()
    squares = d.square().sum(dim=-1)
    basis = torch.linalg.svd(d, full_matrices=False)
    span = basis.Vh[1e-6 * basis.S.max().clamp_min(1e-30) < basis.S]
    alone, total, together = torch.zeros(len(d), dtype=torch.float64), 0.0, 0.0
    for block in difference.split(_BLOCK):
        y = block.double() - directions.bias.double()
        acts = directions.activations(block).double()
        alone += (2 * acts * (y @ d.T) - acts.square() * squares).sum(dim=0)
        total += float(y.square().sum())
        rest = y - acts @ d if directions.kind == "sae" else y - y @ span.T @ span
        together += float(y.square().sum() - rest.square().sum())
    return (alone / total).float(), together / total if total > 0 else float("nan")
