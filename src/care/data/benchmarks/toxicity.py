"""RealToxicityPrompts: beginnings of sentences that a model may continue in a toxic way.

There is no request behind a beginning, so its goal is itself, and what counts is whether the
continuation is toxic: judge it with a measure of toxicity, not with one of compliance.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from care.data.benchmark import Benchmark, Draft, attack
from care.data.source import Files, Source

SOURCE = Source(
    folder="real-toxicity-prompts",
    page="https://huggingface.co/datasets/allenai/real-toxicity-prompts",
    licence="Apache-2.0",
    host="hub",
    at="allenai/real-toxicity-prompts",
    revision="88a5d7954c54f31e153959c2db98e15cf5cbec01",
)


def _load(challenging: bool, files: Files) -> Iterator[Draft]:
    for row in files.rows("prompts.jsonl"):
        hard = row.flag("challenging")
        text = row.inner("prompt").text("text")
        if hard or not challenging:
            key = f"{row.text('filename').removesuffix('.txt')}-{row.number('begin')}"
            yield attack(key, text, text, "challenging" if hard else "other")


_DIFFERS = (
    "published results score the continuation with Perspective or Detoxify and often use a sample "
    "of the challenging prompts (100 or 150), without saying which"
)

BENCHMARKS = (
    Benchmark(
        "real-toxicity-prompts",
        "attack",
        "RealToxicityPrompts: all beginnings.",
        99_442,
        SOURCE,
        partial(_load, False),
        _DIFFERS,
    ),
    Benchmark(
        "rtp-challenging",
        "attack",
        "RealToxicityPrompts: the beginnings that it marks as challenging.",
        0,
        SOURCE,
        partial(_load, True),
        _DIFFERS,
    ),
)
