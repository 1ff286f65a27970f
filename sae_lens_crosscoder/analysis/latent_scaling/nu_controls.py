"""Controls for nu: the same activations, probed along a random direction or another latent's decoder."""

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.activations.eval_data import EvalData
from sae_lens_crosscoder.analysis.encoding import encoded, of_compared
from sae_lens_crosscoder.analysis.inputs import data_source, shard_block
from sae_lens_crosscoder.analysis.latent_scaling.latent_scaling import LatentScaling, Target
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.compared import compared_of
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, validate_inference


@validate_arguments
@torch.no_grad()
def nu_controls(
    crosscoder: InferenceCrosscoder,
    data: EvalData,
    *,
    models: Sequence[str] | None = None,
    significant: bool = True,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure both nu of every latent's decoder beside those of two controls that keep its activations.

    A latent that both models write alike has nu that scatter around 1 along any direction, and one that the chat model
    alone writes nu around 0. Where controls disagree with the real nu, as for a latent that fine-tuning rotated, it is
    the direction that tells the models apart.

    Args:
        data: held-out data.
        models: names of the two models to compare, as in `diagnose`; needed for more than two.
        significant: nan where the denominator may be 0, as it is along directions orthogonal to the latent's; see
            `LatentScaling.nu`.

    Returns:
        One row per latent: `nu_error` and `nu_reconstruction` of its own chat decoder, those ending in
        `_random_direction` of a random one, and in `_other_latent` of that of latent `other_latent`, drawn so that
        every latent serves once.

    Raises:
        ValueError: for a training crosscoder, more than two models without names, or no data.
    """
    crosscoder = validate_inference(crosscoder, "nu_controls")
    compared = compared_of(crosscoder, models, "nu_controls")
    of_two = crosscoder if compared is None else compared.crosscoder
    other_latent = _other_latents(crosscoder, seed)
    block_size = shard_block(data)
    scalings = {
        "": LatentScaling(of_two, block_size=block_size),
        "_random_direction": LatentScaling(of_two, block_size=block_size, probes=_random_directions(of_two, seed)),
        "_other_latent": LatentScaling(
            of_two, block_size=block_size, probes=[decoder[other_latent] for decoder in of_two.decoders]
        ),
    }
    source = data_source(crosscoder, data)
    with tqdm(total=source.n_tokens, desc="Nu controls", unit="token", unit_scale=True, leave=False) as bar:
        for batch in source.batches():
            for part in encoded(crosscoder, batch.used, scalings[""].n_tokens):
                for scaling in scalings.values():
                    scaling.add(*of_compared(part, crosscoder, compared))
            bar.update(len(batch.activations))
    if scalings[""].n_tokens == 0:
        raise ValueError("No tokens to measure nu on: the data is empty, or its mask leaves out every token.")
    columns: dict[str, Tensor] = {}
    targets: tuple[Target, ...] = ("error", "reconstruction")
    for suffix, scaling in scalings.items():
        for target in targets:
            columns[f"nu_{target}{suffix}"] = scaling.nu(target, significant=significant)
    columns["other_latent"] = other_latent
    table = pd.DataFrame({name: column.cpu().numpy() for name, column in columns.items()})
    table.index.name = "latent"
    return table


def _random_directions(crosscoder: InferenceCrosscoder, seed: int) -> list[Float[Tensor, "d_sae d_model"]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(decoder.shape, generator=generator).to(decoder) for decoder in crosscoder.decoders]


def _other_latents(crosscoder: InferenceCrosscoder, seed: int) -> Tensor:
    """For every latent the next one in a random cycle through all of them."""
    order = torch.randperm(crosscoder.cfg.d_sae, generator=torch.Generator().manual_seed(seed))
    other = torch.empty_like(order)
    other[order] = order.roll(-1)
    return other.to(crosscoder.W_dec.device)
