"""A process between `care serve` and another server that it starts, which outlives neither.

    python -P -m care.interfaces.serve.keeper SCRATCH COMMAND…

It starts the command in a process group of its own and holds the reading end of a pipe to
`care serve`, which the kernel closes however that ends, also by `kill -9`. Then, at SIGTERM, or
when the command has ended by itself, the whole group is told to end, killed if it doesn't, and the
folder SCRATCH removed. Should this process be killed itself, Linux tells the command to end. The
exit code is the command's. The standard library alone: it is small, and starts fast.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

LAST_SECONDS = 10.0
"""Seconds in which the group may end by itself."""

_LOOK = 0.5
"""Seconds between two looks at whether the command still runs."""

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def main(arguments: list[str]) -> int:
    """Run a command for as long as standard input is open; its exit code."""
    scratch, *command = arguments
    told: list[int] = []
    _ask_linux(_PR_SET_CHILD_SUBREAPER, 1)  # what the command leaves behind is waited for here
    try:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=_ends_with_its_parent
        )
        # Only now: a command inherits what is ignored, and must not ignore this.
        signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
        while child.poll() is None and not told and _open():
            pass
        _end(child)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    code = child.returncode
    return 128 - code if code < 0 else code


def _open() -> bool:
    """Whether the pipe is open; waits a moment for its end."""
    ready, _, _ = select.select([0], [], [], _LOOK)
    return not ready or bool(os.read(0, 1024))


def _end(child: subprocess.Popen[bytes]) -> None:
    """The group told to end, and what of it still runs after a while killed."""
    end = time.monotonic() + LAST_SECONDS
    sent = _send(child.pid, signal.SIGTERM)
    while sent and time.monotonic() < end:
        # Who has ended is in the group until somebody waits for it.
        if child.poll() is not None:
            _wait_for_others()
        time.sleep(0.05)
        sent = _send(child.pid, 0)
    _send(child.pid, signal.SIGKILL)
    child.wait()


def _wait_for_others() -> None:
    """Take note of the ends of processes that the command left behind."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _send(group: int, number: int) -> bool:
    """Whether there was anybody to send a signal to."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def _ends_with_its_parent() -> None:
    """SIGTERM when this process is gone."""
    _ask_linux(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _ask_linux(what: int, value: int) -> None:
    """`prctl`; elsewhere the pipe has to do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(what, value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
