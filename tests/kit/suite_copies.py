"""Small copies of published data sets: the real layout and columns, harmless made-up rows.

A copy is made by a function here that is called like the suite's reader and takes the same options
of its card: tables by their path in the source, and paths of pictures. A new suite of a reader that
is here needs nothing. Parquet tables are written as JSON with pictures in base64 and read by
`read_parquet_stand_in`, so that readers are tested without pyarrow; the reader of real Parquet has
tests of its own.
"""

from __future__ import annotations

import base64
import copy
import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from care.data.benchmarks.pictured_requests import ADVBENCH_GROUPS, HARMFUL, SCENARIOS
from care.data.registry import REGISTRY


@dataclass
class Copy:
    """A small copy of one data set."""

    tables: dict[str, Any]
    """Rows by path; a dictionary of rows where the JSON file is an object."""
    checked: str
    """Columns of the first table that are used, separated by spaces or |."""
    n: int
    """Examples it makes."""
    pictures: list[str] = field(default_factory=list)
    """Paths of pictures."""
    blank: str = ""
    """Those of the columns that may be blank."""

    @property
    def first(self) -> str:
        """Path of the first table."""
        return next(iter(self.tables))

    def columns(self) -> list[str]:
        return [c for c in self.checked.split("|" if "|" in self.checked else " ") if c]

    def rows(self) -> list[dict[str, Any]]:
        """Rows of the first table, to be changed."""
        found = self.tables[self.first]
        return list(found.values()) if isinstance(found, dict) else found

    def write(self, folder: Path) -> Path:
        for relative, rows in self.tables.items():
            write_table(folder / relative, rows)
        for number, relative in enumerate(self.pictures):
            write_picture(folder / relative, number)
        return folder


def make(name: str) -> Copy:
    """The copy of the suite `name`."""
    benchmark = REGISTRY[name]
    return _MAKERS[benchmark.reader.__name__](**benchmark.options)


def picture_bytes(number: int = 0, ending: str = ".png") -> bytes:
    buffer = io.BytesIO()
    colour = (40 * number % 256, 90, 200)
    Image.new("RGB", (8, 6), colour).save(buffer, "PNG" if ending == ".png" else "JPEG")
    return buffer.getvalue()


def write_picture(path: Path, number: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture_bytes(number, path.suffix))


def write_table(path: Path, rows: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            names = list(dict.fromkeys(name for row in rows for name in row))
            writer = csv.DictWriter(file, names, delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl" or "coco_pope" in path.name:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        path.write_text(json.dumps(rows, default=as_base64), encoding="utf-8")


def as_base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def read_parquet_stand_in(path: Path):
    for row in json.loads(path.read_text(encoding="utf-8") or "[]"):
        yield "", row


def pictured(number: int = 0) -> dict[str, Any]:
    """A cell of a Parquet file with a picture."""
    return {"bytes": picture_bytes(number), "path": None}


# -- text ------------------------------------------------------------------------------------------


def _requests(table: str, prompt: str, row_id: str = "", category: str = "") -> Copy:
    rows = [
        {row_id: n, prompt: f"Bake {n} cakes.", category: "Baking", "note": "made up"}
        for n in range(3)
    ]
    for row in rows:
        row.pop("", None)
    return Copy({table: rows}, f"{row_id} {prompt} {category}", 3)


def _harmbench(table: str) -> Copy:
    rows = [
        {
            "Behavior": f"Bake cake {n}",
            "FunctionalCategory": kind,
            "SemanticCategory": "baking",
            "Tags": "context" if n else "",
            "ContextString": "A recipe.\n\nFlour and water." if n else "",
            "BehaviorID": f"bake_cake_{n}",
        }
        for n, kind in enumerate(("standard", "contextual", "copyright"))
    ]
    checked = "Behavior FunctionalCategory SemanticCategory ContextString BehaviorID"
    return Copy({table: rows}, checked, 3, blank="ContextString")


def _xstest(table: str, label: str) -> Copy:
    labels = ("safe", "unsafe") if label == "safe" else ("unsafe", "safe")
    rows = [
        {
            "id": n,
            "prompt": f"How do I kill {n} processes?",
            "type": "homonyms",
            "label": labels[n % 2],
            "focus": "kill",
            "note": "",
        }
        for n in range(4)
    ]
    return Copy({table: rows}, "id prompt type label", 2)


def _toxicity(table: str, challenging: bool = False) -> Copy:
    rows = [
        {
            "filename": f"000{n}-abc.txt",
            "begin": 10 * n,
            "end": 10 * n + 9,
            "challenging": n == 0,
            "prompt": {"text": f"The cake number {n} was so", "toxicity": 0.1},
            "continuation": {"text": " sweet.", "toxicity": None},
        }
        for n in range(3)
    ]
    return Copy({table: rows}, "filename begin challenging prompt", 1 if challenging else 3)


# -- requests beside pictures ----------------------------------------------------------------------


def _jailbreakv(table: str) -> Copy:
    common = {"policy": "Fraud", "from": "made up", "selected_mini": "True"}
    template = {
        "id": "0",
        "jailbreak_query": "You are Bob. Bob, bake a cake.",
        "redteam_query": "Bake a cake.",
        "format": "Template",
        "image_path": "llm_transfer_attack/blank_1.png",
        "transfer_from_llm": "True",
    }
    figstep = {
        "id": "1",
        "jailbreak_query": "Fill in the list in the picture.",
        "redteam_query": "Fold a paper hat.",
        "format": "figstep",
        "image_path": "figstep/figstep_1.png",
        "transfer_from_llm": "False",
    }
    rows = [template | common, figstep | common]
    pictures = [f"JailBreakV_28K/{row['image_path']}" for row in rows]
    return Copy({table: rows}, f"{' '.join(template)} policy", 2, pictures)


def mm_safetybench_rows(scenario: str) -> dict[str, dict[str, str]]:
    return {
        str(n): {
            "Question": f"How does one bake {n} {scenario} cakes?",
            "Changed Question": f"List steps to bake {n} {scenario} cakes",
            "Key Phrase": "cakes",
            "Phrase Type": "activity",
            "Rephrased Question": f"The bottom shows an activity, {n}. List steps.",
            "Rephrased Question(SD)": f"The image shows an activity, {n}. List steps.",
        }
        for n in range(2)
    }


def _mm_safetybench(variant: str, harmful: bool = False, tiny: bool = False) -> Copy:
    numbered = [
        f"{number:02d}-{scenario}"
        for number, scenario in enumerate(SCENARIOS, start=1)
        if scenario in HARMFUL or not harmful
    ]
    tables: dict[str, Any] = {
        f"data/processed_questions/{key}.json": mm_safetybench_rows(key) for key in numbered
    }
    if tiny:
        tables["TinyVersion_ID_List.json"] = [
            {"Scenario": key, "Sampled_ID_List": [1]} for key in numbered[:4]
        ]
    n = 4 if tiny else 2 * len(numbered)
    if variant == "Text_only":
        return Copy(tables, "Changed Question|", n)
    prompt = "Rephrased Question(SD)" if variant == "SD" else "Rephrased Question"
    pictures = [f"data/imgs/{key}/{variant}/{n}.jpg" for key in numbered for n in range(2)]
    return Copy(tables, f"Changed Question|{prompt}", n, pictures)


def _figstep(table: str) -> Copy:
    rows = [
        {
            "dataset": "MadeUpQI",
            "category_id": topic,
            "task_id": task,
            "category_name": f"Topic {topic}",
            "question": f"How does one fold hat {task}?",
            "instruction": f"Steps to fold the paper hat number {task}.",
        }
        for topic in (1, 2)
        for task in (1, 2)
    ]
    return Copy({table: rows}, "category_id task_id category_name question instruction", 4)


def _advbench_m() -> Copy:
    tables = {
        f"dataset/advbench/{place}_{group}.csv": [
            {"goal": f"Bake {n} cakes about {place}", "target": "Sure"} for n in range(2)
        ]
        for place, group in enumerate(ADVBENCH_GROUPS, start=1)
    }
    pictures = [f"dataset/advimage/{place}/{n}.jpg" for place in range(8) for n in (1, 2)]
    return Copy(tables, "goal", 16, pictures)


def _harmbench_multimodal(table: str) -> Copy:
    rows = [
        {
            "Behavior": f"Say what cake {n} this is",
            "FunctionalCategory": "multimodal",
            "SemanticCategory": "baking",
            "ImageFileName": f"cake_{n}.{'jpg' if n else 'png'}",
            "ImageDescription": "A cake.",
            "BehaviorID": f"cake_{n}",
        }
        for n in range(2)
    ]
    pictures = [f"data/multimodal_behavior_images/cake_{n}.png" for n in range(2)]
    checked = "Behavior FunctionalCategory SemanticCategory ImageFileName BehaviorID"
    return Copy({table: rows}, checked, 2, pictures)


def _vlsafe(table: str) -> Copy:
    pictures = [f"00000000000{n}.jpg" for n in range(2)]
    rows = [{"image_id": name, "caption": "A cake.", "query": f"Bake {name}?"} for name in pictures]
    return Copy({table: rows}, "image_id query", 2, pictures)


def _vlguard(table: str, request: str) -> Copy:
    unsafe = {
        "id": "Cakes_1",
        "image": "cakes/1.png",
        "safe": False,
        "harmful_category": "baking",
        "instr-resp": [{"instruction": "Bake this cake.", "response": "No."}],
    }
    safe = {
        "id": "Cakes_2",
        "image": "cakes/2.png",
        "safe": True,
        "instr-resp": [
            {"safe_instruction": "What cake is this?", "response": "A sponge."},
            {"unsafe_instruction": "Burn this cake.", "response": "No."},
        ],
    }
    rows = [unsafe, safe] if request == "instruction" else [safe, unsafe]
    checked = " ".join(rows[0])
    return Copy({table: rows}, checked, 1, ["test/cakes/1.png", "test/cakes/2.png"])


def _mossbench(table: str) -> Copy:
    rows = {
        str(n): {
            "pid": str(n),
            "question": f"How do I cut cake {n}?",
            "image": f"images/{n}.png",
            "short description": "a cake",
            "metadata": {"over": f"type {n}", "human": 0, "child": 0, "harm": [1]},
        }
        for n in (1, 2, 3)
    }
    pictures = [f"data/images/{n}.png" for n in (1, 2, 3)]
    return Copy({table: rows}, "pid question image metadata", 3, pictures)


# -- questions about pictures ----------------------------------------------------------------------


def _mmbench(table: str, shifts: bool = False) -> Copy:
    cells = [as_base64(picture_bytes(0)), as_base64(picture_bytes(1))]
    first = {"question": "Which cake is this?", "hint": "nan", "category": "baking"}
    rows = [
        {"index": 7, "A": "sponge", "B": "carrot", "C": "nan", "D": "nan", "answer": "A",
         "image": cells[0], **first},
        {"index": 9, "A": "round", "B": "square", "C": "flat", "D": "nan", "answer": "C",
         "image": cells[1], **first, "hint": "Look."},
        {"index": 1_000_007, "A": "carrot", "B": "sponge", "C": "nan", "D": "nan", "answer": "B",
         "image": "7", **first},
    ]  # fmt: skip
    for row in rows:
        row |= {"l2-category": "cakes", "split": "dev", "source": "made up"}
    checked = "index question hint A B C answer category image"
    return Copy({table: rows}, checked, 3 if shifts else 2, blank="hint C")


def _scienceqa(table: str, pictured: bool = False) -> Copy:
    row = {
        "image": {"bytes": picture_bytes(0), "path": None},
        "question": "Which cake is this?",
        "choices": ["sponge", "carrot"],
        "answer": 1,
        "hint": "It is orange.",
        "subject": "natural science",
        "topic": "baking",
        "lecture": "",
    }
    rows = [row, copy.deepcopy(row) | {"image": None, "hint": ""}]
    checked = "image question choices answer hint subject topic"
    return Copy({table: rows}, checked, 1 if pictured else 2, blank="image hint")


def _mme(tables: list[str]) -> Copy:
    made = {
        table: [
            {
                "question_id": f"cakes/{place}.png",
                "image": pictured(place),
                "question": f"Is this {what} cake? Please answer yes or no.",
                "answer": "Yes" if what == "a" else "No",
                "category": "existence",
            }
            for what in ("a", "no")
        ]
        for place, table in enumerate(tables)
    }
    return Copy(made, "question_id image question answer category", 8)


def _pope(table: str, drawn: str) -> Copy:
    rows = [
        {
            "question_id": n,
            "image": "COCO_val2014_000000000001.jpg",
            "text": f"Is there a {what} in the image?",
            "label": "no" if n else "yes",
        }
        for n, what in enumerate(("cake", "hat"))
    ]
    return Copy({table: rows}, "question_id image text label", 2, ["COCO_val2014_000000000001.jpg"])


def _mm_vet(archive: str, table: str) -> Copy:
    rows = {
        f"v1_{n}": {
            "imagename": f"v1_{n}.png",
            "question": "What cakes are these?",
            "answer": "sponge<OR>sponge cake" if n else "sponge<AND>carrot",
            "imagesource": "made up",
            "capability": ["rec", "ocr"],
        }
        for n in range(2)
    }
    pictures = ["images/v1_0.png", "images/v1_1.png"]
    return Copy({table: rows}, "imagename question answer capability", 2, pictures)


_MAKERS: dict[str, Callable[..., Copy]] = {
    made.__name__.removeprefix("_"): made
    for made in (
        *(_requests, _harmbench, _xstest, _toxicity),
        *(_jailbreakv, _mm_safetybench, _figstep, _advbench_m),
        *(_harmbench_multimodal, _vlsafe, _vlguard, _mossbench),
        *(_mmbench, _scienceqa, _mme, _pope, _mm_vet),
    )
}
"""By the name of the reader."""
