"""The engine whose answers another server makes: every request is a dialogue of its own.

The other server batches what is asked of it (vLLM does at every token), so nobody waits here for
the end of somebody else's answer, and every stream is told piece by piece. Only the monitors'
readings share batches (`reading_together`). A stream whose client hangs up ends there at its next
piece; a whole answer is made to its end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
from anyio import CapacityLimiter

from care.interfaces.serve.engine import OneModel, Pending, Served, options, read_again

if TYPE_CHECKING:
    from care.defenses.base import Defense
    from care.interfaces.serve.child import Child
    from care.interfaces.serve.upstream import UpstreamVLM
    from care.models.responses import Answer


class UpstreamEngine(OneModel):
    """A model that is read here and answers elsewhere, `parallel` requests at once."""

    def __init__(
        self,
        vlm: UpstreamVLM,
        defense: Defense,
        parallel: int,
        hold: int | None = None,
        child: Child | None = None,
    ) -> None:
        """`child` is the other server, where it was started here."""
        super().__init__(vlm, defense, hold)
        self._there, self._child, self._parallel = vlm, child, parallel
        self._threads: CapacityLimiter | None = None

    async def answer(self, asked: Pending) -> Served:
        """See `Engine`."""
        if self._threads is None:
            self._threads = CapacityLimiter(self._parallel)
        # A reading shares its batch with others, so it isn't cancelled with who hung up.
        with read_again(), anyio.CancelScope(shield=True):
            answer = await anyio.to_thread.run_sync(self._work, asked, limiter=self._threads)
        return self._served(answer, asked)

    def stop(self) -> None:
        """See `Engine`: what the other server is at isn't waited for, and a child ends."""
        super().stop()
        self._there.upstream.close()
        if self._child is not None:
            self._child.end()

    @property
    def alive(self) -> bool:
        """See `Engine`."""
        return super().alive and (self._child is None or self._child.alive)

    def _work(self, asked: Pending) -> Answer:
        from care.defenses.base import answers_under

        self._look(asked)
        vlm, how = self._there.asking(lambda: self._look(asked)), options(asked.decoding, 1)
        try:
            with self._noticed():
                if asked.tell is not None:
                    return self._told(vlm, asked, how)
                defense = self._defense if asked.repaired else None
                [answer] = answers_under(defense, vlm, [asked.conversation], **how)
                return answer
        except RuntimeError:  # RequestFailure among them, and what a closed client says
            self._look(asked)  # where it was stopped, that is why
            raise
