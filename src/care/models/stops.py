"""Texts at which an answer ends, looked for in what the model itself says.

    opening "```python", said "\nprint(1)\n```", stop "```":    ```python
                                                                print(1)

Words that others put into an answer's beginning belong to the request: a stop among them, or half
in them, would end the answer before it is there. Not here: thoughts, which are left out before a
stop looks (`thoughts`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from care.models.thoughts import TAGS, Tags, answer_of

_MARK = "\0"
"""Stands for what the model says, so that no blank before it is stripped."""


@dataclass(frozen=True)
class StopTexts:
    """An early stop at the first of some texts."""

    texts: tuple[str, ...]
    """Where an answer ends."""
    begun: str = ""
    """The beginning of answers in which none of them is looked for."""

    def __call__(self, answer: str) -> bool:
        """Whether an unfinished answer holds one of them."""
        start = self.start(answer)
        return any(answer.find(text, start) >= 0 for text in self.texts)

    def after(self, opening: str, tags: Tags = TAGS) -> StopTexts:
        """The same for an answer with this opening, which may hold thoughts between `tags`."""
        marked = answer_of(opening + _MARK, tags) if opening else None
        return replace(self, begun=(marked or "").removesuffix(_MARK))

    def start(self, answer: str) -> int:
        """The place in an answer at which what the model says begins."""
        begun = self.begun
        # Decoded answers have no blanks about them.
        forms = (begun, begun.lstrip(), begun.strip())
        return next((len(form) for form in forms if answer.startswith(form)), 0)

    def cut(self, answer: str) -> str:
        """The answer up to the first of them."""
        start = self.start(answer)
        ends = [place for text in self.texts if (place := answer.find(text, start)) >= 0]
        return answer[: min(ends)] if ends else answer


def after_opening(
    stop: Callable[[str], bool], opening: str, tags: Tags = TAGS
) -> Callable[[str], bool]:
    """An early stop for an answer with this opening: one at texts looks behind it, any other sees
    the whole answer."""
    return stop.after(opening, tags) if isinstance(stop, StopTexts) else stop
