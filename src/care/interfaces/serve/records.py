"""What is written down of every request: a line of the log, and Prometheus's counts.

A line is one JSON object on standard error: time, id, caller, status, seconds, tokens, where the
answer comes from and which monitors alarmed. What was asked and answered stands in it only where
that was asked for, and a key never does: callers are numbers. Labels of counts have few values, so
that nobody can fill the memory with them.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TextIO

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from care.interfaces.serve.engine import Served
from care.interfaces.serve.failures import RequestFailure, failure_of
from care.models.alarms import Alarm

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
"""Bounds of the histograms of seconds."""


@dataclass
class Record:
    """One request, as far as it is known."""

    id: str
    """Its id, that of its completion."""
    created: int = field(default_factory=lambda: int(time.time()))
    """When it came, in seconds since 1970."""
    started: float = field(default_factory=time.monotonic)
    """The same by the clock that is counted with."""
    caller: int | None = None
    """Number of its key; None before it was looked at."""
    status: int = 500
    """The status that it was answered with."""
    error: str | None = None
    """The code of what its client was told."""
    told: str | None = None
    """All of what its client was told, which may hold words of the request."""
    unforeseen: str | None = None
    """What nobody foresaw, and where."""
    stream: bool = False
    """Whether the answer was to be sent while it is made."""
    begun: bool = False
    """Whether a response has begun, after which no other can be sent."""
    prompt_tokens: int | None = None
    """Tokens of its prompt."""
    first: float | None = None
    """Seconds to the first piece that a stream showed."""
    withdrawn: bool = False
    """Whether something that was shown was withdrawn."""
    served: Served | None = None
    """The answer."""
    raised: list[Alarm] = field(default_factory=list)
    """What a stream has told of alarms, also where no answer came of it; some of them twice."""
    asked: str | None = None
    """The text that was asked, where it is to be written."""

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """All alarms that are known, each once."""
        # Of an answer as they are: the answer that was begun again may raise an equal one.
        told = () if self.served is None else self.served.answer.alarms
        return (*told, *(alarm for alarm in dict.fromkeys(self.raised) if alarm not in told))

    def seen(self) -> None:
        """The first piece is there."""
        if self.first is None:
            self.first = time.monotonic() - self.started

    def failed(self, error: Exception) -> RequestFailure:
        """It ended in an error; what the client is told of it."""
        failure = failure_of(error)
        self.status, self.error, self.told = failure.status, failure.code, str(failure)
        if failure.code == "internal_error":
            self.unforeseen = "".join(traceback.format_exception(error)[-3:])
        return failure


class Log:
    """Lines of JSON."""

    def __init__(self, contents: bool = False, stream: TextIO | None = None) -> None:
        self.contents, self._stream = contents, stream

    def write(self, event: str, **facts: Any) -> None:
        """One line; facts that are None are left out."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        known = {name: fact for name, fact in facts.items() if fact is not None}
        line = json.dumps({"time": now, "event": event} | known)
        # Looked up each time: a test, or whoever turns logs, may have put another in its place.
        stream = self._stream or sys.stderr
        stream.write(line + "\n")
        stream.flush()

    def request(self, record: Record, seconds: float) -> None:
        """The line of a request."""
        answer = None if record.served is None else record.served.answer
        alarms = [[alarm.monitor, round(alarm.score, 3)] for alarm in record.alarms]
        facts: dict[str, Any] = {"alarms": alarms or None}
        if answer is not None:
            facts = {
                "tokens": answer.tokens,
                "source": answer.source,
                "alarms": alarms,
                "answer": answer.text if self.contents else None,
            }
        self.write(
            "request",
            id=record.id,
            caller=record.caller,
            status=record.status,
            error=record.error,
            told=record.told if self.contents else None,
            unforeseen=record.unforeseen,
            seconds=round(seconds, 3),
            stream=record.stream or None,
            withdrawn=record.withdrawn or None,
            prompt_tokens=record.prompt_tokens,
            asked=record.asked if self.contents else None,
            **facts,
        )


class Metrics:
    """Counts of one server, in a registry of its own."""

    def __init__(self, waiting: Callable[[], int]) -> None:
        self._registry = own = CollectorRegistry()
        self._requests = Counter("care_requests", "Requests.", ["status"], registry=own)
        self._answers = Counter("care_answers", "Answers.", ["source"], registry=own)
        self._alarms = Counter("care_alarms", "Alarms.", ["monitor"], registry=own)
        self._tokens = Counter("care_tokens", "Tokens.", ["kind"], registry=own)
        self._withdrawn = Counter("care_withdrawn", "Streams that were withdrawn.", registry=own)
        self._seconds = Histogram(
            "care_request_seconds", "Time of an answer.", buckets=_SECONDS, registry=own
        )
        self._first = Histogram(
            "care_first_token_seconds",
            "Time to the first piece of a stream.",
            buckets=_SECONDS,
            registry=own,
        )
        queue = Gauge("care_queue_length", "Requests that are read or answered.", registry=own)
        queue.set_function(waiting)

    def request(self, record: Record, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(str(record.status)).inc()
        if record.first is not None:
            self._first.observe(record.first)
        if record.withdrawn:
            self._withdrawn.inc()
        for alarm in record.alarms:
            self._alarms.labels(alarm.monitor).inc()
        if record.served is None:
            return
        answer = record.served.answer
        self._seconds.observe(seconds)
        self._answers.labels(answer.source).inc()
        self._tokens.labels("prompt").inc(record.prompt_tokens or 0)
        self._tokens.labels("answer").inc(answer.tokens)

    def text(self) -> bytes:
        """All counts, as Prometheus reads them."""
        return generate_latest(self._registry)
