"""Answers to one suite under several defenses, in batches that are cut the same way every time.

Reading the prompts costs most, and a defense that touches the decision alone leaves that reading as
it is. So a batch is read once, undefended, and every such defense and the bare model answer from
there (`care.defenses.base.reads_undefended`). Answers that such a defense leaves alone are the bare
model's, where that is asked too, and only the others are decoded (`Defense.changed`). One that
begins with the bare model's answers gets those that are there (`Defense.revised`); any other is
asked for its own `answer`. How a cell is answered doesn't depend on what is done already, so a
resumed run ends with the same rows.

An example that fails gets an answer row with an `error`; an error that isn't about one example is
raised. Not here: judging the answers (`evaluate`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from care.data.digests import example_digest
from care.data.example import Example, Suite
from care.defenses.base import answers_under, reads_undefended
from care.errors import CareError, DataError, NotFiniteError
from care.evaluation.rows import AnswerRow
from care.models.memory import fitting
from care.models.responses import Answer
from care.runs.progress import Progress
from care.runs.rows import Row, Rows
from care.typed import to_tree

if TYPE_CHECKING:
    from care.defenses.base import Defense
    from care.models.prompt_cache import PromptCache
    from care.models.starts import Prompts
    from care.models.vlm import VLM

Generate = Callable[[list[Example]], "list[Answer | Exception]"]


@dataclass(frozen=True)
class Cell:
    """One suite under one defense."""

    suite: Suite
    """The examples."""

    name: str
    """Name of the defense in rows."""

    defense: Defense | None
    """None is the bare model."""

    seed: int
    """Part of every key."""

    @property
    def examples(self) -> tuple[Example, ...]:
        """The examples of the suite."""
        return self.suite.examples

    def key(self, example: Example) -> str:
        """Key of the example's answer and of its row."""
        return f"{self.suite.name}/{example.id}/{self.name}/{self.seed}"

    def missing(self, examples: Sequence[Example], rows: Rows) -> int:
        """How many of these examples have no row yet."""
        return sum(self.key(example) not in rows for example in examples)

    def known(self, examples: Sequence[Example], answers: Rows) -> list[str | None]:
        """What was answered to these examples; None where there is no answer."""
        rows = [answers.get(self.key(example)) or {} for example in examples]
        return [row.get("response") for row in rows]

    def chunks(self, vlm: VLM, size: int) -> list[list[Example]]:
        """The examples in batches of similar length, the same ones whatever is done already.

        No more than memory is good for (`care.models.memory`), since a batch that is read is held.
        """
        left = sorted(self.examples, key=lambda e: (len(e.images), len(e.prompt)))
        lengths = vlm.lengths(left)
        found: list[list[Example]] = []
        while left:
            count = fitting(lengths[:size])
            found.append(left[:count])
            left, lengths = left[count:], lengths[count:]
        return found

    def applied(self, vlm: VLM) -> AbstractContextManager[object]:
        """A context in which the defense, if any, is on."""
        return nullcontext() if self.defense is None else self.defense.applied(vlm)


@dataclass(frozen=True)
class Asking:
    """How a model is asked; see `evaluate` for the fields."""

    vlm: VLM
    batch_size: int
    max_new_tokens: int
    seed: int
    stop: Callable[[str], bool] | None
    temperature: float = 0.0

    def answers(self, cell: Cell, examples: list[Example]) -> list[Answer | Exception]:
        """Answers as the cell's defense gives them, or why there is none."""
        return _each(lambda: answers_under(cell.defense, self.vlm, examples, **self._how))

    def answers_from(
        self, cell: Cell, prompts: PromptCache, known: Sequence[str | None]
    ) -> list[Answer | Exception]:
        """Answers under the cell's defense from prompts that were read without it.

        `known` are the bare model's; None where there is none.
        """
        defense = cell.defense
        if defense is None or self._repeats(prompts.examples):
            return self._decoded(cell, prompts)
        changed = defense.changed(self.vlm, prompts) if any(known) else None
        if changed is None:
            return self._decoded(cell, prompts)
        found: dict[int, Answer | Exception] = {
            place: self._given(text)
            for place, text in enumerate(known)
            if text is not None and not changed[place]
        }
        places = [place for place in range(len(known)) if place not in found]
        if places:
            decoded = self._decoded(cell, prompts.only(places))
            found.update(zip(places, decoded, strict=True))
        return [found[place] for place in range(len(known))]

    def _decoded(self, cell: Cell, prompts: Prompts) -> list[Answer | Exception]:
        with cell.applied(self.vlm):
            return _each(lambda: self.vlm.answers(prompts, **self._how))

    def _given(self, text: str) -> Answer:
        """An answer of the bare model that is known."""
        return Answer(text, 0, len(self.vlm.response_ids(text)), True)

    def _repeats(self, examples: Sequence[Example]) -> bool:
        """Whether answers are drawn that depend on how often the same is asked."""
        return self.temperature > 0 and len({e.digest() for e in examples}) < len(examples)

    def revised(
        self, cell: Cell, bare: Cell, answers: Rows, examples: list[Example]
    ) -> list[Answer | Exception]:
        """Answers of a defense that begins with the bare model's, as far as these are there."""
        known = [text for text in bare.known(examples, answers) if text is not None]
        if cell.defense is None or len(known) < len(examples):
            return self.answers(cell, examples)
        given = [self._given(text) for text in known]
        revised = partial(cell.defense.revised, self.vlm, examples, given, **self._how)
        return _each(revised)

    @property
    def _how(self) -> dict[str, Any]:
        return {
            "max_new_tokens": self.max_new_tokens,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "temperature": self.temperature,
            "stop": self.stop,
        }


def answer_suite(
    cells: Sequence[Cell],
    chunks: Sequence[list[Example]],
    asking: Asking,
    answers: Rows,
    results: Rows,
    bar: Progress,
) -> None:
    """Add to `answers` what is missing of some batches of one suite; `cells` are its defenses.

    An example with a row in `results` isn't asked again. `bar` advances by one for each example
    that had neither row before. No defense is on afterwards.
    """

    def ensure(cell: Cell, chunk: list[Example], generate: Generate) -> None:
        if not cell.missing(chunk, results):
            return
        bar.advance(0, note=f"{cell.suite.name}, {cell.name}")
        new = [e for e in chunk if cell.missing([e], results) and cell.missing([e], answers)]
        if cell.missing(chunk, answers):
            found = _answers(generate, chunk)
            rows = [
                AnswerRow(key=cell.key(e), digest=example_digest(e), **found[e.id]) for e in chunk
            ]
            add_missing(answers, to_tree(rows))
        bar.advance(len(new))

    bare = next((cell for cell in cells if cell.defense is None), None)

    def asking_of(cell: Cell) -> Generate:
        if bare is not None and cell.defense is not None and cell.defense.revises:
            return partial(asking.revised, cell, bare, answers)
        return partial(asking.answers, cell)

    def asks(cell: Cell) -> bool:
        return any(cell.missing(c, results) and cell.missing(c, answers) for c in chunks)

    for cell in filter(asks, cells):
        # A defense that can't be put on is an error here, and not that of an example below.
        with cell.applied(asking.vlm):
            pass
    together = [cell for cell in cells if reads_undefended(cell.defense)]
    together.sort(key=lambda cell: cell.defense is not None)  # the others may be as the bare one
    reading = _Reading(asking, bare, answers)
    for chunk in chunks:
        for cell in together:
            ensure(cell, chunk, partial(reading.answers, cell))
    del reading  # the prompts held on the device
    for cell in cells:
        if not reads_undefended(cell.defense):
            for chunk in chunks:
                ensure(cell, chunk, asking_of(cell))


class _Reading:
    """Answers from prompts that are read undefended; remembers those that were read last."""

    def __init__(self, asking: Asking, bare: Cell | None, answers: Rows) -> None:
        self.asking, self.bare, self.stored = asking, bare, answers
        self._last: PromptCache | None = None

    def answers(self, cell: Cell, examples: list[Example]) -> list[Answer | Exception]:
        """Answers under the cell's defense, which is off while the prompts are read."""
        if self._last is None or self._last.examples != examples:
            self._last = None  # before the next one needs its memory
            self._last = self.asking.vlm.prefill(examples, batch_size=self.asking.batch_size)
        known = self.bare.known(examples, self.stored) if self.bare else [None] * len(examples)
        return self.asking.answers_from(cell, self._last, known)


def add_missing(rows: Rows, found: list[Row]) -> None:
    """Add the rows that aren't there; a kill can leave a part of a batch."""
    rows.add(*(row for row in found if row["key"] not in rows))


# --- failures -------------------------------------------------------------------------------------


def _answers(generate: Generate, examples: list[Example]) -> dict[str, dict[str, Any]]:
    """For each example id {response, error}, one of them None, and where the answer comes from."""
    found: dict[str, dict[str, Any]] = {
        e.id: {"response": None, "error": _image_error(e)} for e in examples
    }
    sound = [e for e in examples if found[e.id]["error"] is None]
    if not sound:
        return found
    try:
        responses = generate(sound)
    except Exception as error:
        responses = _one_by_one(generate, sound, error)
    for example, response in zip(sound, responses, strict=True):
        if isinstance(response, Exception):
            found[example.id] = {"response": None, "error": _sentence(response)}
        else:
            told = {"source": response.source, "alarms": response.alarms}
            found[example.id] = {"response": response.text, "error": None} | told
    return found


def _each(ask: Callable[[], list[Answer]]) -> list[Answer | Exception]:
    """What `ask` returns, with the error in the place of answers that weren't finite."""
    try:
        return list(ask())
    except NotFiniteError as error:
        if not error.answers:  # it isn't about answers, but about what a monitor has read
            raise
        return [error if answer is None else answer for answer in error.answers]


def _one_by_one(
    generate: Generate, examples: list[Example], error: Exception
) -> list[Answer | Exception]:
    """Find the examples to blame for the error of a batch; raise it if it isn't about examples."""
    if isinstance(error, CareError) and not isinstance(error, DataError):
        raise error
    if len(examples) == 1:
        return [error]
    results: list[Answer | Exception] = []
    for example in examples:
        try:
            results += generate([example])
        except Exception as single:
            results.append(single)
    if all(isinstance(result, Exception) for result in results) and not isinstance(
        error, DataError
    ):
        raise error
    return results


def _image_error(example: Example) -> str | None:
    """Why its images can't be used, found beforehand so that one doesn't cost a whole batch."""
    try:
        example.load_images()
    except DataError as error:
        return _sentence(error)
    return None


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
