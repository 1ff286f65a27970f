"""The TopK crosscoder: every token keeps its own k largest scores."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from sae_lens.saes.topk_sae import TopK
from torch import Tensor
from typing_extensions import override

from sae_lens_crosscoder.crosscoders.batchtopk import BatchTopKTrainingCrosscoder
from sae_lens_crosscoder.crosscoders.batchtopk_config import BatchTopKCrosscoderTrainingConfig
from sae_lens_crosscoder.crosscoders.sparse_step.codes import Code, DenseCode
from sae_lens_crosscoder.crosscoders.sparse_step.kernels import largest


@dataclass
class TopKCrosscoderTrainingConfig(BatchTopKCrosscoderTrainingConfig):
    """Keeps the `k` largest scores of every token. Everything else is BatchTopK's.

    >>> TopKCrosscoderTrainingConfig(d_model=2304, d_sae=16_384, k=64).architecture()
    'topk_crosscoder'
    """

    has_sparse_step: ClassVar[bool] = False

    k: float | int = 100
    """Latents kept on every token, a whole number."""
    training_step: Literal["sparse", "dense"] = "dense"
    """Must stay `dense`."""

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k != int(self.k):
            raise ValueError(f"k={self.k} must be a whole number: every token keeps that many latents.")
        self.k = int(self.k)
        if self.partition is not None or self.k_anneal_steps:
            raise ValueError(
                f"n_base_exclusive={self.n_base_exclusive}, n_chat_exclusive={self.n_chat_exclusive} and "
                f"k_anneal_steps={self.k_anneal_steps} are not available for a topk_crosscoder. Leave them 0, or use "
                "BatchTopKCrosscoderTrainingConfig."
            )

    @classmethod
    @override
    def architecture(cls) -> str:
        return "topk_crosscoder"


class TopKTrainingCrosscoder(BatchTopKTrainingCrosscoder):
    """SAELens's selection per token, by the crosscoder's score.

    It is saved with one threshold, as a BatchTopK crosscoder is: a token then keeps k latents on average, not exactly
    (Gao et al., arXiv 2406.04093, section 5.2, replace TopK by a threshold in the same way).
    """

    @override
    def get_activation_fn(self) -> Callable[[Tensor], Tensor]:
        return TopK(self.cfg.k)

    @override
    def scores_above_threshold(self, code: Code, norms: Float[Tensor, " d_sae"]) -> Float[Tensor, " pairs"]:
        """The `batch * k` largest scores, whether their token selected them or not."""
        assert isinstance(code, DenseCode)  # as the step is dense
        scores = (code.pre.detach().relu() * norms).flatten()
        best = scores[largest(scores, self.cfg.k * len(code.pre))]
        return best[best > 0]
