"""Requests that come in one by one, worked off in batches.

The first request that gets its turn waits until no more arrive, takes all that are like it (same
settings), at most a batch, and works them off in a thread, so that Inspect's event loop goes on.
The others find their result when their turn comes. There is no thread or queue of its own that
could outlive an evaluation, and a request that is cancelled leaves the others alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.to_thread

from care.errors import CareError, DataError, NotFiniteError

QUIET = 0.05
"""Seconds without a new request after which a batch starts that isn't full, unless told."""

Work = Callable[[Any, list[Any]], Sequence[Any]]
"""(settings, items) -> a result for each item."""


@dataclass(eq=False)
class _Request:
    settings: Hashable
    item: Any
    done: bool = False
    result: Any = None
    error: Exception | None = None


class Batches:
    """Turns concurrent calls of `ask` into few calls of `work`, one at a time."""

    def __init__(self, size: int, work: Work, quiet: float = QUIET) -> None:
        self.size = size
        self._work, self._quiet = work, quiet
        self._waiting: list[_Request] = []
        self._turn = anyio.Lock()

    async def ask(self, settings: Hashable, item: Any) -> Any:
        """The result for one item; raises the error that it, or its whole batch, ended with."""
        request = _Request(settings, item)
        self._waiting.append(request)
        try:
            async with self._turn:
                if not request.done:
                    await self._gather(settings)
                    batch = self._alike(settings)[
                        : self.size
                    ]  # turns come in order: it's the first
                    self._waiting = [other for other in self._waiting if other not in batch]
                    await anyio.to_thread.run_sync(self._work_off, batch)
        finally:
            if request in self._waiting:
                self._waiting.remove(request)
        if request.error is not None:
            raise request.error
        return request.result

    def _alike(self, settings: Hashable) -> list[_Request]:
        return [request for request in self._waiting if request.settings == settings]

    async def _gather(self, settings: Hashable) -> None:
        """Wait for as long as requests keep arriving and a batch isn't full."""
        seen = 0
        while seen < len(self._alike(settings)) < self.size:
            seen = len(self._alike(settings))
            await anyio.sleep(self._quiet)

    def _work_off(self, batch: list[_Request]) -> None:
        try:
            results = self._work(batch[0].settings, [request.item for request in batch])
            for request, result in zip(batch, results, strict=True):
                request.result = result
        except Exception as error:
            self._blame(batch, error)
        for request in batch:
            request.done = True

    def _blame(self, batch: list[_Request], error: Exception) -> None:
        """One item that can't be worked on doesn't take the others along."""
        about_all = isinstance(error, CareError) and not isinstance(
            error, DataError | NotFiniteError
        )
        for request in batch:
            if about_all or len(batch) == 1:
                request.error = error
                continue
            try:
                (request.result,) = self._work(request.settings, [request.item])
            except Exception as own:
                request.error = own
