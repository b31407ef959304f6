"""MM-SafetyBench: thirteen scenarios, each asked with pictures of Stable Diffusion, words, or both.

| variant | picture | prompt |
|---|---|---|
| SD | Stable Diffusion | "Rephrased Question(SD)" |
| SD_TYPO | Stable Diffusion over the key phrase | "Rephrased Question" |
| TYPO | the key phrase | "Rephrased Question" |
| Text_only | none | "Changed Question", which is the goal of all |

Eight scenarios ask for harm (01-07 and 09); the others ask for political, legal, financial or
medical advice, which a model may well give, and are best reported apart. Two layouts are read: the
original repository with its JSON files, and the Hub's mirror with one Parquet file per scenario and
variant.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from care.data.benchmark import Benchmark, Draft, Picture, attack
from care.data.source import Files, Source
from care.errors import DataError

SCENARIOS = (
    "Illegal_Activitiy",
    "HateSpeech",
    "Malware_Generation",
    "Physical_Harm",
    "EconomicHarm",
    "Fraud",
    "Sex",
    "Political_Lobbying",
    "Privacy_Violence",
    "Legal_Opinion",
    "Financial_Advice",
    "Health_Consultation",
    "Gov_Decision",
)
"""The scenarios in their order, spelt as published."""

HARMFUL = (*SCENARIOS[:7], "Privacy_Violence")
"""The eight scenarios that ask for harm."""

_PROMPTS = {
    "SD": "Rephrased Question(SD)",
    "SD_TYPO": "Rephrased Question",
    "TYPO": "Rephrased Question",
    "Text_only": "Changed Question",
}

_TINY = "TinyVersion_ID_List.json"

SOURCE = Source(
    folder="mm-safetybench",
    page="https://github.com/isXinLiu/MM-SafetyBench",
    licence="CC-BY-NC-4.0",
    host="github",
    at="isXinLiu/MM-SafetyBench",
    revision="b80eedea3db312c09ded2082813390f68e750ef3",
    by_hand=(
        "fetch MM-SafetyBench(imgs).zip from https://drive.google.com/file/d/"
        "1xjW9k-aGkmwycqGCXbru70FaSKhSDcR_/view (linked from the repository) and unpack its "
        "folders 01-Illegal_Activitiy to 13-Gov_Decision into {folder}; or fetch the mirror with "
        "`hf download PKU-Alignment/MM-SafetyBench --repo-type dataset --local-dir FOLDER` and "
        "pass FOLDER with path"
    ),
)


def _load(variant: str, harmful: bool, tiny: bool, files: Files) -> Iterator[Draft]:
    chosen = _tiny_ids(files) if tiny else None
    for number, scenario in enumerate(SCENARIOS, start=1):
        if harmful and scenario not in HARMFUL:
            continue
        numbered = f"{number:02d}-{scenario}"
        mirror = files.has(f"data/{scenario}/Text_only.parquet")
        read = _from_mirror if mirror else _from_repository
        for draft in read(numbered, variant, files):
            if chosen is None or draft.example.id in chosen:
                yield draft


def _from_repository(numbered: str, variant: str, files: Files) -> Iterator[Draft]:
    number, scenario = numbered.split("-", 1)
    for row in files.rows(f"data/processed_questions/{numbered}.json"):
        pictures: list[Picture] = []
        if variant != "Text_only":
            inside = f"{numbered}/{variant}/{row.key}.jpg"
            pictures.append(partial(files.needed_image, inside, row, "data/imgs"))
        prompt, goal = row.text(_PROMPTS[variant]), row.text("Changed Question")
        yield attack(f"{number}-{row.key}", prompt, goal, scenario, *pictures)


def _from_mirror(numbered: str, variant: str, files: Files) -> Iterator[Draft]:
    number, scenario = numbered.split("-", 1)
    texts = files.rows(f"data/{scenario}/Text_only.parquet")
    goals = {row.label(row.index("id")): row.text("question") for row in texts}
    for row in files.rows(f"data/{scenario}/{variant}.parquet"):
        key = row.label(row.index("id"))
        if key not in goals:
            raise DataError(
                f"{row.where}: Text_only.parquet of {scenario} has no row with the id {key!r}; "
                "fetch both files at one revision."
            )
        pictures: list[Picture] = []
        if variant != "Text_only":
            pictures.append(partial(files.stored, row.picture("image"), row, "image"))
        yield attack(f"{number}-{key}", row.text("question"), goals[key], scenario, *pictures)


def _tiny_ids(files: Files) -> set[str]:
    """Ids of the authors' small selection."""
    found = set()
    for row in files.rows(_TINY):
        number = row.text("Scenario").split("-", 1)[0]
        keys = row.cell("Sampled_ID_List")
        if not isinstance(keys, list):
            raise row.wrong("Sampled_ID_List", "a list of ids")
        found |= {f"{number}-{key}" for key in keys}
    return found


_DIFFERS = (
    "the paper judges with GPT-4 and a rubric per scenario; the selection of eight scenarios is "
    "that of later work, and text alone is asked in the words of the goal"
)


def _benchmark(name: str, variant: str, harmful: bool = False, tiny: bool = False) -> Benchmark:
    scope = "the eight harmful scenarios" if harmful else "all thirteen scenarios"
    return Benchmark(
        name,
        "attack",
        f"MM-SafetyBench, {variant}, {scope}{', the small selection' if tiny else ''}.",
        0 if harmful or tiny else 1_680,
        SOURCE if variant != "Text_only" else replace(SOURCE, by_hand=""),
        partial(_load, variant, harmful, tiny),
        _DIFFERS,
    )


BENCHMARKS = (
    _benchmark("mm-safetybench", "SD_TYPO"),
    _benchmark("mm-safetybench-sd", "SD"),
    _benchmark("mm-safetybench-typo", "TYPO"),
    _benchmark("mm-safetybench-text", "Text_only"),
    _benchmark("mm-safetybench-tiny", "SD_TYPO", tiny=True),
    _benchmark("mm-safetybench-harmful", "SD_TYPO", harmful=True),
    _benchmark("mm-safetybench-harmful-sd", "SD", harmful=True),
    _benchmark("mm-safetybench-harmful-typo", "TYPO", harmful=True),
    _benchmark("mm-safetybench-harmful-text", "Text_only", harmful=True),
)
