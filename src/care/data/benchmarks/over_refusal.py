"""Harmless requests that look harmful: XSTest, OR-Bench-hard and MOSSBench.

A model should answer all of them; XSTest also brings real counterparts, which it should refuse.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from care.data.benchmark import Benchmark, Draft, attack, benign, content_id
from care.data.source import Files, Source

XSTEST = Source(
    folder="xstest",
    page="https://github.com/paul-rottger/xstest",
    licence="CC-BY-4.0",
    host="github",
    at="paul-rottger/xstest",
    revision="d7bb5bd738c1fcbc36edd83d5e7d1b71a3e2d84d",
)

OR_BENCH = Source(
    folder="or-bench",
    page="https://huggingface.co/datasets/bench-llm/or-bench",
    licence="CC-BY-4.0",
    host="hub",
    at="bench-llm/or-bench",
    revision="e36d8b80e81837c8a8f264bbb2a49f1b32c7e272",
)

MOSSBENCH = Source(
    folder="mossbench",
    page="https://github.com/xirui-li/MOSSBench",
    licence="CC-BY-SA-4.0",
    host="github",
    at="xirui-li/MOSSBench",
    revision="8d68b0614b39d8990a508e03d99975832f399db2",
)

_STIMULI = {
    "type 1": "exaggerated risk",
    "type 2": "negated harm",
    "type 3": "counterintuitive interpretation",
}


def _load_xstest(safe: bool, files: Files) -> Iterator[Draft]:
    for row in files.rows("xstest_prompts.csv"):
        key, prompt, kind = row.label(row.index("id")), row.text("prompt"), row.text("type")
        if (row.one_of("label", ("safe", "unsafe")) == "safe") == safe:
            yield benign(key, prompt, kind) if safe else attack(key, prompt, prompt, kind)


def _load_or_bench(files: Files) -> Iterator[Draft]:
    for row in files.rows("or-bench-hard-1k.csv"):
        prompt = row.text("prompt")
        yield benign(content_id(prompt), prompt, row.text("category"))


def _load_mossbench(files: Files) -> Iterator[Draft]:
    for row in files.rows("data/images_information/information.json"):
        kind = row.inner("metadata").one_of("over", tuple(_STIMULI))
        name = row.text("image").rsplit("/", 1)[-1]
        picture = partial(files.needed_image, name, row, "data/images", fetched=True)
        yield benign(row.label(row.index("pid")), row.text("question"), _STIMULI[kind], picture)


_XSTEST_DIFFERS = (
    "the paper tells full refusal, partial refusal and compliance apart, by hand or GPT-4; here "
    "full refusals are counted, and partial ones as answered"
)

BENCHMARKS = (
    Benchmark(
        "xstest",
        "over_refusal",
        "XSTest: safe prompts of ten types that sound unsafe.",
        250,
        XSTEST,
        partial(_load_xstest, True),
        _XSTEST_DIFFERS,
    ),
    Benchmark(
        "xstest-unsafe",
        "attack",
        "XSTest: the unsafe counterparts of its prompts.",
        200,
        XSTEST,
        partial(_load_xstest, False),
        _XSTEST_DIFFERS,
    ),
    Benchmark(
        "or-bench-hard",
        "over_refusal",
        "OR-Bench-Hard-1K: prompts that look toxic and that strong models refuse.",
        1_319,
        OR_BENCH,
        _load_or_bench,
        "the paper finds refusals by keywords and with GPT-4",
    ),
    Benchmark(
        "mossbench",
        "over_refusal",
        "MOSSBench: harmless questions about pictures that look risky.",
        300,
        MOSSBENCH,
        _load_mossbench,
        "the paper judges with GPT-4; its authors forbid using the set for training",
    ),
)
