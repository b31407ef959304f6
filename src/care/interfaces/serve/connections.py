"""The connections of a client of httpx, which another thread can end while they are read.

    httpx.Client().post(…, extensions={"trace": connections.trace})
    connections.close()

Closing a client, or its sockets, doesn't wake a thread that reads from one of them; shutting them
down does, and what is read ends in an error of httpx. Which sockets there are is told by the trace
of httpcore.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import suppress
from threading import Lock
from typing import Any
from weakref import WeakSet

_OPENED = ("connect_tcp.complete", "connect_unix_socket.complete", "start_tls.complete")


class Connections:
    """Sockets that were opened and not let go of."""

    def __init__(self) -> None:
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._changing, self._closed = Lock(), False

    def trace(self, event: str, facts: Mapping[str, Any]) -> None:
        """What httpcore tells while it sends a request; in any thread."""
        if event.endswith(_OPENED):
            opened = facts["return_value"].get_extra_info("socket")
            with self._changing:
                self._sockets.add(opened)
                closed = self._closed
            if closed:
                _shut(opened)

    def close(self) -> None:
        """End all that are open, and those that will be."""
        with self._changing:
            self._closed = True
            opened = list(self._sockets)
        for each in opened:
            _shut(each)


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):  # it was at its end
        connection.shutdown(socket.SHUT_RDWR)
