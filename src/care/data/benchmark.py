"""What every published suite states about itself, and how one becomes a `Suite`.

A reader yields drafts: examples, and how to get their pictures. Here they get ids without
repetition and are sampled, and only then are pictures looked for, fetched or drawn, so that a
sample doesn't need those of the rest.

A sample is the `limit` examples (or groups, such as the rotations of one question) whose digests
with the seed are the smallest: it depends neither on the order of the file nor on a random
generator, and a smaller sample is part of a greater one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from care.data.example import Example, ExampleKind, Suite, SuiteRole
from care.data.source import Files, Source
from care.errors import UsageError

Picture = Path | Callable[[], Path]
"""A picture, or what gets it."""


class Draft(NamedTuple):
    """An example whose pictures haven't been looked for."""

    example: Example
    """Everything but its pictures, suite and kind."""
    pictures: tuple[Picture, ...] = ()
    """Its pictures."""

    def finished(self, suite: str, kind: ExampleKind) -> Example:
        """The example of that suite, with its pictures."""
        images = tuple(found if isinstance(found, Path) else found() for found in self.pictures)
        return replace(self.example, suite=suite, kind=kind, images=images)


Reader = Callable[..., Iterable[Draft]]
"""Makes the examples from `Files` and the options of a suite's card."""

VERSION = "1"
"""Version of the conversions; counts up when one makes other examples of the same files."""


@dataclass(frozen=True)
class Benchmark:
    """One published suite."""

    name: str
    """Name on the command line."""
    role: SuiteRole
    """What it measures; all examples of an attack are malicious, all others benign."""
    about: str
    """One line."""
    source: Source
    """Where it comes from."""
    reader: Reader
    """Makes the examples."""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What the reader is told: the table, its columns, which part of it."""
    size: int = 0
    """Examples of the published set; 0 where nobody states it."""
    differs: str = ""
    """How this differs from the published protocol."""
    grouped: bool = False
    """Whether examples belong together, by `stem`, and are sampled so."""

    def group(self, example_id: str) -> str:
        """What is sampled as a whole."""
        return stem(example_id) if self.grouped else example_id

    def suite(
        self,
        path: str | Path | None = None,
        images: str | Path | None = None,
        limit: int | None = None,
        seed: int = 0,
    ) -> Suite:
        """The suite; see `care.load_suite`."""
        files = Files(
            self.source,
            None if path is None else Path(path).expanduser(),
            None if images is None else Path(images).expanduser(),
        )
        chosen = None
        if limit is not None:  # a pass for the ids alone, so that no pictures lie in memory
            ids = (draft.example.id for draft in self._drafts(files))
            chosen = choose(map(self.group, ids), limit, seed)
        kind: ExampleKind = "malicious" if self.role == "attack" else "benign"
        examples = tuple(
            draft.finished(self.name, kind)
            for draft in self._drafts(files)
            if chosen is None or self.group(draft.example.id) in chosen
        )
        source, revision = files.provenance()
        return Suite(
            self.name,
            self.role,
            examples,
            version="; ".join([VERSION, *files.notes]),
            licence=self.source.licence,
            source=source,
            revision=revision,
        )

    def _drafts(self, files: Files) -> Iterator[Draft]:
        return distinct(self.reader(files, **self.options))


def stem(example_id: str) -> str:
    """What an example is one of: a question of MMBench that is shifted, a picture of MME."""
    return example_id.rsplit("-", 1)[0]


def choose(names: Iterable[str], limit: int, seed: int) -> set[str]:
    """The `limit` names whose digests with the seed are the smallest; UsageError for none."""
    if limit < 1:
        raise UsageError(f"limit is {limit}; ask for at least 1 example, or for all with None.")

    def rank(name: str) -> str:
        return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()

    return set(sorted(set(names), key=rank)[:limit])


def distinct(drafts: Iterable[Draft]) -> Iterator[Draft]:
    """The drafts with ids that differ: the second of one name is called name-2, and so on."""
    seen: dict[str, int] = {}
    for draft in drafts:
        name = draft.example.id
        count = seen[name] = seen.get(name, 0) + 1
        if count > 1:
            draft = draft._replace(example=replace(draft.example, id=f"{name}-{count}"))
        yield draft


def content_id(*texts: str) -> str:
    """An id of a row that has none: a digest of its text, so that order doesn't matter."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]


def asked(
    row_id: str,
    prompt: str,
    category: str,
    *pictures: Picture,
    goal: str = "",
    references: tuple[str, ...] = (),
) -> Draft:
    """A draft of one request; its goal is the prompt unless it is given."""
    example = Example(row_id, prompt, goal=goal or prompt, category=category, references=references)
    return Draft(example, pictures)
