"""Requests as programs and the page send them: parsed, checked against their schema, and refused with a reason."""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sae_lens_crosscoder.causal.patching.intervention import How, ModelName
from sae_lens_crosscoder.serving.errors import RequestError

if TYPE_CHECKING:
    from jsonschema import ValidationError

Prompt = str | list[dict[str, str]]


@dataclass(frozen=True)
class Edit:
    """An edit of latents while the models answer, as `causal.patched` makes it."""

    latents: tuple[int, ...]
    how: How = "ablate"
    model: ModelName | None = None
    coefficient: float = 1.0


@dataclass(frozen=True)
class LatentsRequest:
    """A prompt whose latents are asked for."""

    prompt: Prompt
    """A text, or messages."""
    crosscoder: str
    top: int = 10
    """Latents listed per token."""


@dataclass(frozen=True)
class AnswersRequest:
    """A prompt that both models answer."""

    prompt: Prompt
    crosscoder: str
    edits: tuple[Edit, ...] = ()
    max_new_tokens: int = 32
    temperature: float = 0.0
    """0 for the most likely token."""
    seed: int = 0
    """Seed of the samples."""


class RequestReader:
    """Reads the bodies of requests by the schemas of the server's OpenAPI document.

    Args:
        document: as `openapi` makes it.
        crosscoders: number of latents by the crosscoders' names.
    """

    def __init__(self, document: Mapping[str, Any], crosscoders: Mapping[str, int]) -> None:
        self._document, self._crosscoders = document, crosscoders

    def latents(self, body: bytes) -> LatentsRequest:
        """Read the body of a request for latents.

        Raises:
            RequestError: naming the field, the value and the limit.
        """
        fields = self._read(body, "LatentsRequest")
        prompt = fields.pop("messages") if "messages" in fields else fields.pop("prompt")
        return LatentsRequest(prompt=prompt, crosscoder=self._name(fields), **fields)

    def answers(self, body: bytes) -> AnswersRequest:
        """Read the body of a request for answers; raises as `latents` does."""
        fields = self._read(body, "AnswersRequest")
        prompt = fields.pop("messages") if "messages" in fields else fields.pop("prompt")
        name = self._name(fields)
        edits: list[Edit] = []
        for i, edit in enumerate(fields.pop("edits", ())):
            coefficient, latents = float(edit.pop("coefficient", 1.0)), tuple(map(int, edit.pop("latents")))
            self._validate_latents(name, latents, f"edits[{i}].latents")
            edits.append(Edit(latents, coefficient=coefficient, **edit))
        temperature = float(fields.pop("temperature", 0.0))
        return AnswersRequest(prompt=prompt, crosscoder=name, edits=tuple(edits), temperature=temperature, **fields)

    def _name(self, fields: dict[str, Any]) -> str:
        return fields.pop("crosscoder", next(iter(self._crosscoders)))

    def _validate_latents(self, name: str, latents: tuple[int, ...], field: str) -> None:
        last = self._crosscoders[name] - 1
        for i, latent in enumerate(latents):
            if latent > last:
                message = f"`{field}[{i}]` is {latent}, but the crosscoder {name!r} has latents 0 to {last}."
                raise RequestError(422, message, f"{field}[{i}]", latent, last)

    def _read(self, body: bytes, name: str) -> dict[str, Any]:
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import best_match

        value = _json(body)
        schema = {"$ref": f"#/components/schemas/{name}", "components": self._document["components"]}
        error = best_match(Draft202012Validator(schema).iter_errors(value))
        if error is not None:
            raise _refusal(error)
        return {key: int(part) if _is_whole(part) else part for key, part in value.items()}


def _json(body: bytes) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"it contains {constant}, which is not JSON")

    try:
        return json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "it is nested too deeply"
        raise RequestError(400, f"The body cannot be read as JSON: {reason:.200}.") from error


def _is_whole(value: Any) -> bool:
    """True for a number that a schema calls an integer, such as 8.0."""
    return isinstance(value, float) and value.is_integer()


def _refusal(error: "ValidationError") -> RequestError:
    """What a schema says against a value, as a sentence with the limit."""
    value: Any = error.instance
    allowed: Any = error.validator_value
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path).lstrip(".")
    shown = f"`{field}`" if field else "The body"
    size = len(value) if isinstance(value, list | str | dict) else 0
    match kind := str(error.validator):
        case "type":
            message = f"{shown} is {_short(value)}, expected {_words(allowed)}."
        case "minimum" | "maximum":
            message = f"{shown} is {_short(value)}, {'below' if kind == 'minimum' else 'above'} the limit {allowed}."
        case "minItems" | "maxItems" | "minLength":
            message = f"{shown} has {size} entries, expected at {'most' if kind == 'maxItems' else 'least'} {allowed}."
            value = size
        case "enum":
            message = f"{shown} is {_short(value)}, expected one of {', '.join(map(json.dumps, allowed))}."
        case "uniqueItems":
            message, allowed = f"{shown} contains a value twice.", None
        case "additionalProperties":
            return _unknown(value, list(error.schema["properties"]), field)  # pyright: ignore[reportArgumentType, reportIndexIssue, reportCallIssue]
        case "required":
            missing = next(name for name in allowed if name not in value)
            return RequestError(422, f"{shown} has no `{missing}`.", missing)
        case _:
            both = "prompt" in value and "messages" in value
            message = f"Pass exactly one of `prompt` and `messages`, not {'both' if both else 'neither'}."
            return RequestError(422, message, "prompt")
    return RequestError(422, message, field or None, value if not isinstance(value, list | dict) else None, allowed)


def _unknown(value: dict[str, Any], known: list[str], field: str) -> RequestError:
    name = next(key for key in value if key not in known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(known)}."
    path = f"{field}.{name}" if field else name
    return RequestError(422, f"There is no field {_short(name)}: {hint}", path, name, known)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _words(kinds: Any) -> str:
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return " or ".join(
        {"integer": "an integer", "object": "an object", "array": "a list"}.get(k, f"a {k}") for k in kinds
    )
