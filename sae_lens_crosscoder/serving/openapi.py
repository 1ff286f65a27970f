"""The OpenAPI document of the server. Requests are checked by the schemas in it, so it cannot say something else."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sae_lens_crosscoder.serving.config import Limits

HOWS: Final = ("ablate", "scale", "steer", "add", "replace")
"""Edits that a request can ask for; `causal.intervention` says what each does."""
MODELS: Final = ("base", "chat")
MOST_SEED: Final = 2**31 - 1
_ROLES = ("system", "user", "assistant", "tool", "developer")
_LINES = (
    "One JSON object per line. While the request waits, `queued` lines tell how many others run before it; position 0 "
    "means that it runs. The last line is the result, or an `error`. Closing the connection cancels the request."
)

Schema = dict[str, Any]


def openapi(limits: Limits, crosscoders: Mapping[str, int], version: str) -> Schema:
    """Describe the routes for programs.

    Args:
        crosscoders: number of latents by the crosscoders' names; the first is the default.
        version: of the package.
    """
    lines = {"queued": _QUEUED, "error": _object(event=_const("error"), error=_ref("Error"))}
    result = {"latents": _ref("LatentsResult"), "answers": _ref("AnswersResult"), "text": _TEXT}
    return {
        "openapi": "3.1.0",
        "info": {"title": "sae-lens-crosscoder serve", "version": version, "summary": "Two models and a crosscoder."},
        "security": [{"bearer": []}, {"query": []}],
        "paths": {
            "/api/description": {"get": _get("The models, the crosscoders, the limits and the queue.", "Description")},
            "/api/latents": {
                "post": _post(
                    "Each token's most active latents.", "LatentsRequest", [*lines.values(), result["latents"]]
                )
            },
            "/api/answers": {
                "post": _post(
                    "What both models answer, as they are and with edited latents.",
                    "AnswersRequest",
                    [*lines.values(), result["text"], result["answers"]],
                )
            },
        },
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "query": {"type": "apiKey", "in": "query", "name": "token"},
            },
            "schemas": {**_requests(limits, crosscoders), **_RESULTS},
        },
    }


def _requests(limits: Limits, crosscoders: Mapping[str, int]) -> dict[str, Schema]:
    asked = {
        "prompt": {**_TEXT_VALUE, "minLength": 1, "description": "A text, without a chat template."},
        "messages": {**_array(_ref("Message")), "minItems": 1, "description": "A chat, which gets the chat template."},
        "crosscoder": {"enum": list(crosscoders), "default": next(iter(crosscoders))},
    }
    top = _whole(1, limits.max_top, default=min(10, limits.max_top), description="Latents listed per token.")
    n_new = _whole(1, limits.max_new_tokens, default=min(32, limits.max_new_tokens), description="Longest answer.")
    edits = {**_array(_ref("Edit")), "maxItems": limits.max_edits, "default": []}
    sampling = {
        "temperature": {
            **_NUMBER,
            "minimum": 0,
            "maximum": limits.max_temperature,
            "default": 0,
            "description": "0 for the most likely token; otherwise the softmax of logits / temperature is sampled.",
        },
        "seed": _whole(0, MOST_SEED, default=0, description="Both models, edited or not, draw the same numbers."),
    }
    exactly_one: list[Schema] = [{"required": ["prompt"]}, {"required": ["messages"]}]
    return {
        "Message": _object(role={"enum": list(_ROLES)}, content=_TEXT_VALUE),
        "Edit": _edit(limits, crosscoders),
        "LatentsRequest": {**_object((), **asked, top=top), "oneOf": exactly_one},
        "AnswersRequest": {
            **_object((), **asked, edits=edits, max_new_tokens=n_new, **sampling),
            "oneOf": exactly_one,
        },
    }


def _edit(limits: Limits, crosscoders: Mapping[str, int]) -> Schema:
    most = limits.max_coefficient
    latents = _array(_whole(0, max(crosscoders.values()) - 1))
    return _object(
        ("latents",),
        latents={**latents, "minItems": 1, "maxItems": limits.max_latents, "uniqueItems": True},
        how={"enum": list(HOWS), "default": "ablate"},
        model={
            "enum": [*MODELS, None],
            "default": None,
            "description": "The edited model; null for the edit's default.",
        },
        coefficient={"type": "number", "minimum": -most, "maximum": most, "default": 1.0},
    )


def _get(summary: str, name: str) -> Schema:
    return {"summary": summary, "responses": {"200": _json("The description.", name), **_refusals(("401", "403"))}}


def _post(summary: str, name: str, lines: Sequence[Schema]) -> Schema:
    content = {"application/x-ndjson": {"schema": {"oneOf": list(lines)}}}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(name)}}},
        "responses": {
            "200": {"description": _LINES, "content": content},
            **_refusals(("400", "401", "403", "408", "413", "422", "429")),
        },
    }


def _refusals(statuses: Sequence[str]) -> Schema:
    return {status: _json(REFUSALS[status], "Refusal") for status in statuses}


def _json(description: str, name: str) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": _ref(name)}}}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: Sequence[str] | None = None, **properties: Schema) -> Schema:
    """An object of exactly these properties, of which all are required unless named."""
    needed = list(properties if required is None else required)
    return {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}


def _array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _whole(least: int, most: int | None = None, **more: Any) -> Schema:
    return {"type": "integer", "minimum": least, **({} if most is None else {"maximum": most}), **more}


def _const(value: str) -> Schema:
    return {"const": value}


REFUSALS: Final = {
    "400": "The body is not JSON.",
    "401": "The token is missing or wrong.",
    "403": "The Host header does not name this server.",
    "408": "The body did not arrive in time.",
    "413": "The body is too long.",
    "422": "A value is of the wrong type, unknown, or over its limit.",
    "429": "Too many requests wait.",
}
"""Why a request is refused, by the status."""
_TEXT_VALUE: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "number"}
_MODEL: Schema = {"enum": list(MODELS)}
_QUEUED = _object(event=_const("queued"), position=_whole(0))
_TEXT = _object(event=_const("text"), model=_MODEL, edited={"type": "boolean"}, text=_TEXT_VALUE)
_ANSWER = _object(
    model=_MODEL,
    edited={"type": "boolean"},
    text=_TEXT_VALUE,
    token_ids=_array(_whole(0)),
    ended={"type": "boolean", "description": "False for an answer that was cut at `max_new_tokens`."},
)
_ERROR = _object(
    message=_TEXT_VALUE,
    field={"type": ["string", "null"]},
    value={"description": "The refused value."},
    limit={"description": "What is allowed."},
)
_ACTIVE = _object(
    latent=_whole(0),
    activation=_NUMBER,
    shares={**_array(_NUMBER), "description": "Parts of the activation that each model's activations make."},
)
_TOKEN = _object(
    token_id=_whole(0),
    text=_TEXT_VALUE,
    kl_nats={"type": "number", "description": "KL of the models' predictions of the next token, from chat to base."},
    n_active=_whole(0),
    dominant={"type": "boolean", "description": "True for a token whose norm dominates: latents are not read there."},
    top={**_array(_ACTIVE), "description": "The most active latents, strongest first."},
)
_STRIP = _object(
    latent=_whole(0),
    tokens={**_array(_whole(0)), "description": "Places of all tokens at which it is active."},
    activations=_array(_NUMBER),
    shares=_array(_array(_NUMBER)),
)
_CROSSCODER = _object(
    name=_TEXT_VALUE,
    hook_name=_TEXT_VALUE,
    d_sae=_whole(1),
    can_steer={"type": "boolean", "description": "True if the latents' maxima are known, from `diagnose`."},
)
_RESULTS: dict[str, Schema] = {
    "Error": _ERROR,
    "Refusal": _object(error=_ref("Error")),
    "Description": _object(
        models={"type": "object", "additionalProperties": _TEXT_VALUE},
        crosscoders=_array(_CROSSCODER),
        has_chat_template={"type": "boolean"},
        limits={"type": "object", "additionalProperties": _NUMBER},
        queue=_object(n_passes=_whole(0), max_passes=_whole(1)),
    ),
    "LatentsResult": _object(
        event=_const("latents"),
        crosscoder=_TEXT_VALUE,
        tokens=_array(_TOKEN),
        latents={**_array(_STRIP), "description": "Every latent that is among the most active of a token."},
    ),
    "AnswersResult": _object(event=_const("answers"), crosscoder=_TEXT_VALUE, answers=_array(_ANSWER)),
}
