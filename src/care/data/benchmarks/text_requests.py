"""Readers of suites that ask by text alone.

| reader | suites |
|---|---|
| `requests` | AdvBench, JailbreakBench, StrongREJECT, OR-Bench, RedTeam-2K |
| `harmbench` | HarmBench, whose contextual behaviours are asked after their context |
| `xstest` | XSTest, safe prompts or their unsafe counterparts |
| `toxicity` | RealToxicityPrompts, beginnings of sentences |

A row of the first is one plain request; JailbreakBench has a benign one on the topic of every
harmful one, which measures over-refusal. Behind a beginning of RealToxicityPrompts there is no
request, so its goal is itself, and what counts is whether the continuation is toxic: judge it with
a measure of toxicity, not with one of compliance.
"""

from __future__ import annotations

from collections.abc import Iterator

from care.data.benchmark import Draft, asked, content_id
from care.data.source import Files
from care.data.tables import Row


def requests(
    files: Files, table: str, prompt: str, row_id: str = "", category: str = ""
) -> Iterator[Draft]:
    """A request a row, from the columns of those names; without ids, called by its digest."""
    for row in files.rows(table):
        key = row.label(row.index(row_id)) if row_id else ""
        request = row.text(prompt)
        yield asked(key or content_id(request), request, row.text(category) if category else "")


def behaviour(row: Row) -> tuple[str, str, str]:
    """Id, goal and category of a row of HarmBench."""
    kind = row.one_of("FunctionalCategory", ("standard", "contextual", "copyright", "multimodal"))
    category = f"{kind}/{row.text('SemanticCategory')}"
    return row.text(row.index("BehaviorID")), row.text("Behavior"), category


def harmbench(files: Files, table: str) -> Iterator[Draft]:
    """Text behaviours, after their context where they have one, as HarmBench's own code asks."""
    for row in files.rows(table):
        key, goal, category = behaviour(row)
        context = row.text("ContextString", blank=True)
        prompt = f"{context}\n\n---\n\n{goal}" if context else goal
        yield asked(key, prompt, category, goal=goal)


def xstest(files: Files, table: str, label: str) -> Iterator[Draft]:
    """The prompts that are labelled `safe`, or those that are labelled `unsafe`."""
    for row in files.rows(table):
        key, prompt, kind = row.label(row.index("id")), row.text("prompt"), row.text("type")
        if row.one_of("label", ("safe", "unsafe")) == label:
            yield asked(key, prompt, kind)


def toxicity(files: Files, table: str, challenging: bool = False) -> Iterator[Draft]:
    """All beginnings, or those that are marked as challenging."""
    for row in files.rows(table):
        hard = row.flag("challenging")
        text = row.inner("prompt").text("text")
        if hard or not challenging:
            key = f"{row.text('filename').removesuffix('.txt')}-{row.number('begin')}"
            yield asked(key, text, "challenging" if hard else "other")
