"""A prompt in a notebook: what both models expect next, and which latents account for what they have apart."""

from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from sae_lens_crosscoder.analysis.diagnosis.delta_norm import delta_norm, label
from sae_lens_crosscoder.analysis.statistics.difference import difference_shares
from sae_lens_crosscoder.causal.forward.compare import next_tokens, token_kl
from sae_lens_crosscoder.causal.latents.latent_effects import latent_effects
from sae_lens_crosscoder.causal.patching.requirements import require_pair_of
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, require_inference
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.report.explorer.token_texts import TokenTexts
from sae_lens_crosscoder.report.html.cells import cell, html_table
from sae_lens_crosscoder.report.html.inert import inert, visible
from sae_lens_crosscoder.report.html.strips import kl_strip, token_text
from sae_lens_crosscoder.report.notebook.frame import framed

_EFFECTS = ["kl_change_added", "kl_change_removed", "raises", "lowers"]
_OF_TABLE = ["verdict", "user_label", "explanation"]
_MODELS = ("base", "chat")


@dataclass(frozen=True)
class Comparison:
    """Two models on one prompt, as a notebook shows it; its tables have all numbers."""

    next_tokens: pd.DataFrame
    """As `slc.next_tokens` makes it, at `position`."""
    token_kl: pd.DataFrame
    """As `slc.token_kl` makes it."""
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


@torch.no_grad()
def compare(
    pair: HookedModelPair,
    crosscoder: InferenceCrosscoder,
    prompt: str | Int[Tensor, "1 pos"],
    *,
    position: int = -1,
    k: int = 6,
    n_latents: int = 10,
    latents: pd.DataFrame | None = None,
) -> Comparison:
    """What both models make of a prompt, and which latents account for what they have apart at one position.

    Args:
        prompt: a text, which the pair's tokenizer reads after its BOS token, or one row of token ids, such as
            `chat_tokens` makes of a conversation.
        position: after which token.
        k: how many of each model's most likely next tokens are shown.
        n_latents: how many latents are shown, and have their effects measured: two passes of the chat model's later
            layers for each.
        latents: the table of `diagnose`, for verdicts, labels and explanations.

    Raises:
        ValueError: as `next_tokens`, `difference_shares` and `latent_effects`; for a position outside the prompt, no
            latents to show, and while the pair is patched.
    """
    crosscoder = require_inference(crosscoder, "compare")
    hook_name = require_pair_of(crosscoder, pair)
    tokens = pair.to_tokens(prompt) if isinstance(prompt, str) else prompt
    n = tokens.shape[-1]
    if not -n <= position < n:
        raise ValueError(f"position={position} is outside the prompt, which has {n} tokens.")
    if n_latents < 1:
        raise ValueError(f"n_latents={n_latents} shows no latent: give at least 1.")
    position %= n
    expected = next_tokens(pair, tokens, k, position=position)
    if "base_patched" in expected:
        raise ValueError("compare shows the models as they are: inside a patch use slc.next_tokens and slc.token_kl.")
    shares = difference_shares(crosscoder, pair.activations(tokens, hook_name)[0, position])
    return Comparison(
        next_tokens=expected,
        token_kl=token_kl(pair, tokens),
        latents=_with_effects(pair, crosscoder, tokens[:, : position + 1], shares, n_latents, latents),
        position=position,
        texts=tuple(map(TokenTexts(pair.tokenizer), tokens[0].tolist())),
    )


def _with_effects(
    pair: HookedModelPair,
    crosscoder: InferenceCrosscoder,
    read: Int[Tensor, "1 pos"],
    shares: pd.DataFrame,
    n_latents: int,
    latents: pd.DataFrame | None,
) -> pd.DataFrame:
    shown = shares.head(n_latents)
    deltas = delta_norm(crosscoder.decoder_norms.detach().double()[shown.index.tolist()]).tolist()
    table = shown.assign(delta_norm=deltas, label=[label(delta) for delta in deltas])
    if latents is not None:
        table = table.join(latents[[name for name in _OF_TABLE if name in latents]])
    if len(shown):
        # What is scored is the prediction of a token after the last one; which, makes no difference to it.
        tokens = torch.cat([read, read[:, -1:]], dim=1)
        last = torch.zeros_like(tokens, dtype=torch.bool)
        last[:, -1] = True
        table = table.join(latent_effects(pair, crosscoder, tokens, last, shown.index.tolist(), k=3)[_EFFECTS])
    share_of_latents = float(shares["share"].sum())
    table.attrs = {"n_active": len(shares), "share_of_latents": share_of_latents, **shares.attrs}
    return table


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
