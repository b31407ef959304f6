"""A disk that takes a few more bytes and then no more."""

from __future__ import annotations

import errno
import os

import pytest


def full_after(monkeypatch: pytest.MonkeyPatch, allowed: int) -> None:
    """From here on the disk takes `allowed` more bytes, like a real one: a write may be partial."""
    left, write = [allowed], os.write

    def limited(file: int, data: bytes) -> int:
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write(file, data[: left[0]])
        left[0] -= written
        return written

    monkeypatch.setattr(os, "write", limited)
