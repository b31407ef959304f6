"""Requests about photographs: VLSafe and VLGuard.

VLSafe asks harmful questions about photographs of COCO (train2017), which are fetched from there.
VLGuard has three subsets: unsafe pictures, unsafe requests about safe pictures, and safe requests
about safe pictures, which should be answered. It asks for an account and consent on the Hub.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from care.data.benchmark import Benchmark, Draft, attack, benign, content_id
from care.data.source import Files, Source
from care.data.tables import Row

VLSAFE = Source(
    folder="vlsafe",
    page="https://huggingface.co/datasets/YangyiYY/LVLM_NLF",
    licence="none stated",
    host="hub",
    at="YangyiYY/LVLM_NLF",
    revision="000d8016277caffa635cbe9ae12ef7beea45dbbe",
    by_hand=(
        "fetch http://images.cocodataset.org/zips/train2017.zip (18 GB; 1,110 of its pictures are "
        "needed) and put the pictures of its folder train2017 into {folder}"
    ),
)

VLGUARD = Source(
    folder="vlguard",
    page="https://huggingface.co/datasets/ys-zong/VLGuard",
    licence="gated; terms on its page",
    host="hub",
    at="ys-zong/VLGuard",
    revision="b0be37a1ab7accb14e10d6a0ec3ce62cfaff2d46",
    gated=True,
)

_UNSAFE, _SAFE_UNSAFE, _SAFE = "instruction", "unsafe_instruction", "safe_instruction"
"""Where the request of each subset stands."""


def _load_vlsafe(files: Files) -> Iterator[Draft]:
    for row in files.rows("VLSafe/harmlessness_examine.jsonl"):
        name, query = row.text("image_id"), row.text("query")
        picture = partial(files.needed_image, name, row)
        yield attack(f"{Path(name).stem}-{content_id(query)}", query, query, "", picture)


def _load_vlguard(wanted: str, files: Files) -> Iterator[Draft]:
    pictures = _pictures(files)
    for row in files.rows("test.json"):
        safe = row.flag("safe")
        pairs = row.inners("instr-resp")
        if safe == (wanted == _UNSAFE):
            continue
        request = _request(row, pairs, wanted)
        picture = partial(pictures.needed_image, row.text("image"), row, "test")
        category = "safe" if safe else row.text("harmful_category")
        if wanted == _SAFE:
            yield benign(row.label(row.index("id")), request, category, picture)
        else:
            yield attack(row.label(row.index("id")), request, request, category, picture)


def _request(row: Row, pairs: list[Row], column: str) -> str:
    for pair in pairs:
        if column in pair.fields:
            return pair.text(column)
    raise row.wrong("instr-resp", f"a list with an object that has {column!r}")


def _pictures(files: Files) -> Files:
    """Where the pictures are looked for: what test.zip holds, unless the user has it unpacked."""
    if files.images is not None or (files.path is not None and not files.has("test.zip")):
        return files
    unpacked = files.unpacked("test.zip")
    return Files(VLGUARD, images=unpacked / "test" if (unpacked / "test").is_dir() else unpacked)


_VLGUARD_DIFFERS = (
    "the paper finds refusals by keywords and compares helpfulness with GPT-4V; this is the test "
    "split"
)

BENCHMARKS = (
    Benchmark(
        "vlsafe",
        "attack",
        "VLSafe: harmful questions about photographs of COCO.",
        1_110,
        VLSAFE,
        _load_vlsafe,
        "the paper judges with GPT-4",
    ),
    Benchmark(
        "vlguard-unsafe",
        "attack",
        "VLGuard: requests about unsafe pictures.",
        442,
        VLGUARD,
        partial(_load_vlguard, _UNSAFE),
        f"{_VLGUARD_DIFFERS}, of which the first request about a picture is asked",
    ),
    Benchmark(
        "vlguard-safe-unsafe",
        "attack",
        "VLGuard: unsafe requests about safe pictures.",
        558,
        VLGUARD,
        partial(_load_vlguard, _SAFE_UNSAFE),
        _VLGUARD_DIFFERS,
    ),
    Benchmark(
        "vlguard-safe",
        "over_refusal",
        "VLGuard: safe requests about safe pictures.",
        558,
        VLGUARD,
        partial(_load_vlguard, _SAFE),
        _VLGUARD_DIFFERS,
    ),
)
