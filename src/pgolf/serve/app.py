"""The application: the page, what it asks for, and OpenAI's endpoints; limits, and who may ask.

It is made for one's own machine. A page of another site that is open in the same browser can send requests
here too, so nothing is answered that is addressed to another name or comes from another origin, and no header
allows another page to read.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import aclosing
from dataclasses import asdict
from functools import partial
from importlib import resources
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pgolf.errors import PgolfError
from pgolf.generate.model import Model
from pgolf.serve.analysis import Ways, analyse, following
from pgolf.serve.completions import FIELDS, Completion, asked, checked
from pgolf.serve.worker import Busy, Limits, Worker

_Steps: TypeAlias = AsyncGenerator[dict[str, Any] | None, None]
_LOCAL = ("127.0.0.1", "localhost", "::1")
# Most seconds in which a body may arrive.
_PATIENCE = 30
_SAME_ORIGIN = "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'"
_HEADERS = {
    "content-security-policy": f"{_SAME_ORIGIN}; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Analysed(BaseModel):
    """What ``/analyze`` takes: a text, or its first ``at`` tokens to say what comes next."""

    model_config = ConfigDict(extra="forbid", strict=True)
    text: str
    at: int | None = Field(None, ge=0)


def make_app(model: Model, ways: Ways, limits: Limits, hosts: Collection[str], worker: Worker) -> Starlette:
    """The application of one model.

    Args:
        model: is used in the worker's thread alone from now on.
        ways: how texts are scored.
        limits: what is refused.
        hosts: names by which the server may be called, beside those of the own machine.
        worker: does the work.
    """
    name = model.recipe.name
    about = {"model": name, "parameters": model.parameters, "window": model.window, "ways": list(ways)}
    about |= {"file": model.source.name, "bytes": model.source.stat().st_size, **asdict(limits)}

    async def tell(request: Request) -> Response:
        return JSONResponse(about)

    async def models(request: Request) -> Response:
        created = int(model.source.stat().st_mtime)
        entry = {"id": name, "object": "model", "created": created, "owned_by": "pgolf"}
        return JSONResponse({"object": "list", "data": [entry]})

    async def complete(request: Request) -> Response:
        answer = Completion(model, name, asked(await _json(request, limits.max_body)), limits.max_tokens)
        steps = worker.run(answer.steps)
        if not answer.request.stream:
            return JSONResponse(answer.whole(await _results(request, steps)))
        # What is wrong with the prompt comes up here, where the status can still say so.
        return _Events(answer, await anext(steps), steps)

    async def analyze(request: Request) -> Response:
        wanted = checked(Analysed, await _json(request, limits.max_body))
        steps = partial(analyse, model, ways, wanted.text)
        if wanted.at is not None:
            steps = partial(following, model, ways, wanted.text, wanted.at)
        return JSONResponse((await _results(request, worker.run(steps)))[0])

    async def fail(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 400
        if isinstance(error, Busy):
            status = 503 if worker.closing else 429
        return JSONResponse(_error(error), status)

    return Starlette(
        routes=[
            *_page(),
            Route("/about", tell),
            Route("/analyze", analyze, methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/completions", complete, methods=["POST"]),
        ],
        middleware=[Middleware(_Guard, hosts={*_LOCAL, *(host.lower() for host in hosts)})],
        exception_handlers=dict.fromkeys((PgolfError, Busy, HTTPException, ClientDisconnect), fail),
    )


def _page() -> list[Route]:
    """The page's files; its look is that of reports."""
    own, report = resources.files("pgolf.serve"), resources.files("pgolf.report")
    files = {end: (own / f"page.{end}").read_text("utf-8") for end in ("html", "css", "js")}
    files["css"] = (report / "page.css").read_text("utf-8") + files["css"]
    places = {"/": ("html", "html"), "/page.css": ("css", "css"), "/page.js": ("js", "javascript")}

    def route(path: str, end: str, kind: str) -> Route:
        async def answer(request: Request) -> Response:
            return Response(files[end], media_type=f"text/{kind}")

        return Route(path, answer)

    return [route(path, *what) for path, what in places.items()]


async def _json(request: Request, most: int) -> Any:
    """The body, which is not read further than it may be long."""
    body = bytearray()
    try:
        async with asyncio.timeout(_PATIENCE):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise HTTPException(
                        413, f"the body has more than {most:,} bytes; --max-body sets the limit"
                    )
    except TimeoutError as error:
        raise HTTPException(408, f"the body has not arrived within {_PATIENCE} s") from error
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise PgolfError(f"the body is no JSON: {error}") from error


async def _results(request: Request, steps: _Steps) -> list[Any]:
    """What all steps give, but None; a ``ClientDisconnect`` ends them."""
    found = []
    async with aclosing(steps):
        async for result in steps:
            if await request.is_disconnected():
                raise ClientDisconnect
            found += [] if result is None else [result]
    return found


class _Events(StreamingResponse):
    """An answer as server-sent events; the work ends with it, however it ends."""

    def __init__(self, answer: Completion, first: dict[str, Any] | None, steps: _Steps) -> None:
        self._answer, self._first, self._steps = answer, first, steps
        super().__init__(self._events(), media_type="text/event-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._steps):
            await super().__call__(scope, receive, send)

    async def _events(self) -> AsyncIterator[str]:
        try:
            if self._first is not None:
                yield _event(self._first)
            async for chunk in self._steps:
                if chunk is not None:
                    yield _event(chunk)
            if self._answer.request.stream_options.include_usage:
                yield _event(self._answer.last_chunk())
        except (PgolfError, Busy) as error:
            yield _event(_error(error))
        yield "data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


def _error(error: Exception) -> dict[str, Any]:
    """A mistake in OpenAI's form."""
    message = error.detail if isinstance(error, HTTPException) else str(error)
    word = re.match(r"\w*", message)
    field = word[0] if word is not None and word[0] in FIELDS else None
    kind = "server_busy" if isinstance(error, Busy) else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": field, "code": None}}


class _Guard:
    """Refuses what is addressed to another name, or sent by another site's page; adds the headers."""

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        refused = self._refusal(Headers(scope=scope)) if scope["type"] == "http" else ""
        if refused:
            await JSONResponse(_error(PgolfError(refused)), 403)(scope, receive, guarded)
        else:
            await self._app(scope, receive, guarded)

    def _refusal(self, headers: Headers) -> str:
        host, origin = headers.get("host", ""), headers.get("origin")
        try:
            name, sender = urlsplit(f"//{host}").hostname, urlsplit(origin or "").netloc
        except ValueError:
            name = sender = None
        if name not in self._hosts:
            return f"this server is not called {host!r}; start it with --host NAME"
        if origin is not None and sender != host:
            return f"pages of {origin!r} may not use this server"
        return ""
