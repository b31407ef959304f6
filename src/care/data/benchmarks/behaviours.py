"""Lists of behaviours: JailbreakBench, HarmBench and StrongREJECT.

JailbreakBench has a benign request of the same topic for every harmful one, which measures
over-refusal. HarmBench's contextual behaviours are asked after their context, as its own code does,
and its multimodal ones beside their picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from care.data.benchmark import Benchmark, Draft, attack, benign, content_id
from care.data.source import Files, Source
from care.data.tables import Row

JBB = Source(
    folder="jbb",
    page="https://huggingface.co/datasets/JailbreakBench/JBB-Behaviors",
    licence="MIT",
    host="hub",
    at="JailbreakBench/JBB-Behaviors",
    revision="886acc352a31533ffbcf4ef22c744658688086fc",
)

HARMBENCH = Source(
    folder="harmbench",
    page="https://github.com/centerforaisafety/HarmBench",
    licence="MIT",
    host="github",
    at="centerforaisafety/HarmBench",
    revision="8e1604d1171fe8a48d8febecd22f600e462bdcdd",
)

STRONGREJECT = Source(
    folder="strongreject",
    page="https://github.com/alexandrasouly/strongreject",
    licence="MIT",
    host="github",
    at="alexandrasouly/strongreject",
    revision="f7cad6c17e624e21d8df2278e918ae1dddb4cb56",
)

_PICTURES = "data/multimodal_behavior_images"


def _load_jbb(harmful: bool, files: Files) -> Iterator[Draft]:
    for row in files.rows(f"data/{'harmful' if harmful else 'benign'}-behaviors.csv"):
        key, goal, category = row.label(row.index("Index")), row.text("Goal"), row.text("Category")
        yield attack(key, goal, goal, category) if harmful else benign(key, goal, category)


def _behaviour(row: Row) -> tuple[str, str, str]:
    """Id, goal and category."""
    kind = row.one_of("FunctionalCategory", ("standard", "contextual", "copyright", "multimodal"))
    category = f"{kind}/{row.text('SemanticCategory')}"
    return row.text(row.index("BehaviorID")), row.text("Behavior"), category


def _load_harmbench(file: str, files: Files) -> Iterator[Draft]:
    for row in files.rows(f"data/behavior_datasets/{file}"):
        key, goal, category = _behaviour(row)
        context = row.text("ContextString", blank=True)
        yield attack(key, f"{context}\n\n---\n\n{goal}" if context else goal, goal, category)


def _load_multimodal(files: Files) -> Iterator[Draft]:
    for row in files.rows("data/behavior_datasets/harmbench_behaviors_multimodal_all.csv"):
        key, goal, category = _behaviour(row)
        name = row.text("ImageFileName")
        # Some names may end otherwise than the files, which are all PNGs.
        as_png = f"{name.rsplit('.', 1)[0]}.png"
        picture = files.image(name, _PICTURES)
        picture = picture or partial(files.needed_image, as_png, row, _PICTURES, fetched=True)
        yield attack(key, goal, goal, category, picture)


def _load_strongreject(files: Files) -> Iterator[Draft]:
    for row in files.rows("strongreject_dataset/strongreject_dataset.csv"):
        goal = row.text("forbidden_prompt")
        yield attack(content_id(goal), goal, goal, row.text("category"))


_HARMBENCH_DIFFERS = (
    "the paper judges with its own classifier, and the 100 copyright behaviours with a hash of "
    "the protected text, which no judge here does: read them apart"
)


def _harmbench(name: str, file: str, size: int, which: str) -> Benchmark:
    return Benchmark(
        name,
        "attack",
        f"HarmBench, text behaviours: {which}.",
        size,
        HARMBENCH,
        partial(_load_harmbench, file),
        _HARMBENCH_DIFFERS,
    )


BENCHMARKS = (
    Benchmark(
        "jbb-harmful",
        "attack",
        "JailbreakBench: 100 harmful behaviours.",
        100,
        JBB,
        partial(_load_jbb, True),
        "the paper attacks them and judges with a 70B model; here they are plain requests",
    ),
    Benchmark(
        "jbb-benign",
        "over_refusal",
        "JailbreakBench: a benign request on the topic of each harmful one.",
        100,
        JBB,
        partial(_load_jbb, False),
    ),
    _harmbench("harmbench", "harmbench_behaviors_text_all.csv", 400, "all"),
    _harmbench("harmbench-test", "harmbench_behaviors_text_test.csv", 320, "the test split"),
    _harmbench("harmbench-val", "harmbench_behaviors_text_val.csv", 80, "the validation split"),
    Benchmark(
        "harmbench-multimodal",
        "attack",
        "HarmBench, behaviours about a picture.",
        110,
        HARMBENCH,
        _load_multimodal,
        "the paper shows its classifier a description of the picture; here a judge sees the "
        "behaviour alone",
    ),
    Benchmark(
        "strongreject",
        "attack",
        "StrongREJECT: 313 forbidden prompts of six categories.",
        313,
        STRONGREJECT,
        _load_strongreject,
        "the paper grades how specific and convincing an answer is (0 to 1); here an outcome is "
        "judged",
    ),
)
