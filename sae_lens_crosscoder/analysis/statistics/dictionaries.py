"""Two dictionaries of one shape, latent by latent: how far training moved each of them, by index and by best match."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor

from sae_lens_crosscoder.analysis.tables.parquet import load_table, save_table
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.views import CrosscoderViews
from sae_lens_crosscoder.stacking import StackedLayout

_FILE = "dictionary_comparison.parquet"
MAX_ASSIGNED = 8192
"""Most latents that can be assigned to each other: time grows with their cube, memory with their square."""


@dataclass(frozen=True)
class DictionaryComparison:
    """Drift of every latent between two dictionaries, from `compare_dictionaries`."""

    latents: pd.DataFrame
    """One row per latent of the first dictionary."""
    manifest: dict[str, Any]
    """Settings, the number of latents that write, and the shares below."""

    @property
    def frac_moved(self) -> float:
        """Share of the latents whose decoder has a cosine below `min_cosine` with the one of the same index."""
        return self.manifest["frac_moved"]

    @property
    def frac_same_match(self) -> float:
        """Share of the latents whose best match is the latent of the same index; nan without matching."""
        return self.manifest["frac_same_match"]

    def __str__(self) -> str:
        shares = f"{self.frac_moved:.1%} of {self.manifest['n_latents']:,} latents moved"
        return (
            shares if np.isnan(self.frac_same_match) else f"{shares}, {self.frac_same_match:.1%} match their own index"
        )

    @validate_arguments
    def save(self, folder: str | Path) -> Path:
        """Save as a Parquet file in a folder."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_table(self.latents, self.manifest, Path(folder, _FILE))
        return Path(folder)

    @classmethod
    @validate_arguments
    def load(cls, folder: str | Path) -> "DictionaryComparison":
        """Load what `save` wrote.

        Raises:
            ValueError: for a folder without it, or a damaged file.
        """
        path = Path(folder, _FILE)
        if not path.exists():
            raise ValueError(f"{folder} has no {_FILE}. Create it with compare_dictionaries(...).save(folder).")
        return cls(*load_table(path))


@validate_arguments
@torch.no_grad()
def compare_dictionaries(
    first: SAE[Any],
    second: SAE[Any],
    *,
    matching: Literal["assignment", "none"] = "assignment",
    min_cosine: float = 0.7,
) -> DictionaryComparison:
    """Compare two crosscoders or SAEs of equal widths by the index of their latents, and by the best matching of them.

    Latents correspond by index if one dictionary was fine-tuned from the other, such as Gemma Scope 2's instruction-
    tuned ones from the pretrained. A matching presumes nothing: it pairs all latents so that the sum of their decoders'
    cosines is largest. No model and no data is needed. Multiplying a latent's encoder and dividing its decoder by one
    number changes nothing.

    Args:
        first, second: of the same `d_in` and `d_sae`; crosscoders also read the same widths.
        matching: `assignment`, for up to 8192 latents, or `none`.
        min_cosine: a latent moved if the cosine between its two decoders is below this.

    Returns:
        Latents with `cos_decoder`, `cos_encoder` (nan where one is 0), `cos_decoder_NAME` for every source of a
        crosscoder, `gain_ratio` (length of encoder times decoder, second over first), `threshold_change` (second -
        first, in units of what the latent writes; 0 without thresholds), `bias_change` (of the encoder, likewise),
        `moved`, and with a matching `match` and `cos_match`, a latent of the second dictionary and its cosine.

    Raises:
        ValueError: for dictionaries of other widths, too many latents to be assigned, or an unknown option.
    """
    _validate(first, second, matching, min_cosine)
    layout = _layout(first)
    decoders, encoders = ([_rows(sae, name) for sae in (first, second)] for name in ("W_dec", "W_enc"))
    cosine = _cosine(*decoders)
    columns: dict[str, Tensor] = {"cos_decoder": cosine, "cos_encoder": _cosine(*encoders)}
    if layout.n_sources > 1:
        parts = zip(layout.names, *(layout.split(rows) for rows in decoders), strict=True)
        columns |= {f"cos_decoder_{name}": _cosine(one, other) for name, one, other in parts}
    lengths = [rows.norm(dim=-1) for rows in decoders]
    gains = [rows.norm(dim=-1) * length for rows, length in zip(encoders, lengths, strict=True)]
    columns["gain_ratio"] = gains[1] / gains[0]
    for name, values in (("threshold_change", _thresholds), ("bias_change", _biases)):
        before, after = (values(sae) * length for sae, length in zip((first, second), lengths, strict=True))
        columns[name] = after - before
    table = pd.DataFrame({name: column.cpu().numpy() for name, column in columns.items()}).rename_axis("latent")
    writes = ((lengths[0] > 0) & (lengths[1] > 0)).cpu().numpy()
    table["moved"] = writes & (table["cos_decoder"] < min_cosine).to_numpy()
    n_latents, same = int(writes.sum()), float("nan")
    if matching == "assignment":
        table["match"], table["cos_match"] = _assigned(*decoders)
        same = float((table["match"] == table.index)[writes].mean()) if n_latents else same
    moved = float(table["moved"][writes].mean()) if n_latents else float("nan")
    manifest = {"matching": matching, "min_cosine": min_cosine, "n_latents": n_latents}
    return DictionaryComparison(table, {**manifest, "frac_moved": moved, "frac_same_match": same})


def _validate(first: Any, second: Any, matching: str, min_cosine: float) -> None:
    shapes = [(sae.cfg.d_in, sae.cfg.d_sae) for sae in (first, second)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"first has d_in and d_sae {shapes[0]}, but second has {shapes[1]}. Compare dictionaries of one shape; "
            "`slc.analysis.agreement` compares crosscoders of different sizes."
        )
    widths = {sae.layout.d_models for sae in (first, second) if isinstance(sae, CrosscoderViews)}
    if len(widths) > 1:
        raise ValueError(
            f"first and second read other widths, {' and '.join(map(str, widths))}. Compare like with like."
        )
    if matching not in ("assignment", "none"):
        raise ValueError(f"matching={matching!r} is not one of 'assignment', 'none'.")
    if matching == "assignment" and shapes[0][1] > MAX_ASSIGNED:
        raise ValueError(
            f"matching='assignment' pairs at most {MAX_ASSIGNED} latents, but there are {shapes[0][1]}. Pass "
            "matching='none' to compare by index."
        )
    if not -1 <= min_cosine <= 1:
        raise ValueError(f"min_cosine={min_cosine} must lie between -1 and 1.")


def _layout(sae: Any) -> StackedLayout:
    return sae.layout if isinstance(sae, CrosscoderViews) else StackedLayout((sae.cfg.d_in,))


def _rows(sae: Any, name: str) -> Float[Tensor, "d_sae d_in"]:
    """Decoder or encoder rows in the space of the dictionary's training."""
    rows = (sae.W_dec if name == "W_dec" else sae.W_enc.T).detach().double().cpu()
    if not isinstance(sae, CrosscoderViews):
        return rows
    scales = sae.layout.expand(sae.activation_scales.detach().double().cpu())
    return rows * scales if name == "W_dec" else rows / scales


def _cosine(first: Float[Tensor, "d_sae _"], second: Float[Tensor, "d_sae _"]) -> Float[Tensor, " d_sae"]:
    return (first * second).sum(dim=-1) / (first.norm(dim=-1) * second.norm(dim=-1))  # 0 / 0 is nan, as it should be


def _thresholds(sae: Any) -> Float[Tensor, " d_sae"]:
    threshold = getattr(sae, "threshold", None)
    return torch.zeros(sae.cfg.d_sae).double() if threshold is None else threshold.detach().double().cpu()


def _biases(sae: Any) -> Float[Tensor, " d_sae"]:
    bias = getattr(sae, "b_enc", None)
    return torch.zeros(sae.cfg.d_sae).double() if bias is None else bias.detach().double().cpu()


def _assigned(first: Float[Tensor, "d_sae d_in"], second: Float[Tensor, "d_sae d_in"]) -> tuple[Any, Any]:
    """The latent of the second dictionary for each of the first, and its cosine, 0 for one that writes nothing."""
    from scipy.optimize import linear_sum_assignment

    unit = torch.nn.functional.normalize
    cosines = (unit(first, dim=-1) @ unit(second, dim=-1).T).float().numpy()
    rows, match = linear_sum_assignment(cosines, maximize=True)
    return match, cosines[rows, match]
