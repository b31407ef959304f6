"""Published tasks of lmms-eval on small local tables of the same columns.

Each is a file that includes the published task's own: prompts, settings and scoring stay, the data
are replaced. MM-Vet's scoring, which asks GPT-4, is replaced too. Importing needs no lmms-eval.
"""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

from kit import tiny


def published(name: str) -> Path:
    """A file of lmms-eval's tasks."""
    found = importlib.util.find_spec("lmms_eval")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "tasks" / name


def picture(seed: int) -> dict[str, Any]:
    """A picture as the published tables hold it."""
    held = io.BytesIO()
    tiny.picture(seed).save(held, "png")
    return {"bytes": held.getvalue(), "path": None}


def scienceqa(n: int) -> list[dict[str, Any]]:
    """Every third question has a hint, every fourth no picture."""
    return [
        {
            "image": None if index % 4 == 3 else picture(index),
            "question": f"Which of these is number {index}?",
            "choices": ["a house", "water", "wood"][: 2 + index % 2],
            "answer": index % 2,
            "hint": "The picture shows a car." if index % 3 == 0 else "",
        }
        for index in range(n)
    ]


def mmbench(n: int) -> list[dict[str, Any]]:
    """The columns of the published table, of which C, D and hint may be absent."""
    return [
        {
            "index": index,
            "question": f"What is in picture {index}?",
            "hint": "nan" if index % 2 else "Look at the picture.",
            "answer": "AB"[index % 2],
            "A": "a house",
            "B": "a car",
            "C": "nan" if index % 2 else "water",
            "D": "nan",
            "category": "object_localization",
            "image": picture(index),
            "source": "made",
            "L2-category": "finegrained_perception (instance-level)",
            "comment": "",
            "split": "dev",
        }
        for index in range(n)
    ]


def mmvet(n: int) -> list[dict[str, Any]]:
    """Open questions."""
    return [
        {
            "question_id": f"v1_{index}",
            "image": picture(index),
            "question": f"Explain how to build number {index}.",
            "answer": "from wood<OR>wood",
            "image_source": "made",
            "capability": "rec,know",
            "added_in": "v1",
        }
        for index in range(n)
    ]


def kept(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Stands in for MM-Vet's judge: whether an accepted answer occurs."""
    return {"occurs": float(any(a in results[0] for a in doc["answer"].split("<OR>")))}


_MMVET = """process_results: !function kit.lmms_tasks.kept
metric_list:
  - metric: occurs
    aggregation: mean
    higher_is_better: true
"""

_TASKS = {
    "scienceqa_here": ("scienceqa/scienceqa_img.yaml", "test", scienceqa, ""),
    "mmbench_here": ("mmbench/mmbench_en_dev_static.yaml", "dev", mmbench, ""),
    "mmvet_here": ("mmvet/mmvet.yaml", "test", mmvet, _MMVET),
}
NAMES = tuple(_TASKS)


def write_task(folder: Path, name: str, n: int = 6, more: str = "") -> Path:
    """A table and the file of one task, to be passed to `--tasks`; `more` is YAML after it."""
    base, split, rows, own = _TASKS[name]
    write_table(folder / f"{name}.parquet", rows(n))
    file = folder / f"{name}.yaml"
    file.write_text(
        f"include: {published(base)}\n"
        f"task: {name}\n"
        "dataset_path: parquet\n"
        "dataset_name: null\n"
        "dataset_kwargs:\n"
        f"  data_files: {{{split}: {name}.parquet}}\n"
        f"{own}{more}",
        encoding="utf-8",
    )
    return file


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """A Parquet file whose pictures the library decodes."""
    import datasets  # pyright: ignore[reportMissingImports]

    table = datasets.Dataset.from_list(rows)
    if "image" in table.column_names:
        table = table.cast_column("image", datasets.Image())
    table.to_parquet(str(path))


def visuals(doc: dict[str, Any]) -> list[Any]:
    """The picture of a question."""
    return [doc["image"]]
