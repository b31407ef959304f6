"""The server as an ASGI application: who may ask, what is asked, and what comes of it.

    POST /v1/chat/completions     GET /v1/models     GET /health     GET /ready     GET /metrics

A request passes its checks in the order of their cost: key, rate, room, size, form, tokens. Only
then does it wait for the engine, so that what is wrong with it disturbs no other. Not here: the
process and its signals (`server`).
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
from anyio import CapacityLimiter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from care.interfaces.requests.hosts import LOCAL
from care.interfaces.serve.body import ChatRequest, check_model, read_body, too_long
from care.interfaces.serve.completion import Completion
from care.interfaces.serve.config import ServeConfig
from care.interfaces.serve.engine import Engine, Pending
from care.interfaces.serve.events import ClientGone, EventStream, while_connected
from care.interfaces.serve.failures import (
    CLIENT_GONE,
    ModelStopped,
    RequestFailure,
    failure_of,
)
from care.interfaces.serve.keys import Caller, Keys, RateLimit
from care.interfaces.serve.records import Log, Metrics, Record

BODY_SECONDS = 60.0
"""Seconds in which a request's body has to be there."""

READERS = 2
"""Requests that are read at the same time: decoding pictures takes time and memory."""


class Service:
    """Everything between a connection and the engine."""

    def __init__(self, config: ServeConfig, keys: Keys, log: Log) -> None:
        self.config, self.keys, self.log = config, keys, log
        self.engine: Engine | None = None
        self.closing = False
        self.inside = 0
        """Requests that are being read, waiting or answered."""
        self._rates = RateLimit(config.limits.requests_per_minute)
        self._metrics = Metrics(lambda: self.inside)
        self._readers: CapacityLimiter | None = None
        created = int(time.time())
        self._served = {
            "id": config.name,
            "object": "model",
            "created": created,
            "owned_by": "care",
        }
        self._last_seconds = 1.0
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", _Endpoint(self), methods=["POST"]),
                Route("/v1/models", self._models),
                Route("/v1/models/{name:path}", self._model),
                Route("/health", self._health),
                Route("/ready", self._ready),
                Route("/metrics", self._counts),
            ],
            exception_handlers={HTTPException: self._no_route},
        )

    # -- what there is -----------------------------------------------------------------------------

    async def _models(self, request: Request) -> Response:
        try:
            self.caller(request)
        except Exception as error:
            return refused(failure_of(error))
        return JSONResponse({"object": "list", "data": [self._served]})

    async def _model(self, request: Request) -> Response:
        try:
            self.caller(request)
            check_model(request.path_params["name"], self.config.name)
        except Exception as error:
            return refused(failure_of(error))
        return JSONResponse(self._served)

    async def _health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _ready(self, _: Request) -> Response:
        try:
            self.ready()
        except RequestFailure as failure:
            return refused(failure)
        return JSONResponse({"status": "ready"})

    async def _counts(self, request: Request) -> Response:
        try:
            self.caller(request)
        except Exception as error:
            return refused(failure_of(error))
        return Response(self._metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def _no_route(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        known = ", ".join(route.path for route in self.app.routes if isinstance(route, Route))
        said = f"There is no {request.method} {request.url.path:.80} here; there is {known}."
        code = "method_not_allowed" if error.status_code == 405 else "not_found"
        response = refused(RequestFailure(error.status_code, code, said))
        response.headers.update(error.headers or {})  # of a 405, what is allowed
        return response

    # -- who may ask -------------------------------------------------------------------------------

    def caller(self, request: Request) -> Caller:
        """Who asks; RequestFailure without a key, and for a page in a browser that isn't to."""
        try:
            host = urlsplit(f"//{request.headers.get('host', '')}").hostname
        except ValueError:
            host = "?"
        if not self.keys and self.config.host in LOCAL and host not in (*LOCAL, None):
            # A page whose name was made to lead here would otherwise be as good as a local user.
            raise RequestFailure(
                403,
                "wrong_host",
                f"This server is asked as {host!r:.80}, but without keys it answers to "
                f"{', '.join(LOCAL)} alone; ask it so.",
            )
        return self.keys.caller(request.headers.get("authorization"))

    def ready(self) -> Engine:
        """The engine; RequestFailure where there is none to ask."""
        if self.closing:
            raise failure_of(ModelStopped())
        if self.engine is None:
            raise RequestFailure(
                503, "loading", "The model is still being loaded; ask again.", retry_after=5
            )
        if not self.engine.alive:
            raise RequestFailure(
                503, "engine_failed", "The model's device or vLLM failed; start the server again."
            )
        return self.engine

    @contextmanager
    def room(self) -> Iterator[None]:
        """A place for one request; RequestFailure where all are taken."""
        most = self.config.limits.max_waiting
        if self.inside >= most:
            raise RequestFailure(
                429,
                "queue_full",
                f"There are {most} requests already, the most that are taken; ask again later.",
                retry_after=self._last_seconds,
            )
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    def limit_rate(self, caller: Caller) -> None:
        """RequestFailure for a caller who asks too often."""
        if wait := self._rates.take(caller):
            most = self.config.limits.requests_per_minute
            raise RequestFailure(
                429,
                "rate_limit_exceeded",
                f"These are more than {most} requests in a minute; ask again later.",
                retry_after=wait,
            )

    # -- what is asked -----------------------------------------------------------------------------

    async def read(self, request: Request, engine: Engine) -> tuple[ChatRequest, int]:
        """A request and the tokens of its prompt; RequestFailure for what can't be answered."""
        limits = self.config.limits
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise RequestFailure(
                415,
                "unsupported_media_type",
                "The request's Content-Type isn't application/json; send it so.",
            )
        try:
            with anyio.fail_after(BODY_SECONDS):
                body = await _body_of(request, limits.max_body_bytes)
        except TimeoutError:
            raise RequestFailure(
                408,
                "timeout",
                f"The request wasn't whole after {BODY_SECONDS:.0f} s; send it anew.",
            ) from None
        name, length = self.config.name, self.config.answer_length

        def work() -> tuple[ChatRequest, int]:
            asked = read_body(body, name, limits, length)
            return asked, engine.count(asked.conversation, asked.decoding.max_new_tokens)

        if self._readers is None:
            self._readers = CapacityLimiter(READERS)
        asked, tokens = await anyio.to_thread.run_sync(work, limiter=self._readers)
        if tokens > limits.max_prompt_tokens:
            raise too_long(f"{tokens:,} tokens", limits)
        return asked, tokens

    def done(self, record: Record) -> None:
        """Write down a request that has ended."""
        seconds = time.monotonic() - record.started
        if record.served is not None:
            self._last_seconds = seconds
        self._metrics.request(record, seconds)
        self.log.request(record, seconds)


class _Endpoint:
    """POST /v1/chat/completions."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, record = self._service, Record(f"chatcmpl-{uuid.uuid4().hex}")
        try:
            await self._answer(Request(scope, receive), record, send)
        except (ClientGone, ClientDisconnect):
            record.status = CLIENT_GONE
        except Exception as error:
            failure = record.failed(error)
            if not record.begun:
                await refused(failure)(scope, receive, send)
        except anyio.get_cancelled_exc_class():  # the server waits no longer for its engine
            failure = record.failed(ModelStopped())
            if not record.begun:
                await refused(failure)(scope, receive, send)
            raise
        finally:
            service.done(record)

    async def _answer(self, request: Request, record: Record, send: Send) -> None:
        service = self._service
        caller = service.caller(request)
        record.caller = caller.number
        service.limit_rate(caller)
        engine = service.ready()
        with service.room():
            asked, tokens = await service.read(request, engine)
            if not asked.repaired and not caller.bare:
                raise RequestFailure(
                    403,
                    "repair_required",
                    "This key may not ask for the bare model; leave care.repair out, or use a key "
                    "of --bare-keys.",
                    "care",
                )
            record.stream, record.prompt_tokens = asked.stream, tokens
            record.asked = asked.conversation.prompt
            waits = Pending(asked.conversation, asked.decoding, asked.repaired)
            completion = Completion(
                record.id,
                record.created,
                service.config.name,
                asked.decoding,
                engine.tags,
                tokens,
                asked.conversation.opening,
                asked.usage,
            )
            if asked.stream:
                stream = EventStream(engine, waits, completion, record)
                await stream.send(request.receive, send)
                return
            async with while_connected(request.receive, waits):
                record.served = await engine.answer(waits)
        record.status = 200
        response = JSONResponse(completion.whole(record.served))
        await response(request.scope, request.receive, send)


async def _body_of(request: Request, most: int) -> bytes:
    """The whole body; RequestFailure for one of too many bytes."""
    found, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= most:
            found += chunk
        elif size > 2 * most + 2**20:
            # Read on until here, unkept: who still sends when the answer comes may not read it.
            break
        else:
            found.clear()
    if size > most:
        raise RequestFailure(
            413,
            "request_too_large",
            f"The request has more than {most:,} bytes; send smaller or fewer images.",
        )
    return bytes(found)


def refused(failure: RequestFailure) -> Response:
    """The response to a request that isn't answered."""
    # In ASCII: it may repeat half a character of the request, which no encoding has.
    content = json.dumps(failure.body)
    return Response(content, failure.status, dict(failure.headers), "application/json")
