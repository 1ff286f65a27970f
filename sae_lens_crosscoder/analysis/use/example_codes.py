"""Code of every model alone, on the tokens of the latents' examples."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens_crosscoder.activations.eval_data import EvalData
from sae_lens_crosscoder.analysis.encoding import codes
from sae_lens_crosscoder.analysis.examples.file import Example, ExamplesFile
from sae_lens_crosscoder.analysis.inputs import PromptSource, data_source
from sae_lens_crosscoder.analysis.use.latent_use import MEAN_TOKENS
from sae_lens_crosscoder.analysis.use.sums import mean_code
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.crosscoders.sparse_step.pairs import pairs_of
from sae_lens_crosscoder.crosscoders.swap_readout import SwapReadout


@dataclass(frozen=True)
class ExampleCodes:
    """Codes of every model alone, where they are not 0: see `latent_use`."""

    model_names: tuple[str, ...]
    n_places: int
    """Number of tokens in the data, masked or not."""
    context_size: int
    keys: Int[Tensor, " entries"]
    """`latent * n_places + place` of every entry, ascending; a place is a token's index in the data."""
    values: Float[Tensor, "entries model"]

    def of(self, latent: int, example: Example) -> Float[Tensor, "pos model"]:
        """Codes on the tokens of one of the latent's examples; nan where the joint code is unknown too."""
        first = example.prompt * self.context_size + example.position - example.peak
        wanted = latent * self.n_places + first + torch.arange(len(example.token_ids))
        found = torch.zeros(len(wanted), len(self.model_names))
        if len(self.keys):
            at = torch.searchsorted(self.keys, wanted).clamp(max=len(self.keys) - 1)
            is_on = self.keys[at] == wanted
            found[is_on] = self.values[at[is_on]]
        return found.masked_fill(example.scores.isnan()[:, None], torch.nan)


@torch.no_grad()
def example_codes(crosscoder: InferenceCrosscoder, data: EvalData, examples: ExamplesFile) -> ExampleCodes:
    """Read each model alone on the tokens of all examples, as `latent_use` reads two of them.

    The models run once more over the data.

    Args:
        crosscoder: of models of equal width.
        examples: of this data, from `collect_examples`.
    """
    source = PromptSource(crosscoder, data)
    readout, n_places = _readout(crosscoder, data), source.tokens.numel()
    windows = _Windows(examples, n_places)
    size = examples.manifest["context_size"]
    keys, values = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, crosscoder.layout.n_models)]
    n_seen = 0
    for rows, used, batch in source:
        first = rows.start * size
        wanted = windows.keys(first, first + used.numel())
        places = first + used.flatten().nonzero().flatten().cpu()
        for part in codes(crosscoder, batch, n_seen):
            here, places = places[: len(part.activations)], places[len(part.activations) :]
            found, on = _looked_up(readout.alone(*part), here, wanted, n_places)
            keys.append(found)
            values.append(on)
        n_seen += len(batch)
    order = torch.cat(keys).argsort()
    names = crosscoder.layout.names
    return ExampleCodes(names, n_places, size, torch.cat(keys)[order], torch.cat(values)[order])


class _Windows:
    """Tokens that the windows of all examples may show."""

    def __init__(self, examples: ExamplesFile, n_places: int) -> None:
        before, after = examples.manifest["window"]
        self._size, self._n_places = examples.manifest["context_size"], n_places
        self._peaks = examples.peaks()
        self._offsets = torch.arange(-before, after + 1)

    def keys(self, first: int, last: int) -> Int[Tensor, " wanted"]:
        """Keys of the tokens in windows, for peaks among the places from `first` on, up to `last`; ascending."""
        latent, slot = ((self._peaks >= first) & (self._peaks < last)).nonzero(as_tuple=True)
        peak = self._peaks[latent, slot][:, None]
        places = peak + self._offsets
        in_prompt = places.div(self._size, rounding_mode="floor") == peak.div(self._size, rounding_mode="floor")
        return (latent[:, None] * self._n_places + places)[in_prompt].unique()


def _readout(crosscoder: InferenceCrosscoder, data: EvalData) -> SwapReadout:
    """The readout of all models, with the means that `latent_use` takes."""
    first = torch.cat([batch.used for batch in data_source(crosscoder, data).first(MEAN_TOKENS)])
    mean = first.double().mean(dim=0)
    places = range(crosscoder.layout.n_models)
    return SwapReadout(crosscoder, mean[None].to(crosscoder.W_dec.device), mean_code(crosscoder, first), places)


def _looked_up(
    alone: Sequence[Tensor], places: Int[Tensor, " token"], wanted: Int[Tensor, " wanted"], n_places: int
) -> tuple[Int[Tensor, " found"], Float[Tensor, "found model"]]:
    """Keys among those wanted on which any model alone has a code, and these codes."""
    by_model: list[tuple[Tensor, Tensor]] = []
    for code in alone:
        pairs, values = pairs_of(code)
        keys = pairs.latent.cpu() * n_places + places[pairs.token.cpu()]
        chosen = _is_in(keys, wanted)
        by_model.append((keys[chosen], values.float().cpu()[chosen]))
    found = torch.cat([keys for keys, _ in by_model]).unique()
    codes_found = torch.zeros(len(found), len(by_model))
    for m, (keys, values) in enumerate(by_model):
        codes_found[torch.searchsorted(found, keys), m] = values
    return found, codes_found


def _is_in(keys: Int[Tensor, " keys"], ascending: Int[Tensor, " wanted"]) -> Bool[Tensor, " keys"]:
    if len(ascending) == 0:
        return torch.zeros_like(keys, dtype=torch.bool)
    return ascending[torch.searchsorted(ascending, keys).clamp(max=len(ascending) - 1)] == keys
