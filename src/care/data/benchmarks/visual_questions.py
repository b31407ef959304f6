"""Readers of suites that ask questions about pictures, and the scores that their authors defined.

| reader | suite, and what is asked |
|---|---|
| `mmbench`, `scienceqa` | MMBench, ScienceQA: multiple choice |
| `mme`, `pope` | MME, POPE: yes or no |
| `mm_vet` | MM-Vet: open questions that need several abilities at once |

Of multiple choice the prompt is the hint if there is one, the question, the options with their
letters and the request for a letter; the references are the right letter and the right option's
text. `circular` and `mme_score` are the scores.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from care.data.benchmark import Draft, Picture, asked, stem
from care.data.source import Files
from care.data.tables import Row
from care.errors import DataError

# -- multiple choice -------------------------------------------------------------------------------

_LETTERS = "ABCDEFGH"

_ASK = "Answer with the option's letter from the given choices directly."

_SHIFT = 1_000_000
"""What one cyclic shift of the options adds to an index of MMBench."""

_REFERENCE_LENGTH = 64
"""Longest cell of MMBench's pictures that is the index of another row and not a picture."""


def circular(right: Mapping[str, bool]) -> dict[str, bool]:
    """CircularEval, from example ids: whether a question was answered right under all shifts."""
    found: dict[str, bool] = {}
    for example_id, correct in right.items():
        question = stem(example_id)
        found[question] = found.get(question, True) and correct
    return found


def mmbench(files: Files, table: str, shifts: bool = False) -> Iterator[Draft]:
    """Every question once, or under all cyclic shifts of its options.

    The file holds them all: a shift's index is that of the question plus 1,000,000 for each step,
    and its picture is the index of the row that holds it.
    """
    rows = list(files.rows(table))
    cells = {row.number(row.index("index")): row for row in rows}
    for row in rows:
        shift, base = divmod(row.number(row.index("index")), _SHIFT)
        if shift and not shifts:
            continue
        options = _options(row)
        answer = row.one_of("answer", tuple(_LETTERS[: len(options)]))
        holder = _holder(row, cells)
        picture = partial(files.stored, holder.picture("image"), holder, "image")
        hint = _unless_nan(row, "hint")
        yield asked(
            f"{base}-{shift}",
            _choice(hint, row.text("question"), options),
            row.text("category"),
            picture,
            goal=row.text("question"),
            references=_right(row, options, _LETTERS.index(answer)),
        )


def scienceqa(files: Files, table: str, pictured: bool = False) -> Iterator[Draft]:
    """All questions, or those that have a picture."""
    for number, row in enumerate(files.rows(table)):
        question, options = row.text("question"), row.texts("choices")
        references = _right(row, options, row.number("answer"))
        prompt = _choice(row.text("hint", blank=True), question, options)
        category = f"{row.text('subject')}/{row.text('topic')}"
        pictures: list[Picture] = []
        if row.cell("image") is not None:
            pictures.append(partial(files.stored, row.picture("image"), row, "image"))
        if pictures or not pictured:
            key = f"test-{number}"
            yield asked(key, prompt, category, *pictures, goal=question, references=references)


def _choice(hint: str, question: str, options: Sequence[str]) -> str:
    lettered = [f"{letter}. {option}" for letter, option in zip(_LETTERS, options, strict=False)]
    return "\n".join([*([hint] if hint else []), question, *lettered, _ASK])


def _right(row: Row, options: Sequence[str], right: int) -> tuple[str, ...]:
    if not 0 <= right < len(options):
        raise DataError(
            f"{row.where}: the answer is option {right + 1}, but there are {len(options)}; get the "
            "file at its published revision."
        )
    return _LETTERS[right], options[right]


def _options(row: Row) -> list[str]:
    """The options; the published tables write an absent one as nothing or as nan."""
    found = [row.text("A"), row.text("B")]
    for letter in "CD":
        option = _unless_nan(row, letter)
        if not option:
            break
        found.append(option)
    return found


def _unless_nan(row: Row, column: str) -> str:
    value = row.text(column, blank=True)
    return "" if value == "nan" else value


def _holder(row: Row, cells: Mapping[int, Row]) -> Row:
    """The row that holds the picture of a row."""
    seen: set[int] = set()
    while len(value := row.text("image")) <= _REFERENCE_LENGTH:
        index = row.number("image") if value.isdecimal() else -1
        if index in seen or index not in cells:
            raise row.wrong("image", "a picture or the index of a row that holds one")
        seen.add(index)
        row = cells[index]
    return row


# -- yes or no -------------------------------------------------------------------------------------

_ANSWERS = ("yes", "no")

_SHORT = "Answer the question using a single word or phrase."

PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity"),
    *("scene", "landmark", "artwork", "OCR"),
)
"""Subtasks of MME whose scores add up to perception, at most 2000."""

COGNITION = (
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
    "code_reasoning",
)
"""Those that add up to cognition, at most 800."""


def mme_score(right: Mapping[str, bool], categories: Mapping[str, str]) -> dict[str, float]:
    """Each category's score, 0 to 200, from example ids: accuracy per question and per picture."""
    pictures: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for example_id, correct in right.items():
        pictures[categories[example_id]][stem(example_id)].append(correct)
    scores: dict[str, float] = {}
    for category, marks in pictures.items():
        questions = [mark for found in marks.values() for mark in found]
        both = [all(found) for found in marks.values()]
        scores[category] = 100 * (sum(questions) / len(questions) + sum(both) / len(both))
    return scores


def mme(files: Files, tables: Sequence[str]) -> Iterator[Draft]:
    """Two questions about every picture, one of each answer."""
    counts: dict[str, int] = defaultdict(int)
    for table in tables:
        for row in files.rows(table):
            category, answer = row.text("category"), row.one_of("answer", _ANSWERS)
            picture = f"{category}/{row.text('question_id')}"
            counts[picture] += 1
            yield asked(
                f"{picture}-{counts[picture]}",
                row.text("question"),
                category,
                partial(files.stored, row.picture("image"), row, "image"),
                references=(answer,),
            )


def pope(files: Files, table: str, drawn: str) -> Iterator[Draft]:
    """Whether an object is in a photograph of COCO (val2014); `drawn` says how absent ones were:
    at random, from frequent ones, or from those that go together with what is there."""
    for row in files.rows(table):
        question, answer = row.text("text"), row.one_of("label", _ANSWERS)
        yield asked(
            row.label(row.index("question_id")),
            f"{question}\n{_SHORT}",
            drawn,
            partial(files.needed_image, row.text("image"), row),
            goal=question,
            references=(answer,),
        )


# -- open questions --------------------------------------------------------------------------------


def mm_vet(files: Files, archive: str, table: str) -> Iterator[Draft]:
    """Questions whose answers join alternatives with <OR> and parts with <AND>.

    The published score is the mean of GPT-4's marks from 0 to 1. Without it, alternatives are
    references, of which one must occur, and parts must all occur: right for short answers, too
    strict for descriptions.
    """
    if files.path is None or files.path.suffix == ".zip":
        found = files.unpacked(archive)
        inner = found / "mm-vet" if (found / "mm-vet").is_dir() else found
        unpacked = Files(files.source, inner, files.images)
    else:
        unpacked = files
    for row in unpacked.rows(table):
        question = row.text("question")
        answers = tuple(part.strip() for part in row.text("answer").split("<OR>") if part.strip())
        picture = partial(unpacked.needed_image, row.text("imagename"), row, "images")
        category = "+".join(sorted(row.texts("capability")))
        yield asked(row.key, question, category, picture, references=answers)
