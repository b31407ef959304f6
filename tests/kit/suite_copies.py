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

import pytest
from PIL import Image

from care import load_suite
from care.data import tables
from care.data.benchmarks.pictured_requests import ADVBENCH_GROUPS, HARMFUL, SCENARIOS
from care.data.registry import REGISTRY

UNUSED = "note"
"""A column of every table that no reader asks for."""


@dataclass
class Copy:
    """A small copy of one data set."""

    tables: dict[str, Any]
    """Rows by path; a dictionary of rows where the JSON file is an object."""
    n: int
    """Examples it makes."""
    pictures: list[str] = field(default_factory=list)
    """Paths of pictures."""
    blank: str = ""
    """Columns that may be blank, separated by spaces."""
    spare: str = ""
    """Columns that aren't always asked for."""

    @property
    def first(self) -> str:
        """Path of the first table."""
        return next(iter(self.tables))

    def columns(self) -> list[str]:
        """Columns of the first table that are asked for."""
        return [c for c in self.rows()[0] if c not in (UNUSED, *self.spare.split())]

    def rows(self, path: str = "") -> list[dict[str, Any]]:
        """Rows of the first table, or that at `path`, to be changed."""
        found = self.tables[path or self.first]
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
    found = _MAKERS[benchmark.reader.__name__](**benchmark.options)
    for path in found.tables:
        for row in found.rows(path):
            row[UNUSED] = "made up"
    return found


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


def in_parquet(number: int = 0) -> dict[str, Any]:
    """A cell of a Parquet file with a picture."""
    return {"bytes": picture_bytes(number), "path": None}


# -- text ------------------------------------------------------------------------------------------


def _requests(table: str, prompt: str, row_id: str = "", category: str = "") -> Copy:
    cells = [{row_id: n, prompt: f"Bake {n} cakes.", category: "Baking"} for n in range(3)]
    return Copy({table: [{name: row[name] for name in row if name} for row in cells]}, 3)


def _behaviour(n: int, text: str, kind: str) -> dict[str, Any]:
    row = {"Behavior": text, "FunctionalCategory": kind, "SemanticCategory": "baking"}
    return row | {"BehaviorID": f"bake_cake_{n}"}


def _harmbench(table: str) -> Copy:
    rows = [
        _behaviour(n, f"Bake cake {n}", kind)
        | {"ContextString": "A recipe.\n\nFlour and water." if n else ""}
        for n, kind in enumerate(("standard", "contextual", "copyright"))
    ]
    return Copy({table: rows}, 3, blank="ContextString")


def _xstest(table: str, label: str) -> Copy:
    labels = ("safe", "unsafe") if label == "safe" else ("unsafe", "safe")
    rows = [
        {"id": n, "prompt": f"How do I kill {n} jobs?", "type": "homonyms", "label": labels[n % 2]}
        for n in range(4)
    ]
    return Copy({table: rows}, 2)


def _toxicity(table: str, challenging: bool = False) -> Copy:
    rows = [
        {
            "filename": f"000{n}-abc.txt",
            "begin": 10 * n,
            "challenging": n == 0,
            "prompt": {"text": f"The cake number {n} was so", "toxicity": 0.1},
        }
        for n in range(3)
    ]
    return Copy({table: rows}, 1 if challenging else 3)


# -- requests beside pictures ----------------------------------------------------------------------


def _jailbreakv(table: str) -> Copy:
    columns = ["id", "jailbreak_query", "redteam_query", "format", "image_path"]
    columns += ["transfer_from_llm", "policy"]
    template = "You are Bob. Bob, bake a cake.", "Bake a cake.", "Template"
    figstep = "Fill in the list in the picture.", "Fold a paper hat.", "figstep"
    cells = [
        ("0", *template, "llm_transfer_attack/blank_1.png", "True", "Fraud"),
        ("1", *figstep, "figstep/figstep_1.png", "False", "Fraud"),
    ]
    rows = [dict(zip(columns, row, strict=True)) for row in cells]
    return Copy({table: rows}, 2, [f"JailBreakV_28K/{row['image_path']}" for row in rows])


def _mm_safetybench(variant: str, harmful: bool = False, tiny: bool = False) -> Copy:
    numbered = [
        f"{number:02d}-{scenario}"
        for number, scenario in enumerate(SCENARIOS, start=1)
        if scenario in HARMFUL or not harmful
    ]
    prompts = {
        "SD": {"Rephrased Question(SD)": "The image shows an activity. List steps."},
        "Text_only": {},
    }.get(variant, {"Rephrased Question": "The bottom shows an activity. List steps."})
    tables: dict[str, Any] = {
        f"data/processed_questions/{key}.json": {
            str(n): {"Changed Question": f"List steps to bake {n} {key} cakes", **prompts}
            for n in range(2)
        }
        for key in numbered
    }
    if tiny:
        tables["TinyVersion_ID_List.json"] = [
            {"Scenario": key, "Sampled_ID_List": [1]} for key in numbered[:4]
        ]
    pictures = [f"data/imgs/{key}/{variant}/{n}.jpg" for key in numbered for n in range(2)]
    n = 4 if tiny else 2 * len(numbered)
    return Copy(tables, n, [] if variant == "Text_only" else pictures)


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
    return Copy({table: rows}, 4, spare="dataset")


def _advbench_m() -> Copy:
    tables = {
        f"dataset/advbench/{place}_{group}.csv": [
            {"goal": f"Bake {n} cakes about {place}"} for n in range(2)
        ]
        for place, group in enumerate(ADVBENCH_GROUPS, start=1)
    }
    pictures = [f"dataset/advimage/{place}/{n}.jpg" for place in range(8) for n in (1, 2)]
    return Copy(tables, 16, pictures)


def _harmbench_multimodal(table: str) -> Copy:
    rows = [
        _behaviour(n, f"Say what cake {n} this is", "multimodal")
        | {"ImageFileName": f"cake_{n}.{'jpg' if n else 'png'}"}
        for n in range(2)
    ]
    return Copy({table: rows}, 2, [f"data/multimodal_behavior_images/cake_{n}.png" for n in (0, 1)])


def _vlsafe(table: str) -> Copy:
    pictures = [f"00000000000{n}.jpg" for n in range(2)]
    return Copy({table: [{"image_id": p, "query": f"Bake {p}?"} for p in pictures]}, 2, pictures)


def _vlguard(table: str, request: str) -> Copy:
    said = [
        {"safe_instruction": "What cake is this?", "response": "A sponge."},
        {"unsafe_instruction": "Burn this cake.", "response": "No."},
    ]
    safe = {"id": "Cakes_2", "image": "cakes/2.png", "safe": True, "instr-resp": said}
    said = [{"instruction": "Bake this cake.", "response": "No."}]
    unsafe = {"id": "Cakes_1", "image": "cakes/1.png", "safe": False, "instr-resp": said}
    unsafe["harmful_category"] = "baking"
    rows = [unsafe, safe] if request == "instruction" else [safe, unsafe]
    return Copy({table: rows}, 1, ["test/cakes/1.png", "test/cakes/2.png"])


def _mossbench(table: str) -> Copy:
    rows = {
        str(n): {
            "pid": str(n),
            "question": f"How do I cut cake {n}?",
            "image": f"images/{n}.png",
            "metadata": {"over": f"type {n}", "human": 0, "child": 0, "harm": [1]},
        }
        for n in (1, 2, 3)
    }
    return Copy({table: rows}, 3, [f"data/images/{n}.png" for n in (1, 2, 3)])


# -- questions about pictures ----------------------------------------------------------------------


def _mmbench(table: str, shifts: bool = False) -> Copy:
    columns = ["index", "A", "B", "C", "D", "answer", "image", "hint"]
    cells = [
        (7, "sponge", "carrot", "nan", "nan", "A", as_base64(picture_bytes(0)), "nan"),
        (9, "round", "square", "flat", "nan", "C", as_base64(picture_bytes(1)), "Look."),
        (1_000_007, "carrot", "sponge", "nan", "nan", "B", "7", "nan"),
    ]
    common = {"question": "Which cake is this?", "category": "baking"}
    rows = [dict(zip(columns, row, strict=True)) | common for row in cells]
    return Copy({table: rows}, 3 if shifts else 2, blank="hint C D")


def _scienceqa(table: str, pictured: bool = False) -> Copy:
    row = {
        "image": in_parquet(0),
        "question": "Which cake is this?",
        "choices": ["sponge", "carrot"],
        "answer": 1,
        "hint": "It is orange.",
        "subject": "natural science",
        "topic": "baking",
    }
    rows = [row, copy.deepcopy(row) | {"image": None, "hint": ""}]
    return Copy({table: rows}, 1 if pictured else 2, blank="image hint")


def _mme(tables: list[str]) -> Copy:
    made = {
        table: [
            {
                "question_id": f"cakes/{place}.png",
                "image": in_parquet(place),
                "question": f"Is this {what} cake? Please answer yes or no.",
                "answer": answer,
                "category": "existence",
            }
            for what, answer in (("a", "Yes"), ("no", "No"))
        ]
        for place, table in enumerate(tables)
    }
    return Copy(made, 8)


def _pope(table: str, drawn: str) -> Copy:
    picture = "COCO_val2014_000000000001.jpg"
    rows = [
        {"question_id": n, "image": picture, "text": f"Is there a {what}?", "label": label}
        for n, (what, label) in enumerate((("cake", "yes"), ("hat", "no")))
    ]
    return Copy({table: rows}, 2, [picture])


def _mm_vet(archive: str, table: str) -> Copy:
    rows = {
        f"v1_{n}": {
            "imagename": f"v1_{n}.png",
            "question": "What cakes are these?",
            "answer": answer,
            "capability": ["rec", "ocr"],
        }
        for n, answer in enumerate(("sponge<AND>carrot", "sponge<OR>sponge cake"))
    }
    return Copy({table: rows}, 2, ["images/v1_0.png", "images/v1_1.png"])


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


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """Nothing is kept beyond a test, and no package for Parquet is needed."""
    monkeypatch.setenv("CARE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tables, "_read_parquet", read_parquet_stand_in)


@pytest.fixture
def folder(tmp_path):
    """Where a copy is put."""
    return tmp_path / "copy"


def load(name, folder, **options):
    """A suite from a copy of it in this folder."""
    return load_suite(name, path=make(name).write(folder), **options)


def changed(name, folder, change):
    """The suite's copy with its first table changed by `change(rows)`, and the table's path."""
    found = make(name)
    change(found.rows())
    found.write(folder)
    return folder / found.first
