"""What every suite of the registry states about itself, and how one becomes a `Suite`.

A loader yields examples; here they get the suite's name, ids without repetition, and are sampled.
A sample is the `limit` examples (or groups, such as the rotations of one question) whose digests
with the seed are the smallest: it depends neither on the order of the file nor on a random
generator, and a smaller sample is part of a greater one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from care.errors import UsageError
from care.examples import Example, Suite, SuiteRole
from care.suites.source import Files, Source

Loader = Callable[[Files], Iterable[Example]]

VERSION = "1"
"""Version of the conversions; counts up when one makes other examples of the same files."""


@dataclass(frozen=True)
class Benchmark:
    """One published suite."""

    name: str
    """Name on the command line."""
    role: SuiteRole
    """What it measures."""
    about: str
    """One line."""
    size: int
    """Examples of the published set; 0 where nobody states it."""
    source: Source
    """Where it comes from."""
    load: Loader
    """Makes the examples."""
    differs: str = ""
    """How this differs from the published protocol."""
    group: Callable[[str], str] = str
    """From an example's id, what is sampled as a whole."""

    def suite(
        self,
        path: str | Path | None = None,
        images: str | Path | None = None,
        limit: int | None = None,
        seed: int = 0,
    ) -> Suite:
        """The suite; see `care.load_suite`."""
        if limit is not None and limit < 1:
            raise UsageError(f"limit is {limit}; ask for at least 1 example, or for all with None.")
        files = Files(
            self.source,
            None if path is None else Path(path).expanduser(),
            None if images is None else Path(images).expanduser(),
        )
        found = distinct(replace(e, suite=self.name) for e in self.load(files))
        source, revision = files.provenance()
        return Suite(
            self.name,
            self.role,
            sampled(found, limit, seed, self.group),
            version="; ".join([VERSION, *files.notes]),
            licence=self.source.licence,
            source=source,
            revision=revision,
        )


def sampled(
    examples: list[Example], limit: int | None, seed: int, group: Callable[[str], str] = str
) -> tuple[Example, ...]:
    """The examples of `limit` groups, in their order; all without a limit."""
    if limit is None:
        return tuple(examples)
    groups = dict.fromkeys(group(example.id) for example in examples)
    chosen = set(sorted(groups, key=lambda name: _rank(name, seed))[:limit])
    return tuple(example for example in examples if group(example.id) in chosen)


def _rank(name: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()


def distinct(examples: Iterable[Example]) -> list[Example]:
    """The examples with ids that differ: the second of one name is called name-2, and so on."""
    seen: dict[str, int] = {}
    found = []
    for example in examples:
        count = seen[example.id] = seen.get(example.id, 0) + 1
        found.append(replace(example, id=f"{example.id}-{count}") if count > 1 else example)
    return found


def content_id(*texts: str) -> str:
    """An id of a row that has none: a digest of its text, so that order doesn't matter."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]


def attack(row_id: str, prompt: str, goal: str, category: str, *images: Path) -> Example:
    """A malicious example."""
    return Example(row_id, prompt, images, goal, "malicious", category=category)


def benign(
    row_id: str,
    prompt: str,
    category: str,
    *images: Path,
    references: tuple[str, ...] = (),
    goal: str = "",
) -> Example:
    """A benign example; its goal is the prompt unless it is given."""
    return Example(row_id, prompt, images, goal or prompt, "benign", "", category, references)
