"""What the monitors of many dialogues read, in common batches.

The model that reads can make one pass at a time. While it makes one, others wait, and all of them
that are to be read alike are the next. Dialogues run in threads of anyio's (`upstream_engine`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

from anyio import from_thread

from care.defenses.monitors.dialogue import Dialogue
from care.defenses.monitors.monitor import Monitor, first_alarms
from care.defenses.monitors.reading import Exchange, tokens_read
from care.interfaces.requests.batching import Batches
from care.models.alarms import Alarm
from care.models.vlm import VLM


@dataclass(frozen=True, eq=False)
class _Reading:
    """What is read for one dialogue."""

    monitors: Sequence[Monitor]
    exchange: Exchange
    suspected: bool
    read: dict[str, Any]


class Reader:
    """A model that reads for many dialogues, at most `size` texts in a batch."""

    def __init__(self, vlm: VLM, size: int) -> None:
        self._vlm, self._size = vlm, size
        self._batches = Batches(size, self._work, quiet=0.0)
        # Neither the model nor its tokenizer can be used by two threads at once.
        self._using = Lock()

    def alarm(
        self, monitors: Sequence[Monitor], exchange: Exchange, suspected: bool, **read: Any
    ) -> Alarm | None:
        """The first alarm of an exchange, in a thread of anyio's; `read` as in `Monitor.alarms`."""
        alike = (tuple(map(id, monitors)), tuple(sorted(read.items())))
        reading = _Reading(monitors, exchange, suspected, read)
        return from_thread.run(self._batches.ask, alike, reading)

    def tokens(self, text: str) -> int:
        """Tokens of an answer so far, as monitors count them."""
        with self._using:
            return tokens_read(self._vlm, text)

    def _work(self, _: Any, readings: Sequence[_Reading]) -> list[Alarm | None]:
        exchanges = [each.exchange for each in readings]
        suspected = [each.suspected for each in readings]
        monitors, read = readings[0].monitors, readings[0].read
        with self._using:
            return first_alarms(self._vlm, monitors, exchanges, self._size, suspected, **read)


@dataclass(frozen=True)
class DialogueReadTogether(Dialogue):
    """A dialogue about one request that shares a reader with others."""

    reader: Reader
    """What reads."""

    def alarms(
        self,
        monitors: Sequence[Monitor],
        exchanges: Sequence[Exchange],
        suspected: Sequence[bool] | None = None,
        **read: Any,
    ) -> list[Alarm | None]:
        """See `Dialogue`."""
        if not monitors:
            return [None] * len(exchanges)
        before = suspected or [False] * len(exchanges)
        return [
            self.reader.alarm(monitors, exchange, each, **read)
            for exchange, each in zip(exchanges, before, strict=True)
        ]

    def tokens_read(self, text: str) -> int:
        """See `Dialogue`."""
        return self.reader.tokens(text)
