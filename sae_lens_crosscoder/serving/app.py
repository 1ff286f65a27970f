"""The web application: the page, three routes for programs, and the document that describes them."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from typing_extensions import override

from sae_lens_crosscoder.serving.errors import RequestError
from sae_lens_crosscoder.serving.guard import validate_access
from sae_lens_crosscoder.serving.live_models import LiveModels
from sae_lens_crosscoder.serving.openapi import openapi
from sae_lens_crosscoder.serving.queue import ModelPass, PassQueue
from sae_lens_crosscoder.serving.requests import RequestReader
from sae_lens_crosscoder.storage.versions import package_versions

_SECONDS_FOR_BODY = 20
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",  # the address has the token
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def make_app(models: LiveModels, page: str, *, token: str, host: str) -> ASGIApp:
    """Make the application.

    Args:
        page: the explorer with its panel.
        token: that every request must have.
        host: the address that it is served at, for the check of the Host header.
    """
    routes = _Routes(models, page)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            routes.queue.close()

    app = Starlette(
        routes=[
            Route("/", routes.page),
            Route("/openapi.json", routes.document),
            Route("/api/description", routes.description),
            Route("/api/latents", routes.latents, methods=["POST"]),
            Route("/api/answers", routes.answers, methods=["POST"]),
        ],
        exception_handlers={RequestError: _refusal, HTTPException: _unknown_route},
        lifespan=lifespan,
    )
    return _Guard(app, token, host)


class _Routes:
    def __init__(self, models: LiveModels, page: str) -> None:
        sizes = {name: live.crosscoder.cfg.d_sae for name, live in models.crosscoders.items()}
        self._models, self._page = models, page
        self._document = openapi(
            models.limits, sizes, package_versions(("sae-lens-crosscoder",))["sae-lens-crosscoder"]
        )
        self._reader = RequestReader(self._document, sizes)
        self.queue = PassQueue(models.limits.max_passes)

    async def page(self, request: Request) -> Response:
        return HTMLResponse(self._page)

    async def document(self, request: Request) -> Response:
        return JSONResponse(self._document)

    async def description(self, request: Request) -> Response:
        queue = {"n_passes": len(self.queue), "max_passes": self.queue.max_passes}
        return JSONResponse({**self._models.description(), "queue": queue})

    async def latents(self, request: Request) -> Response:
        asked = self._reader.latents(await self._body(request))
        tokens = self._models.tokenize(asked.prompt)
        return _Lines(self.queue.add(lambda: self._models.latents(asked, tokens)))

    async def answers(self, request: Request) -> Response:
        asked = self._reader.answers(await self._body(request))
        self._models.validate_edits(asked)
        tokens = self._models.tokenize(asked.prompt, asked.max_new_tokens)
        return _Lines(self.queue.add(lambda: self._models.answers(asked, tokens)))

    async def _body(self, request: Request) -> bytes:
        limit, body = self._models.limits.max_body_bytes, bytearray()
        try:
            async with asyncio.timeout(_SECONDS_FOR_BODY):
                async for part in request.stream():
                    body += part
                    if len(body) > limit:
                        message = f"The body is over the limit of {limit} bytes: send less."
                        raise RequestError(413, message, "body", len(body), limit)
        except TimeoutError:
            message = f"The body did not arrive within {_SECONDS_FOR_BODY} s: send it at once."
            raise RequestError(408, message, "body", None, _SECONDS_FOR_BODY) from None
        return bytes(body)


class _Lines(Response):
    """What a pass tells, line by line; the pass is cancelled when the client is gone."""

    media_type = "application/x-ndjson"

    def __init__(self, running: ModelPass) -> None:
        super().__init__()
        del self.headers["content-length"]  # it is not known before the last line
        self._running = running

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tasks = [asyncio.create_task(self._send(send)), asyncio.create_task(_until_gone(receive))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._running.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for line in self._running.lines():
            await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Guard:
    """Lets nobody in without the token, and gives every answer its headers."""

    def __init__(self, app: ASGIApp, token: str, host: str) -> None:
        self._app, self._token, self._host = app, token, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                ours = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *ours]}
            await send(message)

        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            try:
                validate_access(scope["headers"], scope["query_string"], token=self._token, host=self._host)
            except RequestError as error:
                await JSONResponse(error.as_json(), error.status)(scope, receive, send_with_headers)
            else:
                await self._app(scope, receive, send_with_headers)


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)  # the only kind that it handles
    return JSONResponse(error.as_json(), error.status)


async def _unknown_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # another address or method
    message = f"There is no {request.method} {request.url.path}: see /openapi.json."
    refusal = RequestError(error.status_code, message, "path", request.url.path)
    return JSONResponse(refusal.as_json(), error.status_code, headers=dict(error.headers or {}))


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
