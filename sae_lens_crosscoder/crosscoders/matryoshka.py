"""The Matryoshka BatchTopK crosscoder: the first latents alone must reconstruct as well as they can."""

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import ClassVar

import simple_parsing
from jaxtyping import Float
from sae_lens.saes.sae import TrainStepInput
from torch import Tensor
from typing_extensions import override

from sae_lens_crosscoder.crosscoders.batchtopk import BatchTopKTrainingCrosscoder
from sae_lens_crosscoder.crosscoders.batchtopk_config import BatchTopKCrosscoderTrainingConfig
from sae_lens_crosscoder.crosscoders.sparse_step.codes import Code
from sae_lens_crosscoder.crosscoders.training import reconstruction_loss


@dataclass
class MatryoshkaBatchTopKCrosscoderTrainingConfig(BatchTopKCrosscoderTrainingConfig):
    """A BatchTopK crosscoder with a reconstruction loss at every one of several nested widths (arXiv 2503.17547).

    >>> cfg = MatryoshkaBatchTopKCrosscoderTrainingConfig(d_model=96, d_sae=512, k=8, matryoshka_widths=(64, 128))
    >>> cfg.matryoshka_widths, cfg.group_sizes
    ((64, 128), (64, 64, 384))
    """

    has_latent_shards: ClassVar[bool] = False

    matryoshka_widths: tuple[int, ...] | list[int] = simple_parsing.field(default=(), type=int, nargs="+")
    """Numbers of latents, ascending and below d_sae, at which the first latents alone must reconstruct. The whole
    crosscoder is the last level. Required; a sixteenth, an eighth, a quarter and a half of d_sae are usual."""

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        self.matryoshka_widths = tuple(self.matryoshka_widths)
        ascending = all(low < high for low, high in pairwise((0, *self.matryoshka_widths, self.d_sae)))
        if not self.matryoshka_widths or not ascending:
            raise ValueError(
                f"matryoshka_widths={self.matryoshka_widths} must be ascending numbers of latents above 0 and below "
                f"d_sae={self.d_sae}, such as {(self.d_sae // 8, self.d_sae // 2)}."
            )
        if self.partition is not None:
            raise ValueError(
                f"n_base_exclusive={self.n_base_exclusive} and n_chat_exclusive={self.n_chat_exclusive} are not "
                "available with matryoshka_widths, which order the latents in another way. Leave them 0."
            )

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Numbers of latents that each level adds to the one before; they add up to d_sae."""
        return tuple(high - low for low, high in pairwise((0, *self.matryoshka_widths, self.d_sae)))

    @override
    def causal_levels(self, n_shards: int) -> tuple[int, ...]:
        """Every level alone, as the first latents must reconstruct all hooks."""
        return self.group_sizes

    @classmethod
    @override
    def architecture(cls) -> str:
        return "matryoshka_batchtopk_crosscoder"


class MatryoshkaBatchTopKTrainingCrosscoder(BatchTopKTrainingCrosscoder):
    """BatchTopK's selection and revival, and one more reconstruction loss per inner level, each with weight 1.

    As in SAELens's `matryoshka_batchtopk`, latents are selected once, over all levels. Saved, it is like any BatchTopK
    crosscoder.
    """

    @override
    def auxiliary_losses(
        self,
        code: Code,
        W_dec: Float[Tensor, "d_sae d_in"],
        step_input: TrainStepInput,
        sae_out: Float[Tensor, "batch d_in"],
    ) -> dict[str, Float[Tensor, ""]]:
        losses = super().auxiliary_losses(code, W_dec, step_input, sae_out)
        target = self.run_time_activation_norm_fn_in(step_input.sae_in.to(self.dtype))
        written = accumulate(code.decode_groups(W_dec, self.cfg.group_sizes)[:-1])
        for width, part in zip(self.cfg.matryoshka_widths, written, strict=True):
            error = target - (part + self.b_dec)
            losses[f"inner_loss_{width}"] = reconstruction_loss(error, self.layout, self.cfg.reconstruction_loss)
        return losses
