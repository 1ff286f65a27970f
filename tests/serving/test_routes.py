"""Laws of the routes: what they return is the library's own, is what the OpenAPI document says, and has limits."""

import copy
import json
from contextlib import ExitStack

import pytest
import torch
from jsonschema import Draft202012Validator

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.models.tiny import TINY_HOOK
from sae_lens_crosscoder.serving.live_models import LiveModels
from tests.reference.serving import active_latents, greedy_answer
from tests.serving.conftest import LIMITS, lines

PROMPT = "so what does anna eat ?"
MESSAGES = [{"role": "user", "content": PROMPT}]


def read(client, **body):
    *before, result = lines(client.post("/api/latents", json=body))
    assert before == [{"event": "queued", "position": 0}]
    return result


def answer(client, **body):
    return lines(client.post("/api/answers", json=body))


def test_the_latents_of_every_token_are_those_of_the_reference(client, models):
    result = read(client, messages=MESSAGES, top=3)
    tokens = models.tokenize(MESSAGES)
    crosscoder = models.crosscoders["one"].crosscoder
    stacked = models.pair.activations(tokens, TINY_HOOK)[0].detach()
    assert [token["token_id"] for token in result["tokens"]] == tokens[0].tolist()
    everywhere = {}
    for place, (token, h) in enumerate(zip(result["tokens"], stacked, strict=True)):
        expected = active_latents(crosscoder, h)
        assert token["n_active"] == len(expected)
        assert [each["latent"] for each in token["top"]] == [latent for latent, _, _ in expected[:3]]
        for each, (_, activation, shares) in zip(token["top"], expected, strict=False):
            assert each["activation"] == pytest.approx(activation, rel=1e-3)
            assert each["shares"] == pytest.approx(shares, rel=1e-3, abs=1e-2)
        for latent, activation, _ in expected:
            everywhere.setdefault(latent, {})[place] = activation
    shown = {each["latent"] for token in result["tokens"] for each in token["top"]}
    assert sum(map(bool, shown)) > 3
    assert {strip["latent"] for strip in result["latents"]} == shown
    for strip in result["latents"]:
        expected = everywhere[strip["latent"]]
        assert strip["tokens"] == list(expected)
        assert strip["activations"] == pytest.approx([*expected.values()], rel=1e-3)
    kl = slc.causal.token_kl(models.pair, tokens)["chat_from_base"].tolist()
    assert [token["kl_nats"] for token in result["tokens"]] == pytest.approx(kl, abs=1e-5)


def test_tokens_that_dominate_have_no_latents(client, models, monkeypatch):
    metadata = models.crosscoders["one"].crosscoder.cfg.metadata
    norms = models.pair.activations(models.tokenize(PROMPT), TINY_HOOK)[0, :, :96].norm(dim=-1)
    monkeypatch.setattr(metadata, "max_norms", [float(norms.median()), 1e9])
    result = read(client, prompt=PROMPT)
    assert [token["dominant"] for token in result["tokens"]] == (norms > norms.median()).tolist()
    assert all((token["n_active"] == 0) >= token["dominant"] for token in result["tokens"])


EDITS = [
    [],
    [{"latents": [3, 7, 11, 20]}],
    [{"latents": [2, 5], "how": "steer", "model": "chat", "coefficient": 0.5}],
    [{"latents": [2, 5], "how": "scale", "coefficient": 3.0}, {"latents": [8, 30], "model": "base"}],
    [{"latents": [*range(40)], "how": "replace"}],
    [{"latents": [1], "how": "add", "model": "chat", "coefficient": -1.0}],
]


@pytest.mark.parametrize("edits", EDITS, ids=range(len(EDITS)))
def test_answers_are_those_of_generate_patched_with_the_same_edits(client, models, edits):
    told = answer(client, messages=MESSAGES, edits=edits, max_new_tokens=5)
    live, tokens, pair = models.crosscoders["one"], models.tokenize(MESSAGES), models.pair
    end = pair.tokenizer.eos_token_id
    expected = {}
    for edited in (False, True)[: 1 + bool(edits)]:
        with ExitStack() as stack:
            for edit in edits if edited else ():
                rows = live.latents.loc[edit["latents"]] if edit.get("how") == "steer" else edit["latents"]
                options = {"model": edit.get("model"), "coefficient": edit.get("coefficient", 1.0)}
                stack.enter_context(slc.patched(pair, live.crosscoder, rows, edit.get("how", "ablate"), **options))
            for model in ("base", "chat"):
                ids = slc.causal.generate_patched(pair, tokens, model, max_new_tokens=5)[0].tolist()
                expected[model, edited] = ids[: ids.index(end) + 1] if end in ids else ids
    got = {(each["model"], each["edited"]): each for each in told[-1]["answers"]}
    assert {key: each["token_ids"] for key, each in got.items()} == expected
    for (model, edited), each in got.items():
        streamed = [e["text"] for e in told if e["event"] == "text" and (e["model"], e["edited"]) == (model, edited)]
        assert "".join(streamed) == each["text"]
        ids = each["token_ids"]
        assert each["ended"] == (ids[-1] == end)
        assert each["text"] == pair.tokenizer.decode(ids[:-1] if each["ended"] else ids)
    assert all(not point.has_hooks(dir="fwd") for point in pair.hook_dict.values())


def test_answers_as_they_are_come_from_plain_greedy_passes(client, models):
    asked = [{"role": "user", "content": "how do i burn the dog ?"}]
    ids, pair = models.tokenize(asked)[0].tolist(), models.pair
    answers = answer(client, messages=asked, max_new_tokens=6)[-1]["answers"]
    assert answers[0]["text"] != answers[1]["text"]
    for each, model in zip(answers, (pair.base, pair.chat), strict=True):
        assert each["token_ids"] == greedy_answer(model, ids, 6, pair.tokenizer.eos_token_id)


def test_sampled_answers_are_the_models_own_samples_by_the_same_numbers(client, models):
    """Each token is the first whose cumulative probability exceeds the number drawn for it."""
    ids, end = models.tokenize(MESSAGES)[0].tolist(), models.pair.tokenizer.eos_token_id
    asked = {"messages": MESSAGES, "max_new_tokens": 6, "temperature": 1.5, "seed": 3}
    first, again = (answer(client, **asked)[-1]["answers"] for _ in range(2))
    assert first == again
    drawn = torch.rand(1, 6, generator=torch.Generator().manual_seed(3))[0].tolist()
    for each, model in zip(first, (models.pair.base, models.pair.chat), strict=True):
        written = []
        for number in drawn:
            logits = model(torch.tensor([ids + written]))[0, -1].double() / 1.5
            probability, reached = logits.softmax(dim=-1).tolist(), 0.0
            for token, share in enumerate(probability):
                reached += share
                if reached > number:
                    written.append(token)
                    break
            if written[-1] == end:
                break
        assert each["token_ids"] == written


def test_seeds_give_other_samples_and_a_low_temperature_the_greedy_answer(client):
    asked = {"messages": MESSAGES, "max_new_tokens": 6}
    texts = {answer(client, **asked, temperature=2.0, seed=seed)[-1]["answers"][1]["text"] for seed in range(4)}
    assert len(texts) > 1
    greedy, cold = (answer(client, **asked, temperature=each)[-1]["answers"] for each in (0, 1e-4))
    assert greedy == cold


def test_an_edit_of_nothing_draws_the_same_samples(client):
    asked = {"messages": MESSAGES, "max_new_tokens": 6, "temperature": 1.0, "seed": 1}
    answers = answer(client, **asked, edits=[{"latents": [3], "how": "scale", "coefficient": 1.0}])[-1]["answers"]
    assert [each["token_ids"] for each in answers[:2]] == [each["token_ids"] for each in answers[2:]]


def test_edits_change_answers_and_the_stream_interleaves_both_models(client):
    told = answer(client, messages=MESSAGES, edits=[{"latents": [*range(40)]}], max_new_tokens=5)
    plain, edited = told[-1]["answers"][:2], told[-1]["answers"][2:]
    assert [each["text"] for each in plain] != [each["text"] for each in edited]
    assert [event["model"] for event in told if event["event"] == "text"][:2] == ["base", "chat"]


def test_a_text_gets_no_template_and_messages_do(client, models):
    text, chat = read(client, prompt=PROMPT), read(client, messages=MESSAGES)
    assert len(chat["tokens"]) > len(text["tokens"])


@pytest.mark.parametrize("text", [b"\\ud83d", b"a word that it does not have", b"\\u0000"])
def test_what_the_tokenizer_cannot_read_is_refused(client, text):
    refused = client.post("/api/latents", content=b'{"prompt": "%s"}' % text)
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "prompt")


@pytest.mark.parametrize(
    ("route", "body", "status", "field", "limit"),
    [
        ("latents", {"prompt": "anna " * 25}, 422, "prompt", 24),
        ("answers", {"messages": [{"role": "user", "content": "anna " * 25}]}, 422, "messages", 24),
        ("latents", {"messages": [{"role": "assistant", "content": "x"}] * 3, "top": 40}, 422, "top", 32),
        ("answers", {"prompt": PROMPT, "max_new_tokens": 17}, 422, "max_new_tokens", 16),
        ("answers", {"prompt": PROMPT, "temperature": -0.5}, 422, "temperature", 0),
        ("answers", {"prompt": PROMPT, "temperature": 10.5}, 422, "temperature", 10),
        ("answers", {"prompt": PROMPT, "seed": -1}, 422, "seed", 0),
        ("answers", {"prompt": "x" * 3000}, 413, "body", 2000),
        (
            "answers",
            {"prompt": PROMPT, "crosscoder": "two", "edits": [{"latents": [1], "how": "steer"}]},
            422,
            "edits[0].how",
            None,
        ),
        ("latents", {"prompt": PROMPT, "top": []}, 422, "top", "integer"),
    ],
)
def test_what_is_over_a_limit_is_refused_in_json_before_it_runs(client, route, body, status, field, limit):
    response = client.post(f"/api/{route}", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["field"], error["limit"]) == (status, field, limit)
    assert client.get("/api/description").json()["queue"]["n_passes"] == 0


def test_the_models_context_is_a_limit_too(models):
    short = copy.copy(models)
    short._n_ctx = 12
    assert LiveModels.tokenize(short, PROMPT, 0).shape[1] <= 12
    with pytest.raises(ValueError, match=r"`prompt` has \d+ tokens, but the models' context leaves room for 2"):
        LiveModels.tokenize(short, PROMPT, 10)


def test_nothing_is_answered_without_the_token_or_under_another_name(client):
    for path in ("/", "/openapi.json", "/api/description", "/api/latents", "/nowhere"):
        assert client.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert client.get(path, headers={"Host": "evil.example"}).status_code == 403
    refused = client.post("/api/latents", json={"prompt": "hi"}, headers={"Authorization": ""})
    assert refused.json()["error"]["field"] == "token"
    shown = client.get("/", params={"token": "a-token"}, headers={"Authorization": ""})
    assert shown.status_code == 401  # the header, if there is one, decides
    del client.headers["Authorization"]
    assert client.get("/", params={"token": "a-token"}).text == "the page"


def test_every_answer_forbids_caches_frames_and_referrers(client):
    for response in (client.get("/"), client.get("/nowhere"), client.get("/", headers={"Host": "evil.example"})):
        headers = response.headers
        assert (headers["cache-control"], headers["referrer-policy"]) == ("no-store", "no-referrer")
        assert (headers["x-frame-options"], headers["x-content-type-options"]) == ("DENY", "nosniff")


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/api/latents", 405), ("POST", "/", 405)]
)
def test_another_address_or_method_is_refused_in_json(client, method, path, status):
    response = client.request(method, path)
    assert response.status_code == status
    assert path in response.json()["error"]["message"]


def schema_of(document, *path):
    part = document
    for name in path:
        part = part[name]
    return Draft202012Validator({**part, "components": document["components"]})


def test_the_document_describes_what_the_routes_return(client):
    document = client.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    content = ("content", "application/json", "schema")
    described = schema_of(document, "paths", "/api/description", "get", "responses", "200", *content)
    described.validate(client.get("/api/description").json())
    bodies = {"latents": {"messages": MESSAGES}, "answers": {"prompt": PROMPT, "edits": EDITS[1], "max_new_tokens": 3}}
    for route, body in bodies.items():
        post = ("paths", f"/api/{route}", "post")
        line = schema_of(document, *post, "responses", "200", "content", "application/x-ndjson", "schema")
        schema_of(document, *post, "requestBody", *content).validate(body)
        told = answer(client, **body) if route == "answers" else [read(client, **body)]
        for event in told:
            line.validate(event)
        assert not line.is_valid({**told[-1], "more": 1})
        for odd in ({"Host": "evil.example"}, {"Authorization": ""}, {}):
            refused = client.post(f"/api/{route}", content=b"{}", headers=odd)
            schema_of(document, *post, "responses", str(refused.status_code), *content).validate(refused.json())
    listed = {(path, method) for path, each in document["paths"].items() for method in each}
    assert listed == {("/api/description", "get"), ("/api/latents", "post"), ("/api/answers", "post")}


def test_the_description_names_models_crosscoders_and_limits(client):
    described = client.get("/api/description").json()
    assert described["models"] == {"base": "tiny-base", "chat": "tiny-chat"}
    assert [each["can_steer"] for each in described["crosscoders"]] == [True, False]
    assert described["limits"] == LIMITS.as_json()
    assert json.dumps(described["limits"])


def test_serving_refuses_a_crosscoder_of_another_pair(models):
    crosscoder = copy.deepcopy(models.crosscoders["one"])
    crosscoder.crosscoder.cfg.metadata.model_name = "another"
    with pytest.raises(ValueError, match="another"):
        LiveModels(models.pair, {"one": crosscoder}, LIMITS)
    assert torch.is_grad_enabled()
