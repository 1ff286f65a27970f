"""Models that answer prompts, behind an endpoint or a function; each says what it is called and how it is set."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import requests
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from sae_lens_crosscoder.interpretation.prompts import Prompt

OPENAI_URL = "https://api.openai.com/v1"
# Too early, too many requests, conflicts and time-outs pass; so does what happens to a server.
_PASSING = frozenset({408, 409, 425, 429, *range(500, 600)})
_UNREACHABLE = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
_LONGEST_WAIT_SECONDS = 60.0


@runtime_checkable
class Client(Protocol):
    """Whatever answers prompts. Answers are known by the prompt, `model` and `settings`."""

    @property
    def model(self) -> str: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...
    def answers(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, str]]:
        """Every prompt's index and answer, as soon as there is one."""
        ...


@dataclass(frozen=True)
class CallableClient:
    """Any function from a prompt to an answer."""

    function: Callable[[Prompt], str]
    model: str
    """What it is called where answers are kept."""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def answers(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, str]]:
        """Every prompt's index and answer, one after the other."""
        for index, prompt in enumerate(prompts):
            yield index, self.function(prompt)


class PassingError(OSError):
    """An endpoint that cannot be reached or is busy, which may pass."""

    def __init__(self, message: str, wait_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds
        """How long the endpoint itself says to wait."""


@dataclass(frozen=True)
class EndpointClient:
    """A model behind any endpoint that speaks OpenAI's chat completions: OpenAI, OpenRouter, vLLM, llama.cpp, Ollama.

    Several requests run at a time. One that fails for a reason that may pass is tried again, after a wait that doubles
    every time and is at least what the endpoint asks for. The key is read from the environment when a request is made,
    and kept nowhere.

    Raises:
        ValueError: when the endpoint refuses a request or answers something else.
        OSError: when it stays out of reach.
    """

    model: str
    base_url: str = OPENAI_URL
    settings: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0, "max_tokens": 1000})
    """Further fields of every request."""
    api_key_variable: str = "OPENAI_API_KEY"
    """The environment variable that holds the key; endpoints of one's own may need none."""
    concurrency: int = 8
    """Requests at a time."""
    n_attempts: int = 8
    timeout_seconds: float = 300.0
    first_wait_seconds: float = 1.0
    """Before a request is tried again, at most, the first time."""

    def answers(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, str]]:
        """Every prompt's index and answer, in the order in which they come.

        After a request that fails no other one is begun; the answers to those under way come before its error.
        """
        waiting = iter(enumerate(prompts))
        refused: BaseException | None = None
        with ThreadPoolExecutor(self.concurrency) as pool:
            running = {pool.submit(self._answer, prompt): index for index, prompt in islice(waiting, self.concurrency)}
            while running:
                future = next(as_completed(running))
                index, error = running.pop(future), future.exception()
                refused = refused or error
                if refused is None:
                    running |= {pool.submit(self._answer, prompt): other for other, prompt in islice(waiting, 1)}
                if error is None:
                    yield index, future.result()
        if refused is not None:
            raise refused

    def _answer(self, prompt: Prompt) -> str:
        backoff = wait_random_exponential(multiplier=self.first_wait_seconds, max=_LONGEST_WAIT_SECONDS)

        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome is not None else None
            return max(backoff(state), error.wait_seconds if isinstance(error, PassingError) else 0.0)

        tries = stop_after_attempt(self.n_attempts)
        retrying = Retrying(retry=retry_if_exception_type(PassingError), stop=tries, wait=wait, reraise=True)
        return retrying(self._request, prompt)

    def _request(self, prompt: Prompt) -> str:
        url = f"{self.base_url.rstrip('/')}/chat/completions"
        body = {**self.settings, "model": self.model, "messages": list(prompt)}
        try:
            # A redirect is not followed: it would become a GET, and could lead the key elsewhere.
            response = requests.post(
                url, json=body, auth=self._authorise, timeout=self.timeout_seconds, allow_redirects=False
            )
        except _UNREACHABLE as error:
            raise PassingError(f"{url} cannot be reached: {error}") from error
        said = f"{url} answered {response.status_code} to a request for {self.model!r}: {response.text[:300]}"
        if response.status_code in _PASSING:
            raise PassingError(said, _seconds(response.headers.get("Retry-After", "")))
        if response.status_code in (401, 403):
            raise ValueError(f"{said}\nIs the right key in the environment variable {self.api_key_variable}?")
        try:
            content: Any = response.json()["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{said}\nThat is no chat completion: check base_url and the model's name.") from error
        return content if isinstance(content, str) else ""  # None where a model refuses

    def _authorise(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        # As an `auth`, because requests would otherwise put what ~/.netrc says in its place.
        key = os.environ.get(self.api_key_variable, "").strip()  # a line break in it would be refused, and shown
        if key:
            request.headers["Authorization"] = f"Bearer {key}"
        return request


def _seconds(text: str) -> float:
    """A Retry-After header; 0 where it is missing or a date."""
    return min(float(text), _LONGEST_WAIT_SECONDS) if text.isdecimal() else 0.0
