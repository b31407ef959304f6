"""MM-Vet: open questions that need several abilities at once.

Its answers join alternatives with <OR> and parts with <AND>. The published score is the mean of
GPT-4's marks from 0 to 1. Without it, alternatives are references, of which one must occur, and
parts must all occur: right for short answers, too strict for descriptions.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from care.data.benchmark import Benchmark, Draft, benign
from care.data.source import Files, Source

SOURCE = Source(
    folder="mm-vet",
    page="https://github.com/yuweihao/MM-Vet",
    licence="CC-BY-NC-4.0 (data)",
    host="web",
    at="https://github.com/yuweihao/MM-Vet/releases/download",
    revision="release v1",
)

_TABLE = "mm-vet.json"


def _load(files: Files) -> Iterator[Draft]:
    if files.path is None or files.path.suffix == ".zip":
        found = files.unpacked("v1/mm-vet.zip")
        inner = found / "mm-vet" if (found / "mm-vet").is_dir() else found
        unpacked = Files(SOURCE, inner, files.images)
    else:
        unpacked = files
    for row in unpacked.rows(_TABLE):
        question = row.text("question")
        answers = tuple(part.strip() for part in row.text("answer").split("<OR>") if part.strip())
        picture = partial(unpacked.needed_image, row.text("imagename"), row, "images")
        category = "+".join(sorted(row.texts("capability")))
        yield benign(row.key, question, category, picture, references=answers)


BENCHMARKS = (
    Benchmark(
        "mm-vet",
        "utility",
        "MM-Vet: open questions that need several abilities.",
        218,
        SOURCE,
        _load,
        "the paper's score is GPT-4's marks; here references must occur in the answer, which is "
        "too strict for descriptions: compare defenses with each other, not with the paper",
    ),
)
