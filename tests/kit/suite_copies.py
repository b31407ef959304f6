"""Small copies of published data sets: the real layout and columns, harmless made-up rows.

`COPIES` maps a suite's name to its copy: tables by their path in the source, and paths of pictures.
Parquet tables are written as JSON with pictures in base64 and read by `read_parquet_stand_in`, so
that loaders are tested without pyarrow; the reader of real Parquet has tests of its own.
"""

from __future__ import annotations

import base64
import copy
import csv
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from care.data.benchmarks import pictured_requests as mm_safetybench
from care.data.benchmarks.pictured_requests import ADVBENCH_GROUPS as _GROUPS
from care.data.registry import REGISTRY

_TEST = REGISTRY["scienceqa"].options["table"]


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
    """Those of them that may be blank."""

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


# -- the copies --------------------------------------------------------------------------------


def _jailbreakv(file: str) -> Copy:
    common = {"policy": "Fraud", "from": "made up", "selected_mini": "True"}
    return Copy(
        {
            f"JailBreakV_28K/{file}": [
                {
                    "id": "0",
                    "jailbreak_query": "You are Bob. Bob, bake a cake.",
                    "redteam_query": "Bake a cake.",
                    "format": "Template",
                    "image_path": "llm_transfer_attack/blank_1.png",
                    "transfer_from_llm": "True",
                    **common,
                },
                {
                    "id": "1",
                    "jailbreak_query": "Fill in the list in the picture.",
                    "redteam_query": "Fold a paper hat.",
                    "format": "figstep",
                    "image_path": "figstep/figstep_1.png",
                    "transfer_from_llm": "False",
                    **common,
                },
            ]
        },
        "id jailbreak_query redteam_query format policy image_path transfer_from_llm",
        2,
        [
            "JailBreakV_28K/llm_transfer_attack/blank_1.png",
            "JailBreakV_28K/figstep/figstep_1.png",
        ],
    )


def _redteam() -> Copy:
    cells = {"policy": "Bias", "from": "made up"}
    rows = [cells | {"id": n, "question": f"Bake {n} cakes."} for n in range(3)]
    return Copy({"JailBreakV_28K/RedTeam_2K.csv": rows}, "id question policy", 3)


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


def _mm_safetybench(name: str) -> Copy:
    variant = "SD_TYPO"
    for ending, kind in (("-sd", "SD"), ("-typo", "TYPO"), ("-text", "Text_only")):
        variant = kind if name.endswith(ending) else variant
    numbered = [
        f"{number:02d}-{scenario}"
        for number, scenario in enumerate(mm_safetybench.SCENARIOS, start=1)
        if "harmful" not in name or scenario in mm_safetybench.HARMFUL
    ]
    tables: dict[str, Any] = {
        f"data/processed_questions/{key}.json": mm_safetybench_rows(key) for key in numbered
    }
    n = 2 * len(numbered)
    if "tiny" in name:
        tables["TinyVersion_ID_List.json"] = [
            {"Scenario": key, "Sampled_ID_List": [1]} for key in numbered[:4]
        ]
        n = 4
    prompt = "Rephrased Question(SD)" if variant == "SD" else "Rephrased Question"
    pictures = []
    if variant != "Text_only":
        pictures = [f"data/imgs/{key}/{variant}/{n}.jpg" for key in numbered for n in range(2)]
    checked = "Changed Question|" if variant == "Text_only" else f"Changed Question|{prompt}"
    return Copy(tables, checked, n, pictures)


def _figstep(file: str) -> Copy:
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
    checked = "category_id task_id category_name question instruction"
    return Copy({f"data/question/{file}": rows}, checked, 4)


def _advbench() -> Copy:
    rows = [{"goal": f"Bake cake number {n}", "target": "Sure"} for n in range(3)]
    return Copy({"data/advbench/harmful_behaviors.csv": rows}, "goal", 3)


def _advbench_m() -> Copy:
    tables = {
        f"dataset/advbench/{place}_{group}.csv": [
            {"goal": f"Bake {n} cakes about {place}", "target": "Sure"} for n in range(2)
        ]
        for place, group in enumerate(_GROUPS, start=1)
    }
    pictures = [f"dataset/advimage/{place}/{n}.jpg" for place in range(8) for n in (1, 2)]
    return Copy(tables, "goal", 16, pictures)


def _jbb(kind: str) -> Copy:
    cells = {"Target": "Sure", "Category": "Baking", "Source": "made up"}
    rows = [
        cells | {"Index": n, "Goal": f"Bake cake {n}", "Behavior": f"Cake {n}"} for n in range(2)
    ]
    return Copy({f"data/{kind}-behaviors.csv": rows}, "Index Goal Category", 2)


def _harmbench(file: str) -> Copy:
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
    return Copy(
        {f"data/behavior_datasets/{file}": rows},
        "Behavior FunctionalCategory SemanticCategory ContextString BehaviorID",
        3,
        blank="ContextString",
    )


def _harmbench_multimodal() -> Copy:
    rows = [
        {
            "Behavior": f"Say what cake {n} this is",
            "FunctionalCategory": "multimodal",
            "SemanticCategory": "baking",
            "Tags": "",
            "ImageFileName": f"cake_{n}.{'jpg' if n else 'png'}",
            "ImageDescription": "A cake.",
            "RedactedImageDescription": "",
            "BehaviorID": f"cake_{n}",
        }
        for n in range(2)
    ]
    return Copy(
        {"data/behavior_datasets/harmbench_behaviors_multimodal_all.csv": rows},
        "Behavior FunctionalCategory SemanticCategory ImageFileName BehaviorID",
        2,
        [f"data/multimodal_behavior_images/cake_{n}.png" for n in range(2)],
    )


def _strongreject() -> Copy:
    cells = {"category": "Baking", "source": "made up"}
    rows = [cells | {"forbidden_prompt": f"Bake {n} cakes"} for n in range(2)]
    path = "strongreject_dataset/strongreject_dataset.csv"
    return Copy({path: rows}, "category forbidden_prompt", 2)


def _vlsafe() -> Copy:
    pictures = [f"00000000000{n}.jpg" for n in range(2)]
    rows = [{"image_id": name, "caption": "A cake.", "query": f"Bake {name}?"} for name in pictures]
    return Copy({"VLSafe/harmlessness_examine.jsonl": rows}, "image_id query", 2, pictures)


def _vlguard(unsafe: bool) -> Copy:
    rows = [
        {
            "id": "Cakes_1",
            "image": "cakes/1.png",
            "safe": False,
            "harmful_category": "baking",
            "harmful_subcategory": "cakes",
            "instr-resp": [{"instruction": "Bake this cake.", "response": "No."}],
        },
        {
            "id": "Cakes_2",
            "image": "cakes/2.png",
            "safe": True,
            "instr-resp": [
                {"safe_instruction": "What cake is this?", "response": "A sponge."},
                {"unsafe_instruction": "Burn this cake.", "response": "No."},
            ],
        },
    ]
    rows = rows if unsafe else rows[::-1]
    checked = "id image safe instr-resp" + (" harmful_category" if unsafe else "")
    return Copy({"test.json": rows}, checked, 1, ["test/cakes/1.png", "test/cakes/2.png"])


def _toxicity(challenging: bool) -> Copy:
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
    n = 1 if challenging else 3
    return Copy({"prompts.jsonl": rows}, "filename begin challenging prompt", n)


def _xstest(label: str) -> Copy:
    rows = [
        {
            "id": n,
            "prompt": f"How do I kill {n} processes?",
            "type": "homonyms",
            "label": ("safe", "unsafe")[n % 2],
            "focus": "kill",
            "note": "",
        }
        for n in range(4)
    ]
    rows = rows if label == "safe" else rows[::-1]
    checked = "id prompt type label"
    return Copy({"xstest_prompts.csv": rows}, checked, 2)


def _or_bench() -> Copy:
    rows = [{"prompt": f"How do I whip {n} creams?", "category": "violence"} for n in range(2)]
    return Copy({"or-bench-hard-1k.csv": rows}, "prompt category", 2)


def _mossbench() -> Copy:
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
    path = "data/images_information/information.json"
    return Copy({path: rows}, "pid question image metadata", 3, pictures)


def _mmbench(whole: bool) -> Copy:
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
    n = 3 if whole else 2
    return Copy({"MMBench_DEV_EN.tsv": rows}, checked, n, blank="hint C")


def _scienceqa(pictured_only: bool) -> Copy:
    rows = [
        {
            "image": pictured(0),
            "question": "Which cake is this?",
            "choices": ["sponge", "carrot"],
            "answer": 1,
            "hint": "It is orange.",
            "task": "closed choice",
            "grade": "grade4",
            "subject": "natural science",
            "topic": "baking",
            "category": "cakes",
            "skill": "name cakes",
            "lecture": "",
            "solution": "",
        },
    ]
    rows.append(copy.deepcopy(rows[0]) | {"image": None, "hint": ""})
    n = 1 if pictured_only else 2
    checked = "image question choices answer hint subject topic"
    return Copy({_TEST: rows}, checked, n, blank="image hint")


def _mm_vet() -> Copy:
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
    return Copy({"mm-vet.json": rows}, "imagename question answer capability", 2, pictures)


def _mme() -> Copy:
    tables = {
        shard: [
            {
                "question_id": f"cakes/{place}.png",
                "image": pictured(place),
                "question": f"Is this {what} cake? Please answer yes or no.",
                "answer": "Yes" if what == "a" else "No",
                "category": "existence",
            }
            for what in ("a", "no")
        ]
        for place, shard in enumerate(REGISTRY["mme"].options["tables"])
    }
    return Copy(tables, "question_id image question answer category", 8)


def _pope(kind: str) -> Copy:
    rows = [
        {
            "question_id": n,
            "image": "COCO_val2014_000000000001.jpg",
            "text": f"Is there a {what} in the image?",
            "label": "no" if n else "yes",
        }
        for n, what in enumerate(("cake", "hat"))
    ]
    path = f"output/coco/coco_pope_{kind}.json"
    pictures = ["COCO_val2014_000000000001.jpg"]
    return Copy({path: rows}, "question_id image text label", 2, pictures)


def make(name: str) -> Copy:
    """The copy of the suite `name`."""
    if name.startswith("mm-safetybench"):
        return _mm_safetybench(name)
    return _MAKERS[name]()


_MAKERS = {
    "jailbreakv": lambda: _jailbreakv("JailBreakV_28K.csv"),
    "jailbreakv-mini": lambda: _jailbreakv("mini_JailBreakV_28K.csv"),
    "redteam-2k": _redteam,
    "figstep": lambda: _figstep("safebench.csv"),
    "figstep-tiny": lambda: _figstep("SafeBench-Tiny.csv"),
    "advbench": _advbench,
    "advbench-m": _advbench_m,
    "jbb-harmful": lambda: _jbb("harmful"),
    "jbb-benign": lambda: _jbb("benign"),
    "harmbench": lambda: _harmbench("harmbench_behaviors_text_all.csv"),
    "harmbench-test": lambda: _harmbench("harmbench_behaviors_text_test.csv"),
    "harmbench-val": lambda: _harmbench("harmbench_behaviors_text_val.csv"),
    "harmbench-multimodal": _harmbench_multimodal,
    "strongreject": _strongreject,
    "vlsafe": _vlsafe,
    "vlguard-unsafe": lambda: _vlguard(True),
    "vlguard-safe-unsafe": lambda: _vlguard(False),
    "vlguard-safe": lambda: _vlguard(False),
    "real-toxicity-prompts": lambda: _toxicity(False),
    "rtp-challenging": lambda: _toxicity(True),
    "xstest": lambda: _xstest("safe"),
    "xstest-unsafe": lambda: _xstest("unsafe"),
    "or-bench-hard": _or_bench,
    "mossbench": _mossbench,
    "mmbench": lambda: _mmbench(True),
    "mmbench-plain": lambda: _mmbench(False),
    "scienceqa": lambda: _scienceqa(True),
    "scienceqa-full": lambda: _scienceqa(False),
    "mm-vet": _mm_vet,
    "mme": _mme,
    "pope-random": lambda: _pope("random"),
    "pope-popular": lambda: _pope("popular"),
    "pope-adversarial": lambda: _pope("adversarial"),
}
