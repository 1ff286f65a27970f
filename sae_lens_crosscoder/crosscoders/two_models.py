"""The two models that a reading compares, among all that a crosscoder reads."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.crosscoders.compared import source_places
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, validate_one_hook


@dataclass(frozen=True)
class TwoModels:
    """Two models of a crosscoder at one hook: the first takes the place of base, the second that of chat.

    The codes stay those of all models, so the crosscoder encodes whole stacked activations.
    """

    crosscoder: InferenceCrosscoder
    places: tuple[int, int]
    """Their places in the stack."""

    @classmethod
    def of(
        cls, crosscoder: InferenceCrosscoder, models: Sequence[str] | None = None, purpose: str = "The comparison"
    ) -> "TwoModels":
        """Choose two models by name, as `source_places` does; None for those of a crosscoder of two.

        Raises:
            ValueError: for names that are not two of the models, no names for other than two, or several hooks.
        """
        validate_one_hook(crosscoder, purpose)
        layout = crosscoder.layout
        if models is not None:
            return cls(crosscoder, source_places(crosscoder, models))
        if layout.n_models < 2:
            raise ValueError(f"{purpose} compares two models, but this crosscoder reads one. Pass a crosscoder of two.")
        if layout.n_models > 2:
            raise ValueError(
                f"{purpose} compares two models, but this crosscoder reads {layout.n_models}: "
                f"{', '.join(layout.names)}. Choose two, such as models={(layout.names[0], layout.names[-1])}."
            )
        return cls(crosscoder, (0, 1))

    @property
    def names(self) -> tuple[str, str]:
        """Their names in `crosscoder.layout`."""
        names = self.crosscoder.layout.names
        return names[self.places[0]], names[self.places[1]]

    @property
    def widths(self) -> tuple[int, int]:
        """Their widths."""
        first, second = (self.crosscoder.layout.d_models[place] for place in self.places)
        return first, second

    @property
    def decoders(self) -> tuple[Float[Tensor, "d_sae _"], Float[Tensor, "d_sae _"]]:
        """Directions that each latent writes into them, without gradients."""
        return self.split(self.crosscoder.W_dec.detach())

    @property
    def decoder_biases(self) -> tuple[Float[Tensor, " _"], Float[Tensor, " _"]]:
        """Their decoder biases, without gradients."""
        return self.split(self.crosscoder.b_dec.detach())

    def split(self, stacked: Float[Tensor, "*rows d_in"]) -> tuple[Float[Tensor, "*rows _"], Float[Tensor, "*rows _"]]:
        """Their slices of the activations of all models."""
        parts = self.crosscoder.layout.split(stacked)
        return parts[self.places[0]], parts[self.places[1]]

    def validate_one_width(self, purpose: str) -> "TwoModels":
        """Return them, or raise a ValueError unless they have one width, so that directions mean the same in both."""
        if len(set(self.widths)) > 1:
            raise ValueError(
                f"{purpose} needs two models of one width, but the crosscoder's {' and '.join(self.names)} have widths "
                f"{self.widths}. Only models of one width share a basis."
            )
        return self
