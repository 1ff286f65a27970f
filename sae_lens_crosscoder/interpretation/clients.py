"""Models that answer prompts: behind an endpoint, on this machine, or a function."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch
from sae_lens.util import str_to_dtype

from sae_lens_crosscoder.interpretation.prompts import Prompt

OPENAI_URL = "https://api.openai.com/v1"


@runtime_checkable
class Client(Protocol):
    """A model that answers prompts; its answers are stored by prompt, `model` and `settings`."""

    @property
    def model(self) -> str:
        """The name under which answers are stored."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings of a request, stored with its answer."""
        ...

    def answers(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, str]]:
        """Yield every prompt's index and answer as soon as it arrives."""
        ...


@dataclass(frozen=True)
class CallableClient:
    """A client that calls a function from a prompt to an answer."""

    function: Callable[[Prompt], str]
    model: str
    """The name under which answers are stored."""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def answers(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, str]]:
        """Yield every prompt's index and answer, in order."""
        for index, prompt in enumerate(prompts):
            yield index, self.function(prompt)


@dataclass(frozen=True)
class EndpointClient:
    """A client of an endpoint for OpenAI's chat completions: OpenAI, OpenRouter, vLLM, llama.cpp, Ollama.

    Sends several requests at a time through the `openai` package, which retries busy endpoints. The key is read from
    the environment when a request is sent, and stored nowhere.

    Raises:
        ValueError: without the `openai` package, or when the endpoint rejects a request or sends something else than a
            chat completion.
        OSError: when the endpoint cannot be reached or stays busy.
    """

    model: str
    base_url: str = OPENAI_URL
    settings: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0, "max_tokens": 1000})
    """Further fields of every request."""
    api_key_variable: str = "OPENAI_API_KEY"
    """The environment variable of the key; a local endpoint may need none."""
    concurrency: int = 8
    """Requests at a time."""
    max_retries: int = 10
    """Retries of a request, after waits that double up to 8 seconds, or last as long as the endpoint asks for."""
    timeout_seconds: float = 300.0

    def __post_init__(self) -> None:
        if find_spec("openai") is None:
            raise ValueError("EndpointClient needs the openai package: pip install 'sae-lens-crosscoder[autointerp]'.")

    def answers(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, str]]:
        """Yield every prompt's index and answer in order of arrival.

        After a request fails no further one is sent; the answers to those under way are yielded before its error.
        """
        waiting = iter(enumerate(prompts))
        failure: BaseException | None = None
        with self._connection() as openai, ThreadPoolExecutor(self.concurrency) as pool:
            running = {
                pool.submit(self._answer, openai, prompt): index for index, prompt in islice(waiting, self.concurrency)
            }
            while running:
                future = next(as_completed(running))
                index, error = running.pop(future), future.exception()
                failure = failure or error
                if failure is None:
                    running |= {pool.submit(self._answer, openai, prompt): new for new, prompt in islice(waiting, 1)}
                if error is None:
                    yield index, future.result()
        if failure is not None:
            raise failure

    def _connection(self) -> Any:
        import openai

        return openai.OpenAI(
            base_url=self.base_url,
            api_key="sent as a header by each request",
            max_retries=self.max_retries,
            timeout=self.timeout_seconds,
            # A redirect would become a GET, and could lead the key elsewhere.
            http_client=openai.DefaultHttpxClient(follow_redirects=False),
        )

    def _answer(self, connection: Any, prompt: Prompt) -> str:
        import openai

        key = os.environ.get(self.api_key_variable, "").strip()  # a line break in it would make an invalid header
        headers = {"Authorization": f"Bearer {key}" if key else openai.Omit()}
        request = {"model": self.model, "messages": list(prompt), "extra_body": dict(self.settings)}
        try:
            response = connection.chat.completions.with_raw_response.create(
                **request, extra_headers=headers
            ).http_response
        except openai.APIConnectionError as error:
            raise OSError(f"{self.base_url} cannot be reached: {error.__cause__ or error}") from error
        except openai.APIStatusError as error:
            description = self._described(error.response)
            if error.status_code in (401, 403):
                raise ValueError(f"{description}\nCheck the key in the variable {self.api_key_variable}.") from error
            if error.status_code in (408, 409, 429) or error.status_code >= 500:
                raise OSError(f"{description}\nThe endpoint stayed busy through {self.max_retries} retries.") from error
            raise ValueError(f"{description}\nCheck base_url and the model's name.") from error
        try:
            content: Any = response.json()["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(
                f"{self._described(response)}\nExpected a chat completion: check base_url and the model's name."
            ) from error
        return content if isinstance(content, str) else ""  # None where a model refuses

    def _described(self, response: Any) -> str:
        return f"{response.url} answered {response.status_code} to a request for {self.model!r}: {response.text[:300]}"


class LocalClient:
    """A transformers model on this machine that answers greedily; prompts of similar length share a batch.

    Args:
        model: a Hub name or a local folder; its tokenizer needs a chat template.
        settings: further arguments of transformers' `generate`.
        batch_size: prompts per forward pass.

    Raises:
        ValueError: for a tokenizer without a chat template.
    """

    def __init__(
        self,
        model: str,
        *,
        settings: Mapping[str, Any] | None = None,
        batch_size: int = 8,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(model, padding_side="left")
        if self._tokenizer.chat_template is None:
            raise ValueError(f"The tokenizer of {model!r} has no chat template: use an instruction-tuned model.")
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=str_to_dtype(dtype))
        self._model = loaded.to(device).eval()
        self._batch_size = batch_size
        self.model = model
        self.settings: Mapping[str, Any] = {"max_new_tokens": 1000, **(settings or {}), "dtype": dtype}

    @torch.no_grad()
    def answers(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, str]]:
        """Yield every prompt's index and answer, batch by batch."""
        options = {name: value for name, value in self.settings.items() if name != "dtype"}
        by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index][-1]["content"]))
        for start in range(0, len(prompts), self._batch_size):
            indices = by_length[start : start + self._batch_size]
            batch = self._tokenizer.apply_chat_template(
                [list(prompts[index]) for index in indices],
                add_generation_prompt=True,
                padding=True,
                return_dict=True,
                return_tensors="pt",
            ).to(self._model.device)
            generated = self._model.generate(
                **batch, do_sample=False, pad_token_id=self._tokenizer.pad_token_id, **options
            )
            new_tokens = generated[:, batch["input_ids"].shape[1] :]
            yield from zip(indices, self._tokenizer.batch_decode(new_tokens, skip_special_tokens=True), strict=True)
