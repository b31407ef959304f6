"""Addresses at which a command listens: bound before a model is loaded for nothing."""

from __future__ import annotations

import socket

from care.errors import UsageError

LOCAL = ("127.0.0.1", "localhost", "::1")
"""Hosts that nobody reaches from another machine."""


def listening(host: str, port: int) -> socket.socket:
    """A socket bound to an address; UsageError for a host or port that can't be had."""
    try:
        (family, *_, address) = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family)
    except OSError as error:
        raise UsageError(f"--host {host} is no address ({error}); pass another.") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise UsageError(
            f"Port {port} of {host} can't be had ({error.strerror or error}); pass another --port."
        ) from error
    return listener


def url_of(host: str, port: int) -> str:
    """How a browser or a client says an address."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
