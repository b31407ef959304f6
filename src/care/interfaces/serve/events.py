"""Sending an answer, whole or as a stream of events, to a client that may hang up at any moment.

A stream that waits says so every few seconds in a comment, which clients don't show and proxies
count as life. A client that hangs up is noticed at once, also before anything was sent to it: its
request is marked, and the engine sees to the rest. Not here: what is sent (`completion`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio.abc import TaskGroup
from starlette.types import Receive, Send

from care.interfaces.serve.completion import DONE, Completion, event
from care.interfaces.serve.engine import Engine, Pending, Served
from care.interfaces.serve.records import Record
from care.models.alarms import Withdrawn

LIFE_SIGN = 15.0
"""Seconds without an event after which a stream says that it waits."""

READ_SECONDS = 60.0
"""Seconds in which a client has to read what was sent to it."""


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


@asynccontextmanager
async def while_connected(receive: Receive, asked: Pending) -> AsyncIterator[TaskGroup]:
    """ClientGone where the client hangs up; the request is marked before. Yields the group in which
    more may be done as long as it doesn't."""
    hung_up, failed = False, None

    async def watch() -> None:
        nonlocal hung_up
        while (await receive())["type"] != "http.disconnect":
            pass
        hung_up = asked.gone = True
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        try:
            yield group
        except Exception as error:  # raised below, since a group would wrap it
            failed = error
        finally:
            # Also where the server cancels it: nobody waits now.
            asked.gone = True
            group.cancel_scope.cancel()
    if hung_up:
        raise ClientGone
    if failed is not None:
        raise failed


class EventStream:
    """One answer as a stream of events."""

    def __init__(
        self, engine: Engine, asked: Pending, completion: Completion, record: Record
    ) -> None:
        self._engine, self._asked = engine, asked
        self._completion, self._record = completion, record
        # Without a limit: it holds no more than an answer, and a slow reader must not hold up the
        # model.
        self._queue: asyncio.Queue[str | Withdrawn | Served | Exception] = asyncio.Queue()

    async def send(self, receive: Receive, send: Send) -> None:
        """Answer, and send what is answered; raises ClientGone."""
        self._loop = asyncio.get_running_loop()
        self._asked.tell = self._heard
        headers = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-store",
            "x-accel-buffering": "no",
        }
        async with while_connected(receive, self._asked) as group:
            group.start_soon(self._answer)
            self._record.begun = True
            await send(_start(200, headers))
            await self._pass_on(lambda content: _in_time(send, _body(content, more=True)))
        await send(_body(b""))  # not above: to a server, what follows it is a client that is gone

    def _heard(self, said: str | Withdrawn | Served | Exception) -> None:
        """Queue what is said, in any thread; all of it goes this way, so that its order is kept."""
        self._loop.call_soon_threadsafe(self._take, said)

    def _take(self, said: str | Withdrawn | Served | Exception) -> None:
        # Here and not where it is sent: who hangs up now, or is told an error, has raised it too.
        if isinstance(said, Withdrawn) and said.alarm is not None:
            self._record.raised.append(said.alarm)
        elif isinstance(said, Served):
            self._record.raised += said.answer.alarms
        self._queue.put_nowait(said)

    async def _answer(self) -> None:
        try:
            self._heard(await self._engine.answer(self._asked))
        except Exception as error:
            self._heard(error)

    async def _pass_on(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        completion, record = self._completion, self._record
        await send(completion.first())
        while True:
            try:
                said = await asyncio.wait_for(self._queue.get(), LIFE_SIGN)
            except TimeoutError:
                await send(b": waiting\n\n")
                continue
            if isinstance(said, Exception):
                await send(event(record.failed(said).body))
                return
            if isinstance(said, Served):
                record.status, record.served = 200, said
                record.seen()  # of one that was answered with others, all of it is here
                for chunk in completion.last(said):
                    await send(chunk)
                await send(DONE)
                record.withdrawn = completion.withdrew
                return
            for chunk in completion.more(said):
                record.seen()
                await send(chunk)
            record.withdrawn = completion.withdrew


async def _in_time(send: Send, message: dict[str, Any]) -> None:
    """Send a part of a stream; ClientGone for a client that doesn't read."""
    try:
        with anyio.fail_after(READ_SECONDS):
            await send(message)
    except TimeoutError:
        raise ClientGone from None


def _start(status: int, headers: dict[str, str]) -> dict[str, Any]:
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": pairs}


def _body(content: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": content, "more_body": more}
