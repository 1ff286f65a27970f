"""Laws of requests: what fits the schema is read, and what does not is refused by field, value and limit."""

import json

import pytest

from sae_lens_crosscoder.serving.config import Limits, ServeConfig
from sae_lens_crosscoder.serving.errors import RequestError
from sae_lens_crosscoder.serving.openapi import openapi
from sae_lens_crosscoder.serving.requests import AnswersRequest, Edit, LatentsRequest, RequestReader

LIMITS = Limits(max_new_tokens=16)
SIZES = {"one": 40, "two": 30}
READER = RequestReader(openapi(LIMITS, SIZES, "1"), SIZES)
MESSAGES = [{"role": "user", "content": "hi"}]


def refusal(read, body):
    with pytest.raises(RequestError) as caught:
        read(body if isinstance(body, bytes) else json.dumps(body).encode())
    return caught.value


def test_what_fits_is_read_with_the_defaults_of_the_document():
    assert READER.latents(b'{"prompt": "hi"}') == LatentsRequest("hi", "one", top=10)
    assert READER.answers(json.dumps({"messages": MESSAGES}).encode()) == AnswersRequest(MESSAGES, "one")
    edits = [{"latents": [3, 29.0]}, {"latents": [0], "how": "scale", "model": "chat", "coefficient": -2}]
    body = {"prompt": "hi", "crosscoder": "two", "edits": edits, "max_new_tokens": 16.0}
    read = READER.answers(json.dumps(body).encode())
    assert read == AnswersRequest("hi", "two", (Edit((3, 29)), Edit((0,), "scale", "chat", -2.0)), 16)
    assert all(type(number) is int for number in (read.max_new_tokens, *read.edits[0].latents))


ODD = [
    ("latents", {"prompt": "hi", "top": 33}, "top", 33, 32),
    ("latents", {"prompt": "hi", "top": 0}, "top", 0, 1),
    ("latents", {"prompt": "hi", "top": True}, "top", True, "integer"),
    ("latents", {"prompt": "hi", "top": 1.5}, "top", 1.5, "integer"),
    ("latents", {"prompt": "hi", "top": "4"}, "top", "4", "integer"),
    ("latents", {"prompt": ""}, "prompt", 0, 1),
    ("latents", {"prompt": 5}, "prompt", 5, "string"),
    ("latents", {"prompt": None}, "prompt", None, "string"),
    ("latents", {"prompt": "hi", "crosscoder": "three"}, "crosscoder", "three", ["one", "two"]),
    ("latents", {"prompt": "hi", "edits": []}, "edits", "edits", ["prompt", "messages", "crosscoder", "top"]),
    ("latents", {}, "prompt", None, None),
    ("latents", {"prompt": "hi", "messages": MESSAGES}, "prompt", None, None),
    ("latents", {"messages": []}, "messages", 0, 1),
    ("latents", {"messages": "hi"}, "messages", "hi", "array"),
    ("latents", {"messages": [{"role": "user"}]}, "content", None, None),
    ("latents", {"messages": [{"role": "king", "content": ""}]}, "messages[0].role", "king", ...),
    ("latents", {"messages": [{"role": "user", "content": 1}]}, "messages[0].content", 1, "string"),
    ("latents", {"messages": [["user", "hi"]]}, "messages[0]", None, "object"),
    ("latents", [], None, None, "object"),
    ("latents", "hi", None, "hi", "object"),
    ("answers", {"prompt": "hi", "max_new_tokens": 17}, "max_new_tokens", 17, 16),
    ("answers", {"prompt": "hi", "max_new_tokens": 10**30}, "max_new_tokens", 10**30, 16),
    ("answers", {"prompt": "hi", "max_new_tokns": 4}, "max_new_tokns", "max_new_tokns", ...),
    ("answers", {"prompt": "hi", "edits": [{"latents": [1]}] * 9}, "edits", 9, 8),
    ("answers", {"prompt": "hi", "edits": [{}]}, "latents", None, None),
    ("answers", {"prompt": "hi", "edits": [{"latents": []}]}, "edits[0].latents", 0, 1),
    ("answers", {"prompt": "hi", "edits": [{"latents": [*range(65)]}]}, "edits[0].latents", 65, 64),
    ("answers", {"prompt": "hi", "edits": [{"latents": [1, 1]}]}, "edits[0].latents", None, None),
    ("answers", {"prompt": "hi", "edits": [{"latents": [1, 40]}]}, "edits[0].latents[1]", 40, 39),
    ("answers", {"prompt": "hi", "edits": [{"latents": [-1]}]}, "edits[0].latents[0]", -1, 0),
    ("answers", {"prompt": "hi", "crosscoder": "two", "edits": [{"latents": [30]}]}, "edits[0].latents[0]", 30, 29),
    ("answers", {"prompt": "hi", "edits": [{"latents": [1], "how": "kill"}]}, "edits[0].how", "kill", ...),
    ("answers", {"prompt": "hi", "edits": [{"latents": [1], "model": "both"}]}, "edits[0].model", "both", ...),
    ("answers", {"prompt": "hi", "edits": [{"latents": [1], "coefficient": 1e9}]}, "edits[0].coefficient", 1e9, 1000.0),
    (
        "answers",
        {"prompt": "hi", "edits": [{"latents": [1], "coefficient": "x"}]},
        "edits[0].coefficient",
        "x",
        "number",
    ),
]


@pytest.mark.parametrize(("route", "body", "field", "value", "limit"), ODD)
def test_what_does_not_fit_is_refused_by_field_value_and_limit(route, body, field, value, limit):
    error = refusal(getattr(READER, route), body)
    assert (error.status, error.field, error.value) == (422, field, value)
    assert limit is ... or error.limit == limit
    told = error.as_json()["error"]
    assert set(told) == {"message", "field", "value", "limit"}
    assert json.loads(json.dumps(told)) == told
    assert len(told["message"]) < 300
    if field and value is not None:
        assert field in told["message"]


NO_JSON = [b"", b"{", b"\xff\xfe", b"hi", b'{"prompt": NaN}', b'{"prompt": 1e400', b"[" * 100_000, b"1" * 5000]


@pytest.mark.parametrize("body", NO_JSON, ids=range(len(NO_JSON)))
def test_a_body_that_is_no_json_is_refused(body):
    assert refusal(READER.latents, body).status == 400


def test_a_number_beyond_floats_is_refused():
    body = b'{"prompt": "hi", "edits": [{"latents": [1], "coefficient": 1e999}]}'
    assert refusal(READER.answers, body).field == "edits[0].coefficient"


def test_a_long_value_is_shown_short():
    error = refusal(READER.latents, {"prompt": "hi", "crosscoder": "x" * 10_000})
    assert len(json.dumps(error.as_json())) < 500


def test_limits_follow_the_settings_and_odd_settings_are_refused():
    assert ServeConfig("folder", max_new_tokens=5, max_passes=2).limits == Limits(max_new_tokens=5, max_passes=2)
    for odd in ({"port": -1}, {"port": 70_000}, {"max_passes": 0}, {"max_body_bytes": 0}, {"max_prompt_tokens": -8}):
        with pytest.raises(ValueError, match=next(iter(odd))):
            ServeConfig("folder", **odd)
