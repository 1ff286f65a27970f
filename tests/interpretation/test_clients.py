"""The endpoint's client against a server on this machine that speaks, and misspeaks, chat completions."""

import importlib.util
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import openai
import pytest

from sae_lens_crosscoder.interpretation import Answers, EndpointClient, clients, interpret
from sae_lens_crosscoder.interpretation.cases import InterpretationCases
from tests.interpretation.conftest import rule_model

KEY = "sk-secret-0123456789"
PROMPTS = [({"role": "user", "content": f"question {n}"},) for n in range(12)]


@pytest.fixture
def server(monkeypatch):
    """`reply(messages)` gives (status, body, headers) or just the content; `requests` is what came."""
    state = SimpleNamespace(reply=lambda messages: messages[-1]["content"].upper(), requests=[], at_once=0, most=0)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                state.requests.append((self.path, body, self.headers))
                state.at_once += 1
                state.most = max(state.most, state.at_once)
            said = state.reply(body["messages"])
            if isinstance(said, str):
                said = (200, {"choices": [{"message": {"role": "assistant", "content": said}}]}, {})
            status, answer, headers = said
            with lock:
                state.at_once -= 1
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            payload = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *args):
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.01)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        state.url = f"http://127.0.0.1:{http.server_port}/v1"
        yield state
        http.shutdown()


def client(server, **kwargs):
    return EndpointClient("some/model", server.url, **kwargs)


def test_every_prompt_gets_its_own_answer_by_the_protocol(server):
    got = dict(client(server, settings={"temperature": 0, "seed": 3}).answers(PROMPTS))
    assert got == {n: f"QUESTION {n}" for n in range(12)}
    for path, body, headers in server.requests:
        assert path == "/v1/chat/completions"
        assert {name: body[name] for name in ("model", "temperature", "seed")} == {
            "model": "some/model",
            "temperature": 0,
            "seed": 3,
        }
        assert headers["Authorization"] == f"Bearer {KEY}"
    assert sorted(body["messages"][0]["content"] for _, body, _ in server.requests) == sorted(
        prompt[0]["content"] for prompt in PROMPTS
    )


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_requests_run_at_a_time_than_allowed(server, concurrency):
    def slow(messages):
        time.sleep(0.05)
        return "yes"

    server.reply = slow
    list(client(server, concurrency=concurrency).answers(PROMPTS))
    assert server.most == concurrency


def test_what_may_pass_is_tried_again(server):
    n_tries = {}

    def busy(messages):
        question = messages[0]["content"]
        n_tries[question] = n_tries.get(question, 0) + 1
        status = [429, 500, 503, 200][n_tries[question] - 1]
        return "at last" if status == 200 else (status, b"busy", {})

    server.reply = busy
    assert dict(client(server).answers(PROMPTS[:3])) == dict.fromkeys(range(3), "at last")
    assert set(n_tries.values()) == {4}
    n_tries.clear()
    with pytest.raises(OSError, match=r"answered 503 to a request for 'some/model': busy\n.* busy through 2 retries"):
        list(client(server, max_retries=2).answers(PROMPTS[:1]))
    assert set(n_tries.values()) == {3}


def test_the_wait_that_the_endpoint_asks_for_is_kept(server):
    times = []

    def busy(messages):
        times.append(time.monotonic())
        return "now" if len(times) > 1 else (429, b"", {"Retry-After": "1"})

    server.reply = busy
    assert dict(client(server).answers(PROMPTS[:1])) == {0: "now"}
    assert 1.0 <= times[1] - times[0] < 3


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ((400, b'{"error": "no such model"}', {}), "answered 400 .*no such model"),
        ((401, b"who?", {}), "Check the key in the variable OPENAI_API_KEY"),
        ((302, b"", {"Location": "http://127.0.0.1:1/"}), "answered 302 .*\n.*Check base_url"),
        ((200, b"<html>", {}), "Expected a chat completion"),
        ((200, {"error": {"message": "credits"}}, {}), "credits.*\n.*Expected a chat completion"),
        ((200, {"choices": []}, {}), "Expected a chat completion"),
    ],
)
def test_a_refusal_is_said_at_once_and_without_the_key(server, said, message):
    server.reply = lambda messages: said
    with pytest.raises(ValueError, match=message) as error:
        list(client(server, concurrency=1).answers(PROMPTS))
    assert KEY not in repr(error.value)
    assert len(server.requests) == 1


def test_answers_that_were_under_way_come_before_the_refusal(server):
    is_refused = threading.Event()

    def one_refused(messages):
        if messages[0]["content"] == "question 1":
            is_refused.set()
            return 400, b"no", {}
        is_refused.wait(timeout=60)
        time.sleep(0.2)
        return "still there"

    server.reply = one_refused
    answers, got = client(server, concurrency=3).answers(PROMPTS), {}
    with pytest.raises(ValueError, match="answered 400"):
        got.update(answers)
    assert len(server.requests) == 3
    assert got == {0: "still there", 2: "still there"}


def test_an_endpoint_that_is_not_there_cannot_be_reached(server):
    away = EndpointClient("m", "http://127.0.0.1:1/v1", max_retries=1)
    with pytest.raises(OSError, match=r"http://127\.0\.0\.1:1/v1 cannot be reached: .*refused"):
        list(away.answers(PROMPTS[:1]))


def test_a_model_that_says_nothing_answered_with_nothing(server):
    server.reply = lambda messages: (200, {"choices": [{"message": {"content": None}}]}, {})
    assert dict(client(server).answers(PROMPTS[:1])) == {0: ""}


def test_the_key_is_kept_nowhere_and_endpoints_without_one_get_none(server, tmp_path, monkeypatch):
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    answers = Answers(tmp_path / "answers.jsonl", client(server))
    answers.ask(PROMPTS, "")
    assert KEY not in (tmp_path / "answers.jsonl").read_text()
    assert KEY not in repr(answers.client)
    assert all(headers["Authorization"] == f"Bearer {KEY}" for _, _, headers in server.requests)
    server.requests.clear()
    monkeypatch.delenv("OPENAI_API_KEY")
    list(client(server).answers(PROMPTS[:1]))
    assert "Authorization" not in server.requests[0][2]
    monkeypatch.setenv("OTHER_KEY", "other\n")
    list(client(server, api_key_variable="OTHER_KEY").answers(PROMPTS[:1]))
    assert server.requests[1][2]["Authorization"] == "Bearer other"


def test_without_the_openai_package_the_module_imports_and_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    spec = importlib.util.spec_from_file_location("clients_without_openai", clients.__file__)
    monkeypatch.setitem(sys.modules, spec.name, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(sys.modules[spec.name])
    with pytest.raises(ValueError, match=r"pip install 'sae-lens-crosscoder\[autointerp\]'"):
        sys.modules[spec.name].EndpointClient("some/model")


def test_planted_latents_are_interpreted_over_http_as_in_process(server, cases, tmp_path):
    server.reply = rule_model
    cases = InterpretationCases(cases.cases[:1], cases.manifest)
    table = interpret(cases, Answers(tmp_path / "http.jsonl", client(server))).table
    assert (table[["detection_random", "detection_hard", "fuzzing"]] == 1.0).all(axis=None)
    n_asked = len(server.requests)
    interpret(cases, Answers(tmp_path / "http.jsonl", client(server), recorded_only=True))
    assert len(server.requests) == n_asked == 1 + 60
