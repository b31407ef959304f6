"""Multiple choice about pictures: MMBench and ScienceQA.

The prompt is the hint if there is one, the question, the options with their letters and the request
for a letter; the references are the right letter and the right option's text. MMBench's file holds
every question under all cyclic shifts of its options: a shift's index is that of the question plus
1,000,000 for each step, and its picture is the index of the row that holds it. In its own score,
CircularEval, a question counts only if every shift is answered right: see `circular`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from care.data.benchmark import Benchmark, Draft, Picture, benign
from care.data.source import Files, Source
from care.data.tables import Row
from care.errors import DataError

_LETTERS = "ABCDEFGH"
_SHIFT = 1_000_000
"""What one cyclic shift of the options adds to an index of MMBench."""

_ASK = "Answer with the option's letter from the given choices directly."

_REFERENCE_LENGTH = 64
"""Longest cell of MMBench's pictures that is the index of another row and not a picture."""

MMBENCH = Source(
    folder="mmbench",
    page="https://github.com/open-compass/MMBench",
    licence="Apache-2.0 (code); pictures of many sources",
    host="web",
    # Its certificate has expired at times; the digest makes plain HTTP safe.
    at="http://opencompass.openxlab.space/utils/benchmarks/MMBench",
    revision="sha256:64baa14c5ec650302f428212a0b3efc5c88fbf9236d0d6fdea45c555f0b02d7a",
)

SCIENCEQA = Source(
    folder="scienceqa",
    page="https://huggingface.co/datasets/derek-thomas/ScienceQA",
    licence="CC-BY-NC-SA-4.0",
    host="hub",
    at="derek-thomas/ScienceQA",
    revision="f18b0a70359ebfb41f658fd564208d0355b013f4",
)

_TEST = "data/test-00000-of-00001-f0e719df791966ff.parquet"


def question_of(example_id: str) -> str:
    """The question of MMBench that an example is a shift of."""
    return example_id.rsplit("-", 1)[0]


def circular(right: Mapping[str, bool]) -> dict[str, bool]:
    """CircularEval, from example ids: whether a question was answered right under all shifts."""
    found: dict[str, bool] = {}
    for example_id, correct in right.items():
        question = question_of(example_id)
        found[question] = found.get(question, True) and correct
    return found


def _ask(hint: str, question: str, options: Sequence[str]) -> str:
    lettered = [f"{letter}. {option}" for letter, option in zip(_LETTERS, options, strict=False)]
    return "\n".join([*([hint] if hint else []), question, *lettered, _ASK])


def _references(row: Row, options: Sequence[str], right: int) -> tuple[str, ...]:
    if not 0 <= right < len(options):
        raise DataError(
            f"{row.where}: the answer is option {right + 1}, but there are {len(options)}; get the "
            "file at its published revision."
        )
    return _LETTERS[right], options[right]


def _load_mmbench(whole: bool, files: Files) -> Iterator[Draft]:
    rows = list(files.rows("MMBench_DEV_EN.tsv"))
    cells = {row.number(row.index("index")): row for row in rows}
    for row in rows:
        shift, base = divmod(row.number(row.index("index")), _SHIFT)
        if shift and not whole:
            continue
        options = _options(row)
        answer = row.one_of("answer", tuple(_LETTERS[: len(options)]))
        holder = _holder(row, cells)
        picture = partial(files.stored, holder.picture("image"), holder, "image")
        hint = _unless_nan(row, "hint")
        yield benign(
            f"{base}-{shift}",
            _ask(hint, row.text("question"), options),
            row.text("category"),
            picture,
            references=_references(row, options, _LETTERS.index(answer)),
            goal=row.text("question"),
        )


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


def _load_scienceqa(pictured: bool, files: Files) -> Iterator[Draft]:
    for number, row in enumerate(files.rows(_TEST)):
        question, options = row.text("question"), row.texts("choices")
        references = _references(row, options, row.number("answer"))
        prompt = _ask(row.text("hint", blank=True), question, options)
        category = f"{row.text('subject')}/{row.text('topic')}"
        pictures: list[Picture] = []
        if row.cell("image") is not None:
            pictures.append(partial(files.stored, row.picture("image"), row, "image"))
        if pictures or not pictured:
            yield benign(
                f"test-{number}", prompt, category, *pictures, references=references, goal=question
            )


BENCHMARKS = (
    Benchmark(
        "mmbench",
        "utility",
        "MMBench dev (English) under all cyclic shifts of the options, for CircularEval.",
        4_329,
        MMBENCH,
        partial(_load_mmbench, True),
        "the table shows accuracy over shifts, and CircularEval beside it, which counts a question "
        "only if all its shifts are right; a letter is read by rule, not by ChatGPT",
        question_of,
    ),
    Benchmark(
        "mmbench-plain",
        "utility",
        "MMBench dev (English), every question once.",
        1_164,
        MMBENCH,
        partial(_load_mmbench, False),
        "one pass, as in much work on defenses: higher than and not comparable with CircularEval",
    ),
    Benchmark(
        "scienceqa",
        "utility",
        "ScienceQA, the questions of its test split that have a picture.",
        2_017,
        SCIENCEQA,
        partial(_load_scienceqa, True),
        "a letter is read by rule, and the option's text counts where no letter is given",
    ),
    Benchmark(
        "scienceqa-full",
        "utility",
        "ScienceQA, the whole test split.",
        4_241,
        SCIENCEQA,
        partial(_load_scienceqa, False),
        "a letter is read by rule, and the option's text counts where no letter is given",
    ),
)
