"""The pair of models and its crosscoders, as the server runs them for a request."""

import threading
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.causal.forward.next_tokens import token_kl
from sae_lens_crosscoder.causal.forward.prompt import prompt_tokens
from sae_lens_crosscoder.causal.patching.generation import end_id, sampling_numbers, write_tokens
from sae_lens_crosscoder.causal.patching.patched import patched
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.crosscoders.origin import validate_pair
from sae_lens_crosscoder.crosscoders.sparse_step.pairs import pairs_of
from sae_lens_crosscoder.models.generation import context_limit
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.report.explorer.token_texts import TokenTexts
from sae_lens_crosscoder.serving.config import Limits
from sae_lens_crosscoder.serving.errors import RequestError
from sae_lens_crosscoder.serving.openapi import MODELS
from sae_lens_crosscoder.serving.queue import Event
from sae_lens_crosscoder.serving.requests import AnswersRequest, Edit, LatentsRequest, Prompt

_INCOMPLETE = "\ufffd"  # what a tokenizer writes for a character whose last bytes have not come yet


@dataclass(frozen=True)
class LiveCrosscoder:
    """A crosscoder with what is known about its latents."""

    crosscoder: InferenceCrosscoder
    latents: pd.DataFrame | None = None
    """The table of `diagnose`, of which steering takes the latents' maxima."""

    @property
    def can_steer(self) -> bool:
        """True if the latents' maxima are known."""
        return self.latents is not None and "max_activation" in self.latents


class LiveModels:
    """Answers requests with one pass of the models after another; only tokenizing is safe while a pass runs.

    Args:
        crosscoders: of the pair, by name.

    Raises:
        ValueError: for a crosscoder of another pair, or a pair without a tokenizer.
    """

    def __init__(self, pair: HookedModelPair, crosscoders: Mapping[str, LiveCrosscoder], limits: Limits) -> None:
        if pair.tokenizer is None:
            raise ValueError("The pair has no tokenizer, so it cannot read prompts. Load models that have one.")
        pair.validate_two("serve")
        pair.validate_one_tokenizer("serve")
        self.pair, self.crosscoders, self.limits = pair, dict(crosscoders), limits
        self.hooks = {name: validate_pair(live.crosscoder, pair) for name, live in self.crosscoders.items()}
        self._texts = TokenTexts(pair.tokenizer)
        self._tokenizer_in_use = threading.Lock()  # its parts in Rust refuse two threads at once
        self._n_ctx = min(map(context_limit, pair.members))

    def description(self) -> dict[str, Any]:
        """The models and the crosscoders, by name."""
        names = self.pair.model_names or MODELS
        crosscoders = [
            {
                "name": name,
                "hook_name": self.hooks[name],
                "d_sae": live.crosscoder.cfg.d_sae,
                "can_steer": live.can_steer,
            }
            for name, live in self.crosscoders.items()
        ]
        return {
            "models": dict(zip(MODELS, map(str, names), strict=True)),
            "crosscoders": crosscoders,
            "has_chat_template": getattr(self.pair.tokenizer, "chat_template", None) is not None,
            "limits": self.limits.as_json(),
        }

    def tokenize(self, prompt: Prompt, max_new_tokens: int = 0) -> Int[Tensor, "1 pos"]:
        """Token ids of a prompt.

        Raises:
            RequestError: if it is too long, or the chat template refuses it.
        """
        field = "prompt" if isinstance(prompt, str) else "messages"
        with self._tokenizer_in_use, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a plain text is what was asked for
            try:
                tokens = prompt_tokens(self.pair, prompt)
            except Exception as error:  # templates raise whatever they like
                raise RequestError(422, f"`{field}` cannot be tokenized: {error}", field) from error
        n, limit = tokens.shape[1], self.limits.max_prompt_tokens
        if n > limit:
            raise RequestError(422, f"`{field}` has {n} tokens, and the limit is {limit}: shorten it.", field, n, limit)
        if n + max_new_tokens > self._n_ctx:
            room = self._n_ctx - max_new_tokens
            message = f"`{field}` has {n} tokens, but the models' context leaves room for {room}: shorten it."
            raise RequestError(422, message, field, n, room)
        return tokens

    def validate_edits(self, request: AnswersRequest) -> None:
        """Raise a RequestError for edits that this crosscoder cannot make."""
        live = self.crosscoders[request.crosscoder]
        for i, edit in enumerate(request.edits):
            if edit.how == "steer" and not live.can_steer:
                message = "Steering needs the latents' maxima: run `sae-lens-crosscoder diagnose` on the folder first."
                raise RequestError(422, message, f"edits[{i}].how", "steer")
            if edit.how in ("add", "replace") and not live.crosscoder.layout.same_width:
                widths = live.crosscoder.layout.d_models
                message = f"{edit.how!r} carries directions between models, whose widths {widths} differ: use ablate."
                raise RequestError(422, message, f"edits[{i}].how", edit.how)

    @torch.no_grad()
    def latents(self, request: LatentsRequest, tokens: Int[Tensor, "1 pos"]) -> Generator[Event]:
        """Each token's most active latents, and where else in the prompt these are active."""
        crosscoder = self.crosscoders[request.crosscoder].crosscoder
        stacked = self.pair.activations(tokens, self.hooks[request.crosscoder])[0].to(crosscoder.W_dec)
        kl = token_kl(self.pair, tokens)["chat_from_base"].tolist()
        ordinary = crosscoder.trained_limits.ordinary(stacked).tolist()
        active = [
            by_token if used else [] for by_token, used in zip(_active(crosscoder, stacked), ordinary, strict=True)
        ]
        top = [sorted(each, key=lambda pair: -pair["activation"])[: request.top] for each in active]
        shown = {each["latent"] for tops in top for each in tops}
        with self._tokenizer_in_use:
            texts = [*map(self._texts, tokens[0].tolist())]
        rows = zip(tokens[0].tolist(), texts, kl, active, ordinary, top, strict=True)
        yield {
            "event": "latents",
            "crosscoder": request.crosscoder,
            "tokens": [
                {"token_id": i, "text": text, "kl_nats": nats, "n_active": len(on), "dominant": not used, "top": first}
                for i, text, nats, on, used, first in rows
            ],
            "latents": _strips(active, shown),
        }

    def answers(self, request: AnswersRequest, tokens: Int[Tensor, "1 pos"]) -> Generator[Event]:
        """The answers of both models token by token, as they are and then with the edits, and at last whole."""
        written: list[dict[str, Any]] = []
        for edited in (False, True) if request.edits else (False,):
            with ExitStack() as edits:
                for edit in request.edits if edited else ():
                    edits.enter_context(self._patch(request.crosscoder, edit))
                yield from self._write(tokens, request, edited, written)
        yield {"event": "answers", "crosscoder": request.crosscoder, "answers": written}

    def _patch(self, name: str, edit: Edit) -> Any:
        live, ids = self.crosscoders[name], list(edit.latents)
        rows = live.latents.loc[ids] if edit.how == "steer" and live.latents is not None else ids
        options: dict[str, Any] = {"model": edit.model, "coefficient": edit.coefficient}
        return patched(self.pair, live.crosscoder, rows, edit.how, **options)

    def _write(
        self, tokens: Int[Tensor, "1 pos"], request: AnswersRequest, edited: bool, written: list[dict[str, Any]]
    ) -> Generator[Event]:
        end, answers = end_id(self.pair), [_Answer(self.pair.tokenizer) for _ in MODELS]
        n = request.max_new_tokens
        uniforms = sampling_numbers(1, n, request.seed).expand(len(MODELS), n)
        sampling = (request.temperature, uniforms)
        for step in write_tokens(self.pair, [tokens[0], tokens[0]], MODELS, n, end, *sampling):
            for model, answer, token_id in zip(MODELS, answers, step.tolist(), strict=True):
                with self._tokenizer_in_use:
                    text = answer.add(token_id, end)
                if text:
                    yield {"event": "text", "model": model, "edited": edited, "text": text}
        for model, answer in zip(MODELS, answers, strict=True):
            if answer.rest:
                yield {"event": "text", "model": model, "edited": edited, "text": answer.rest}
            whole = {"text": answer.text + answer.rest, "token_ids": answer.token_ids, "ended": answer.ended}
            written.append({"model": model, "edited": edited, **whole})


class _Answer:
    """An answer that grows by whole characters."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.token_ids: list[int] = []
        self.text = self.rest = ""
        self.ended = False

    def add(self, token_id: int, end: int | None) -> str:
        """Append a token, and return the text that is new; nothing for -1 and for the token that ends the answer."""
        if token_id < 0:
            return ""
        self.token_ids.append(token_id)
        if token_id == end:
            self.ended = True
            return ""
        whole: str = self._tokenizer.decode(self.token_ids, clean_up_tokenization_spaces=False)
        new, self.rest = whole[len(self.text) :], ""
        if new.endswith(_INCOMPLETE):
            self.rest = new
            return ""
        self.text = whole
        return new


def _active(crosscoder: InferenceCrosscoder, stacked: Float[Tensor, "pos d_in"]) -> list[list[dict[str, Any]]]:
    """The active latents of each token, with each model's share `<e_j^m, h^m>` of the activation."""
    pairs, scores = pairs_of(crosscoder.encode_sparse(stacked))
    found: list[list[dict[str, Any]]] = []
    for token, parts in enumerate(zip(*crosscoder.layout.split(stacked), strict=True)):
        here = pairs.token == token
        latents = pairs.latent[here]
        encoders = zip(parts, crosscoder.encoders, strict=True)
        shares = torch.stack([encoder[latents] @ part for part, encoder in encoders], dim=-1).float()
        columns = (latents.tolist(), scores[here].tolist(), shares.tolist())
        found.append([{"latent": j, "activation": f, "shares": each} for j, f, each in zip(*columns, strict=True)])
    return found


def _strips(active: Sequence[Sequence[dict[str, Any]]], shown: set[int]) -> list[dict[str, Any]]:
    strips: dict[int, dict[str, Any]] = {
        j: {"latent": j, "tokens": [], "activations": [], "shares": []} for j in sorted(shown)
    }
    for token, on in enumerate(active):
        for each in on:
            if (strip := strips.get(each["latent"])) is not None:
                strip["tokens"].append(token)
                strip["activations"].append(each["activation"])
                strip["shares"].append(each["shares"])
    return [*strips.values()]
