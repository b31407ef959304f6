"""Another server as a child of this process: it is started, watched, and ends with this one.

    child = Child(words, environment, scratch, log)
    child.when_it_ends(tell)        told once, unless this process wanted it
    child.finish()                  ended, and waited for

Between the two is a `keeper`, which ends the child however this process does. What the child says
goes into a file; the line of it that says why it ended is found again here. Not here: what is
started (`local_vllm`).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from care.errors import StorageError
from care.interfaces.serve.keeper import LAST_SECONDS

KEEPER = (sys.executable, "-P", "-m", "care.interfaces.serve.keeper")
"""`-P`: nothing that lies in the folder in which a server was started is run."""

_READ = 2**18
"""Bytes of the log, from its end, in which the reason is looked for."""

_OWN = re.compile(r"care\.errors\.\w+: (.+)")
_ERROR = re.compile(r"(?:^|[\s\]])((?:\w+\.)*\w*(?:[Ee]rror|Exception): .+)")
_FOLLOWS = "Engine core initialization failed"
"""What vLLM says of an error that it has told before."""


class Child:
    """A server that another process runs."""

    def __init__(
        self, words: Sequence[str], environment: Mapping[str, str], scratch: Path, log: Path | None
    ) -> None:
        """Started; `scratch` is removed when it has ended. StorageError for a log that can't be
        written; without one it is a temporary file, which stays only if something went wrong."""
        self.log, own = _opened(log)
        self._removed = log is None
        with own:
            self._process = subprocess.Popen(
                [*KEEPER, str(scratch), *words],
                stdin=subprocess.PIPE,
                stdout=own,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,  # a Ctrl-C is for this process, which ends it in order
            )
        self.ending = False

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def when_it_ends(self, tell: Callable[[], None]) -> None:
        """Have `tell` called, in another thread, when it ends without being told to."""

        def watch() -> None:
            self._process.wait()
            if not self.ending:
                tell()

        threading.Thread(target=watch, name="care child", daemon=True).start()

    def why(self) -> str:
        """Why it ended, as far as its log says so, and where that is."""
        self._removed = False
        return f"{reason(self.said()) or self._code()}; its log is {self.log}"

    def said(self) -> str:
        """The end of its log."""
        with self.log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _READ))
            return file.read().decode("utf-8", "replace")

    def end(self) -> None:
        """Have it end; doesn't wait."""
        self.ending = True
        assert self._process.stdin is not None
        self._process.stdin.close()

    def finish(self) -> None:
        """Ended when this returns."""
        self.end()
        try:
            self._process.wait(2 * LAST_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._removed:
            self.log.unlink(missing_ok=True)

    def _code(self) -> str:
        return f"exit code {self._process.poll()}"


def reason(said: str) -> str | None:
    """The line of a log that says why its writer ended, without what stands before it."""
    lines = said.splitlines()
    for form in (_OWN, _ERROR):
        for line in reversed(lines):
            found = form.search(line)
            if found and _FOLLOWS not in line:
                return found[1].strip().rstrip(".")[:500]
    return None


def _opened(log: Path | None) -> tuple[Path, BinaryIO]:
    """The log, which its owner alone can read, open for writing."""
    try:
        if log is None:
            number, name = tempfile.mkstemp(prefix="care-vllm-", suffix=".log")
            return Path(name), os.fdopen(number, "wb")
        number = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        return log, os.fdopen(number, "wb")
    except OSError as error:
        raise StorageError(
            f"The log {log or tempfile.gettempdir()} can't be written ({error.strerror or error}); "
            "name another file by --vllm-log."
        ) from error
