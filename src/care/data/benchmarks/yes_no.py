"""Yes or no about pictures: MME and POPE.

MME asks two questions about every picture, one of each answer, and adds accuracy per question and
per picture: see `mme_score`. POPE asks whether an object is in a photograph of COCO (val2014);
those that aren't there are drawn at random, from frequent ones, or from those that go together
with what is there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial

from care.data.benchmark import Benchmark, Draft, benign
from care.data.source import Files, Source

MME = Source(
    folder="mme",
    page="https://huggingface.co/datasets/lmms-lab/MME",
    licence="none stated",
    host="hub",
    at="lmms-lab/MME",
    revision="d6c9023f017b564f7b3ccccf5348166bce8fdbcd",
)

POPE = Source(
    folder="pope",
    page="https://github.com/AoiDragon/POPE",
    licence="MIT (code); photographs of COCO",
    host="github",
    at="AoiDragon/POPE",
    revision="e3e39262c85a6a83f26cf5094022a782cb0df58d",
    by_hand=(
        "fetch http://images.cocodataset.org/zips/val2014.zip (6 GB; 500 of its pictures are "
        "needed) and put the pictures of its folder val2014 into {folder}"
    ),
)

_SHARDS = (
    "data/test-00000-of-00004-a25dbe3b44c4fda6.parquet",
    "data/test-00001-of-00004-7d22c7f1aba6fca4.parquet",
    "data/test-00002-of-00004-594798fd3f5b029c.parquet",
    "data/test-00003-of-00004-53ae1794f93b1e35.parquet",
)

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

_ANSWERS = ("yes", "no")

_SHORT = "Answer the question using a single word or phrase."


def picture_of(example_id: str) -> str:
    """The picture of MME that an example asks about."""
    return example_id.rsplit("-", 1)[0]


def mme_score(right: Mapping[str, bool], categories: Mapping[str, str]) -> dict[str, float]:
    """Each category's score, 0 to 200, from example ids: accuracy per question and per picture."""
    pictures: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for example_id, correct in right.items():
        pictures[categories[example_id]][picture_of(example_id)].append(correct)
    scores = {}
    for category, marks in pictures.items():
        questions = [mark for found in marks.values() for mark in found]
        both = [all(found) for found in marks.values()]
        scores[category] = 100 * (sum(questions) / len(questions) + sum(both) / len(both))
    return scores


def _load_mme(files: Files) -> Iterator[Draft]:
    counts: dict[str, int] = defaultdict(int)
    for shard in _SHARDS:
        for row in files.rows(shard):
            category, answer = row.text("category"), row.one_of("answer", _ANSWERS)
            picture = f"{category}/{row.text('question_id')}"
            counts[picture] += 1
            yield benign(
                f"{picture}-{counts[picture]}",
                row.text("question"),
                category,
                partial(files.stored, row.picture("image"), row, "image"),
                references=(answer,),
            )


def _load_pope(kind: str, files: Files) -> Iterator[Draft]:
    for row in files.rows(f"output/coco/coco_pope_{kind}.json"):
        question, answer = row.text("text"), row.one_of("label", _ANSWERS)
        picture = partial(files.needed_image, row.text("image"), row)
        yield benign(
            row.label(row.index("question_id")),
            f"{question}\n{_SHORT}",
            kind,
            picture,
            references=(answer,),
            goal=question,
        )


def _pope(kind: str, drawn: str, size: int = 3_000) -> Benchmark:
    return Benchmark(
        f"pope-{kind}",
        "utility",
        f"POPE: is an object in a photograph? Absent objects are drawn {drawn}.",
        size,
        POPE,
        partial(_load_pope, kind),
        "accuracy is shown; the paper adds F1 and the share of yes, which the rows allow",
    )


BENCHMARKS = (
    Benchmark(
        "mme",
        "utility",
        "MME: two questions with yes and no about every picture.",
        2_374,
        MME,
        _load_mme,
        "the table shows accuracy, and MME's own score of every subtask beside it; yes and no are "
        "read by rule",
        picture_of,
    ),
    _pope("random", "at random", 2_910),
    _pope("popular", "from frequent ones"),
    _pope("adversarial", "from those that go together with what is there"),
)
