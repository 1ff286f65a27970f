"""The built-in pair with a random crosscoder, served to a test client and to real connections."""

import json
import socket
import threading
import time

import pandas as pd
import pytest
import uvicorn
from starlette.testclient import TestClient

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.models.tiny import TINY_HOOK
from sae_lens_crosscoder.report.explorer.page import explorer_page
from sae_lens_crosscoder.serving.app import make_app
from sae_lens_crosscoder.serving.config import Limits
from sae_lens_crosscoder.serving.live_models import LiveCrosscoder, LiveModels
from tests.causal.conftest import random_crosscoder
from tests.report.explorations import make_exploration

TOKEN, D_SAE = "a-token", 40
BEARER = {"Authorization": f"Bearer {TOKEN}"}
LIMITS = Limits(max_prompt_tokens=24, max_new_tokens=16, max_passes=64, max_body_bytes=2000)


def make_crosscoder(seed=0):
    crosscoder = random_crosscoder((96, 96), dtype="float32", threshold=20.0, d_sae=D_SAE, seed=seed)
    metadata = crosscoder.cfg.metadata
    metadata.model_name, metadata.chat_model_name, metadata.hook_name = "tiny-base", "tiny-chat", TINY_HOOK
    return crosscoder


@pytest.fixture(scope="session")
def models():
    pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
    table = pd.DataFrame({"max_activation": [float(j) for j in range(D_SAE)]})
    crosscoders = {"one": LiveCrosscoder(make_crosscoder(), table), "two": LiveCrosscoder(make_crosscoder(seed=1))}
    return LiveModels(pair, crosscoders, LIMITS)


@pytest.fixture(scope="session")
def page(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("explorations")
    explorations = {name: make_exploration(folder, D_SAE, seed=seed) for seed, name in enumerate(models.crosscoders)}
    return explorer_page(explorations, live=models.description())


@pytest.fixture
def client(models):
    with TestClient(make_app(models, "the page", token=TOKEN, host="127.0.0.1"), "http://127.0.0.1") as client:
        client.headers.update(BEARER)
        yield client


@pytest.fixture(scope="session")
def port(models, page):
    """Of a server with real connections."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=256)
    app = make_app(models, page, token=TOKEN, host="127.0.0.1")
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=3))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join()


def lines(response):
    """The events of an answer; its status must be 200."""
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.splitlines()]
