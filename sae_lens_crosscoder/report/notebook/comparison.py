"""A prompt in a notebook: what both models expect next, and which latents account for what they have apart."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from sae_lens_crosscoder.report.html.cells import cell, html_table
from sae_lens_crosscoder.report.html.inert import inert, visible
from sae_lens_crosscoder.report.html.strips import kl_strip, token_text
from sae_lens_crosscoder.report.notebook.frame import framed

_MODELS = ("base", "chat")


@dataclass(frozen=True)
class Comparison:
    """Two models on one prompt, as a notebook shows it; its tables have all numbers."""

    next_tokens: pd.DataFrame
    """As `slc.causal.next_tokens` makes it, at `position`."""
    token_kl: pd.DataFrame
    """As `slc.causal.token_kl` makes it."""
    latents: pd.DataFrame
    """The latents with the largest share in the difference of the activations at `position`, as `difference_shares`
    has it, and with what `latent_effects` says of each there: how the KL from the chat model changes, in nats, when the
    latent is added to the base model's activations or removed from the chat model's, and which tokens it speaks for."""
    position: int
    texts: tuple[str, ...]
    """What the prompt's tokens read as."""

    def __repr__(self) -> str:
        kl = [f"{visible(text)}({value:.2f})" for text, value in zip(self.texts, self._kl, strict=True)]
        parts = [
            f"KL of what the models expect after each token, in nats:\n{''.join(kl)}",
            f"next tokens after position {self.position}:\n{_plain(self.next_tokens)}",
            f"{self._shares}\n{_plain(self.latents)}",
        ]
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        after = token_text(self.texts[self.position].strip() or self.texts[self.position])
        parts = [
            f'<div class="title">Base and chat after <span class="token">{after}</span></div>',
            f"<p>{kl_strip(self.texts, self._kl, self.position)}</p>",
            '<p class="soft">The stronger the colour of a token, the further apart the models are about what comes '
            f"after it (KL, square root; {cell(self._kl[self.position])} nats after the underlined one).</p>",
            f'<div class="part">What they expect next</div>{self._chances()}',
            f'<div class="part">Latents that account for the difference</div><p class="soft">{inert(self._shares)}</p>',
            html_table(_readable(self.latents), corner="latent", decimals=3),
        ]
        return framed("".join(parts))

    @property
    def _kl(self) -> list[float]:
        return self.token_kl["chat_from_base"].tolist()

    @property
    def _shares(self) -> str:
        attrs = self.latents.attrs
        return (
            f"Shares in the difference of the activations, as the crosscoder has it: {attrs['n_active']} latents "
            f"{cell(attrs['share_of_latents'])}, decoder biases {cell(attrs['share_of_biases'])}, not reconstructed "
            f"{cell(attrs['share_of_error'])}. Of these latents the largest shares:"
        )

    def _chances(self) -> str:
        rows: list[str] = []
        for row in self.next_tokens.to_dict("records"):
            chances = "".join(
                f'<td class="share-{m}" style="--part:{row[name]:.3f}">{cell(row[name], 3)}</td>'
                for m, name in enumerate(_MODELS)
            )
            rows.append(f'<tr><th scope="row" class="t token">{token_text(row["token"])}</th>{chances}</tr>')
        heads = "".join(f'<th scope="col" class="n">{name}</th>' for name in _MODELS)
        head = f'<thead><tr><th scope="col" class="t">token</th>{heads}</tr></thead>'
        return f'<div class="scroll"><table class="chances">{head}<tbody>{"".join(rows)}</tbody></table></div>'


def _plain(table: pd.DataFrame) -> str:
    return _readable(table).to_string(float_format="{:.4g}".format)


def _readable(table: pd.DataFrame) -> pd.DataFrame:
    """The table with texts for lists of weighted tokens, and without columns that say nothing."""
    said = table.dropna(axis="columns", how="all")
    texts = {name: said[name].map(_text) for name in said if not pd.api.types.is_numeric_dtype(said[name])}
    return said.assign(**{str(name): column for name, column in texts.items()})


def _text(value: Any) -> Any:
    if isinstance(value, list):
        return " ".join(f"{visible(text.strip() or text)} {change:+.2f}" for text, change in value)
    return visible(value) if isinstance(value, str) else value
