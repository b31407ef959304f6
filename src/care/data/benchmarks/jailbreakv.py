"""JailBreakV-28K: texts and pictures of jailbreaks for 2,000 malicious requests (RedTeam-2K).

`transfer_from_llm` says that the text carries the attack, beside a picture that doesn't (blank,
noise, a landscape). The full set of pictures isn't on the Hub but behind a form. Without them such
a row is asked as text, and rows whose attack is in the picture (FigStep, query-related) are left
out; a warning and the suite's version say how many.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from care.data.benchmark import Benchmark, Draft, attack
from care.data.source import Files, Source
from care.errors import DataError

_FOLDER = "JailBreakV_28K"

SOURCE = Source(
    folder="jailbreakv",
    page="https://huggingface.co/datasets/JailbreakV-28K/JailBreakV-28k",
    licence="MIT",
    host="hub",
    at="JailbreakV-28K/JailBreakV-28k",
    revision="f949ca582fff13d396ac8fce59596afafb2b78d3",
    by_hand=(
        "ask for the pictures with the form https://docs.google.com/forms/d/e/"
        "1FAIpQLSc_p1kCs3p9z-3FbtSeF7uLYsiQk0tvsGi6F0e_z5xCEmN1gQ/viewform (it is linked from the "
        "data set's page), unpack JailBreakV_28K.zip and put its folders figstep, "
        "llm_transfer_attack and query_related into {folder}"
    ),
)


def _load(file: str, files: Files) -> Iterator[Draft]:
    as_text = left_out = total = 0
    for row in files.rows(f"{_FOLDER}/{file}"):
        total += 1
        transferred = row.flag("transfer_from_llm")
        category = f"{row.text('policy')}/{row.text('format')}"
        fields = (
            row.label(row.index("id")),
            row.text("jailbreak_query"),
            row.text("redteam_query"),
            category,
        )
        picture = files.image(row.text("image_path"), _FOLDER)
        if picture is not None:
            yield attack(*fields, picture)
        elif transferred:
            as_text += 1
            yield attack(*fields)
        else:
            left_out += 1
    if as_text or left_out:
        note = f"{as_text} of {total} rows as text alone, {left_out} left out"
        if left_out == total:
            raise DataError(
                f"No row of {file} can be asked without its picture; {SOURCE.instructions()}, or "
                "pass the folder of pictures with images."
            )
        files.note(note, f"JailBreakV-28K without its pictures: {note}; {SOURCE.instructions()}.")


def _load_requests(files: Files) -> Iterator[Draft]:
    for row in files.rows(f"{_FOLDER}/RedTeam_2K.csv"):
        request = row.text("question")
        yield attack(row.label(row.index("id")), request, request, row.text("policy"))


_DIFFERS = (
    "the paper asks every text beside its picture and judges with Llama Guard; without the "
    "pictures rows are asked as text alone or left out"
)

BENCHMARKS = (
    Benchmark(
        "jailbreakv",
        "attack",
        "JailBreakV-28K: text jailbreaks beside pictures, FigStep and query-related pictures.",
        28_000,
        SOURCE,
        partial(_load, "JailBreakV_28K.csv"),
        _DIFFERS,
    ),
    Benchmark(
        "jailbreakv-mini",
        "attack",
        "The 280 rows of JailBreakV-28K that its authors selected.",
        280,
        SOURCE,
        partial(_load, "mini_JailBreakV_28K.csv"),
        _DIFFERS,
    ),
    Benchmark(
        "redteam-2k",
        "attack",
        "RedTeam-2K: the malicious requests behind JailBreakV-28K, in plain words.",
        2_000,
        replace(SOURCE, by_hand=""),  # it has no pictures
        _load_requests,
    ),
)
