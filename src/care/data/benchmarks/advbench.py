"""AdvBench, and AdvBench-M, which puts a picture of the topic beside its requests.

AdvBench has no ids; an example is called by a digest of its request. AdvBench-M has eight groups of
requests and a folder of pictures for each, without saying which belongs to which: request i of a
group is asked beside picture i mod 20, since twenty are published per group.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from care.data.benchmark import Benchmark, Draft, attack, content_id
from care.data.source import Files, Source

_GROUPS = (
    "bomb_explosive",
    "drugs",
    "suicide",
    "hack_information",
    "kill_someone",
    "social_violence",
    "finance_stock",
    "firearms_weapons",
)
"""Groups of AdvBench-M in the order of their folders, which count from 0."""

_PICTURES = 20
"""Pictures of each group."""

ADVBENCH = Source(
    folder="advbench",
    page="https://github.com/llm-attacks/llm-attacks",
    licence="MIT",
    host="github",
    at="llm-attacks/llm-attacks",
    revision="098262edf85f807224e70ecd87b9d83716bf6b73",
)

ADVBENCH_M = Source(
    folder="advbench-m",
    page="https://github.com/abc03570128/Jailbreaking-Attack-against-Multimodal-Large-Language-Model",
    licence="none stated",
    host="github",
    at="abc03570128/Jailbreaking-Attack-against-Multimodal-Large-Language-Model",
    revision="d3f84a8afa03e904d5f6b3a2b3b995beb98e5ea9",
)


def _load(files: Files) -> Iterator[Draft]:
    for row in files.rows("data/advbench/harmful_behaviors.csv"):
        goal = row.text("goal")
        yield attack(content_id(goal), goal, goal, "")


def _load_pictured(files: Files) -> Iterator[Draft]:
    for place, group in enumerate(_GROUPS):
        rows = files.rows(f"dataset/advbench/{place + 1}_{group}.csv")
        for number, row in enumerate(rows):
            goal = row.text("goal")
            inside = f"{place}/{number % _PICTURES + 1}.jpg"
            picture = partial(files.needed_image, inside, row, "dataset/advimage", fetched=True)
            yield attack(content_id(group, goal), goal, goal, group, picture)


BENCHMARKS = (
    Benchmark(
        "advbench",
        "attack",
        "AdvBench: 520 harmful behaviours as plain requests.",
        520,
        ADVBENCH,
        _load,
        "the published targets (affirmative openings) are for gradient attacks and aren't kept; "
        "the paper matches refusal prefixes",
    ),
    Benchmark(
        "advbench-m",
        "attack",
        "AdvBench-M: requests of eight groups beside a picture of their topic.",
        0,
        ADVBENCH_M,
        _load_pictured,
        "the paper optimises a perturbation over many pictures of a group; here each request is "
        "asked once, beside one plain picture (request i, picture i mod 20)",
    ),
)
