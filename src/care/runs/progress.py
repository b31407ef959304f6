"""Progress of a long job: a bar with rate and time left on a terminal, plain lines in a log.

Everything goes to standard error, so that standard output stays a program's result. Work that was
done before (a resumed run) counts as done but not towards the rate.
"""

from __future__ import annotations

import io
import math
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as RichProgress


class Progress:
    """Context manager that reports how far a job of `total` steps is.

    On a terminal it draws one bar. Elsewhere it prints a line at the first step, then at most one
    every `every` seconds, and one at the end.

    >>> with Progress("answers", total=len(examples)) as progress:  # doctest: +SKIP
    ...     progress.advance(32, note="vqa, repair")
    """

    def __init__(
        self,
        label: str,
        total: int,
        *,
        done: int = 0,
        every: float = 15.0,
        stream: TextIO | None = None,
    ) -> None:
        self.label = label
        self.total = total
        self.done = done
        self.note = ""
        self._already = done
        self._every = every
        self._stream = sys.stderr if stream is None else stream
        self._started = time.monotonic()
        self._next_line = self._started
        self._shown: int | None = None
        self._bar: RichProgress | None = None

    def __enter__(self) -> Progress:
        self._started = self._next_line = time.monotonic()
        console = Console(file=self._stream)
        if console.is_terminal:
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[pace]}"),
                console=console,
            )
            self._bar.add_task(self.label, total=self.total, completed=self.done, pace="")
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif kind is None and self.done != self._shown:
            self._line()

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        """Count `steps` as done; `note` says what is being worked on and stays until replaced."""
        self.done += steps
        self.note = self.note if note is None else note
        if self._bar is not None:
            self._bar.update(
                self._bar.task_ids[0],
                completed=self.done,
                description=f"{self.label}  {self.note}".rstrip(),
                pace=self.pace(),
            )
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + self._every
            self._line()

    def say(self, line: str) -> None:
        """Show a line of text, above the bar where there is one."""
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=self._stream, flush=True)

    def rate(self) -> float | None:
        """Steps a second since the start, or None before the first."""
        seconds = time.monotonic() - self._started
        steps = self.done - self._already
        return steps / seconds if steps > 0 and seconds > 0 else None

    def pace(self) -> str:
        """Rate and time left in words, such as "4.1/s, 2 min 05 s left"; empty before any step."""
        rate = self.rate()
        if rate is None:
            return ""
        speed = f"{rate:.1f}/s" if rate >= 0.1 else f"{rate * 60:.1f}/min"
        left = self.total - self.done
        return speed if left <= 0 else f"{speed}, {duration(left / rate)} left"

    def _line(self) -> None:
        self._shown = self.done
        share = self.done / self.total if self.total else 1.0
        parts = [f"{self.label} {self.done}/{self.total} ({share:.0%})", self.pace(), self.note]
        print("  ".join(part for part in parts if part), file=self._stream, flush=True)


Bar = Callable[..., Progress]
"""What makes the bar of a job from its label and number of steps, such as `Progress`."""


def duration(seconds: float, decimals: int = 0) -> str:
    """A duration for people: "8 s", "2 min 05 s", "1 h 03 min"; `decimals` below a minute."""
    if round(seconds, decimals) < 60:
        return f"{seconds:.{decimals}f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def silent(label: str, total: int, *, done: int = 0) -> Progress:
    """A bar that shows nothing."""
    return Progress(label, total, done=done, every=math.inf, stream=io.StringIO())
