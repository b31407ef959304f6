"""Connections that ask for nothing are closed, so that silent ones don't keep others out.

uvicorn waits for ever for a request's first lines, and takes a number of connections at once. Here
they have to be whole `HEAD_SECONDS` after a connection was made, or after the answer before. Not
here: bodies, which have a time of their own, and only of who may ask (`service`).
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

HEAD_SECONDS = 20.0
"""Seconds in which a request's line and headers have to be there."""


class TimedHeads(H11Protocol):
    """uvicorn's protocol, with a time for what comes before a request's body."""

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """A client is there."""
        super().connection_made(transport)
        self._wait(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        if self._waiting is not None:
            self._waiting.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """It was answered, and may ask again."""
        answered = self.cycle  # what was sent behind it is begun at once, and is another
        super().on_response_complete()
        self._wait(answered)

    def _wait(self, before: RequestResponseCycle | None) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        self._waiting = self.loop.call_later(HEAD_SECONDS, self._close_unless_asked, before)

    def _close_unless_asked(self, before: RequestResponseCycle | None) -> None:
        if self.cycle is before and not self.transport.is_closing():
            self.transport.close()
