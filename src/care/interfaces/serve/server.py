"""The process behind `care serve`: it listens, loads the model meanwhile, and ends in order.

On SIGINT or SIGTERM nothing new is taken, and what is there is answered to its end, for `grace`
seconds, in which who asks is told so; then, or at a second Ctrl-C, the model stops after the token
that it is at, and those who still wait are told. A third Ctrl-C waits for nothing. Not here:
requests (`service`).
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

import uvicorn

from care.interfaces.requests.hosts import listening, url_of
from care.interfaces.serve.config import ServeConfig
from care.interfaces.serve.engine import Engine
from care.interfaces.serve.heads import TimedHeads
from care.interfaces.serve.loading import load
from care.interfaces.serve.records import Log
from care.interfaces.serve.service import Service

CONNECTIONS = 1000
"""Connections at once; more are refused by uvicorn, before anything of theirs is read."""

LAST_SECONDS = 10
"""Seconds in which those who wait are told, once the model was stopped."""

_LOOK = 0.05
"""Seconds between two looks at whether somebody still waits."""


class Server(uvicorn.Server):
    """A service that listens, and its life from the first signal to the last."""

    def __init__(self, service: Service, load: Callable[[], Engine]) -> None:
        self.service, self._load = service, load
        self.failed: Exception | None = None
        self._hurried = False
        super().__init__(
            uvicorn.Config(
                service.app,
                http=TimedHeads,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                limit_concurrency=CONNECTIONS,
                timeout_graceful_shutdown=LAST_SECONDS,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and begin to load the model."""
        await super().startup(sockets)
        # A thread that ends with the process: loading can't be broken off.
        threading.Thread(target=self._loading, name="care loading", daemon=True).start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End at a signal, which has done its work then and isn't raised anew."""
        if self.should_exit and sig == signal.SIGINT:
            self._hurried, self.force_exit = True, self._hurried
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take nothing new, answer what is there, and let go of the model."""
        self.service.closing = True
        self.service.log.write("ending")
        # It listens on meanwhile: who asks whether it is ready is told, and not refused.
        await self._wait(self.service.config.grace, lambda: self._hurried)
        self._stop()
        await self._wait(LAST_SECONDS, lambda: self.force_exit)
        await super().shutdown(sockets)

    async def _wait(self, seconds: float, enough: Callable[[], bool]) -> None:
        """Until nobody waits for an answer, or it is enough."""
        end = time.monotonic() + seconds
        while self.service.inside and not enough() and time.monotonic() < end:
            await asyncio.sleep(_LOOK)

    def _stop(self) -> None:
        if self.service.engine is not None:
            self.service.engine.stop()

    def fail(self, error: Exception) -> None:
        """End, since the server can't go on; in any thread. Nothing where it ends already."""
        if not self.should_exit:
            self.failed = error
            self.should_exit = True

    def _loading(self) -> None:
        try:
            self.service.engine = self._load()
            self.service.log.write("ready", model=self.service.config.name)
        except Exception as error:
            self.fail(error)


def serve(config: ServeConfig) -> None:
    """Serve a model until a signal; raises what loading it does, UsageError for a port that can't
    be had, and ModelError where vLLM, as a child, has ended."""
    keys = config.known_keys()
    log = Log(config.log_contents)
    with listening(config.host, config.port) as listener, ExitStack() as held:
        server = Server(Service(config, keys, log), lambda: load(config, log, held, server.fail))
        host, port = listener.getsockname()[:2]
        log.write("listening", url=f"{url_of(host, port)}/v1", keys=bool(keys))
        with _lines_only(log):
            server.run([listener])
    if server.failed is not None:
        raise server.failed


class _Lines(logging.Handler):
    """Passes on what a library says as lines of the log."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: Any) -> None:
        self._log.write("server", message=record.getMessage())


@contextmanager
def _lines_only(log: Log) -> Iterator[None]:
    """What uvicorn says and what is warned of become lines of the log."""
    logger = logging.getLogger("uvicorn.error")
    handlers, propagated = logger.handlers[:], logger.propagate
    logger.handlers[:], logger.propagate = [_Lines(log)], False
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: log.write("warning", message=str(message))
        try:
            yield
        finally:
            logger.handlers[:], logger.propagate = handlers, propagated
