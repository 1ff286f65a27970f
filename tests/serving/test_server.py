"""Laws of the running server: many clients at once, each with its own answer, and nothing left of those that go."""

import http.client
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from tests.serving.conftest import BEARER

PROMPTS = [f"so what does {name} {verb} ?" for name in ("anna", "ben") for verb in ("eat", "paint", "burn")]


def post(port, route, body, read=True):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", f"/api/{route}", json.dumps(body), BEARER)
    if not read:
        return connection
    response = connection.getresponse()
    told = [json.loads(line) for line in response.read().splitlines()]
    connection.close()
    return response.status, told


def n_passes(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/api/description", headers=BEARER)
    count = json.loads(connection.getresponse().read())["queue"]["n_passes"]
    connection.close()
    return count


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_fifty_clients_at_once_each_get_their_own_answer(port):
    bodies = [{"prompt": PROMPTS[i % len(PROMPTS)], "max_new_tokens": 1 + i % 2} for i in range(50)]
    alone = {text: post(port, "answers", json.loads(text))[1][-1] for text in {json.dumps(body) for body in bodies}}
    with ThreadPoolExecutor(50) as clients:
        got = list(clients.map(lambda body: post(port, "answers", body), bodies))
    for body, (status, told) in zip(bodies, got, strict=True):
        assert status == 200, told
        assert told[-1] == alone[json.dumps(body)]
        positions = [event["position"] for event in told if event["event"] == "queued"]
        assert positions == sorted(positions, reverse=True)
        assert positions[-1] == 0
    assert max(event["position"] for _, told in got for event in told if event["event"] == "queued") > 5
    assert n_passes(port) == 0


def test_a_client_that_goes_frees_its_place_while_it_runs_and_while_it_waits(port, models, monkeypatch):
    running, stop = threading.Event(), threading.Event()

    def slow(asked, tokens):
        running.set()
        while not stop.is_set():
            time.sleep(0.01)
            yield {"event": "text", "model": "base", "edited": False, "text": "x"}

    monkeypatch.setattr(models, "answers", slow)
    first = post(port, "answers", {"prompt": "anna"}, read=False)
    assert running.wait(10)
    second = post(port, "answers", {"prompt": "anna"}, read=False)
    third = threading.Thread(target=lambda: got.append(post(port, "latents", {"prompt": "anna"})))
    got = []
    until(lambda: n_passes(port) == 2)
    third.start()
    until(lambda: n_passes(port) == 3)
    second.close()
    until(lambda: n_passes(port) == 2)
    first.close()
    third.join(30)
    ((status, told),) = got
    assert status == 200
    assert [event.get("position") for event in told[:-1]] == [2, 1, 0]
    assert told[-1]["event"] == "latents"
    until(lambda: n_passes(port) == 0)
    stop.set()


def test_the_queue_refuses_the_next_beyond_its_limit(port, models, monkeypatch):
    stop = threading.Event()

    def slow(asked, tokens):
        stop.wait(30)
        yield {"event": "text", "model": "base", "edited": False, "text": "x"}

    monkeypatch.setattr(models, "answers", slow)
    waiting = [post(port, "answers", {"prompt": "anna"}, read=False) for _ in range(64)]
    until(lambda: n_passes(port) == 64)
    status, told = post(port, "answers", {"prompt": "anna"})
    assert (status, told[0]["error"]["value"], told[0]["error"]["limit"]) == (429, 64, 64)
    for connection in waiting:
        connection.close()
    stop.set()
    until(lambda: n_passes(port) == 0)
