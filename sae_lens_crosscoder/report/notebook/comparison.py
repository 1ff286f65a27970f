"""Display both models on one prompt: their next tokens, and the latents behind the difference."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from sae_lens_crosscoder.analysis.statistics.difference import DifferenceShares
from sae_lens_crosscoder.report.html.cells import rounded
from sae_lens_crosscoder.report.html.inert import visible
from sae_lens_crosscoder.report.notebook.view import render_view


@dataclass(frozen=True)
class Comparison:
    """Two models on one prompt, as a notebook displays it; the tables have all numbers."""

    next_tokens: pd.DataFrame
    """As `next_tokens` makes it, at `position`."""
    token_kl: pd.DataFrame
    """As `token_kl` makes it."""
    latents: pd.DataFrame
    """The latents with the largest share in the difference of the activations at `position` (`difference_shares`), with
    their effects there (`latent_effects`): the change of the KL from the chat model, in nats, when the latent is added
    to the base model's activations or removed from the chat model's, and the tokens whose logits it raises."""
    shares: DifferenceShares
    """Shares of all active latents, of the decoder biases and of the reconstruction error."""
    position: int
    texts: tuple[str, ...]
    """The texts of the prompt's tokens."""

    def __repr__(self) -> str:
        kl = [f"{visible(text)}({value:.2f})" for text, value in zip(self.texts, self._kl, strict=True)]
        parts = [
            f"KL between the models' predictions after each token, in nats:\n{''.join(kl)}",
            f"next tokens after position {self.position}:\n{_plain(self.next_tokens)}",
            f"{self._share_text}\n{_plain(self.latents)}",
        ]
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        return render_view(
            "notebook/comparison.html",
            texts=self.texts,
            position=self.position,
            kl=self._kl,
            models=("base", "chat"),
            next_tokens=self.next_tokens.to_dict("records"),
            shares=self._share_text,
            latents=_readable(self.latents),
        )

    @property
    def _kl(self) -> list[float]:
        return self.token_kl["chat_from_base"].tolist()

    @property
    def _share_text(self) -> str:
        shares = self.shares
        return (
            "Shares in the difference of the activations, by the crosscoder: "
            f"{len(shares.latents)} active latents {rounded(shares.share_of_latents)}, "
            f"decoder biases {rounded(shares.share_of_biases)}, "
            f"reconstruction error {rounded(shares.share_of_error)}. The latents with the largest shares:"
        )


def _plain(table: pd.DataFrame) -> str:
    return _readable(table).to_string(float_format="{:.4g}".format)


def _readable(table: pd.DataFrame) -> pd.DataFrame:
    """Format lists of weighted tokens as text, and drop empty columns."""
    known = table.dropna(axis="columns", how="all")
    texts = {name: known[name].map(_text) for name in known if not pd.api.types.is_numeric_dtype(known[name])}
    return known.assign(**{str(name): column for name, column in texts.items()})


def _text(value: Any) -> Any:
    if isinstance(value, list):
        return " ".join(f"{visible(text.strip() or text)} {change:+.2f}" for text, change in value)
    return visible(value) if isinstance(value, str) else value
