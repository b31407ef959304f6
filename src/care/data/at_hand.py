"""What of a suite would have to be fetched before it can be asked, without fetching anything.

A published suite is at hand if its first example can be made of what lies on this machine; whether
all its pictures do isn't looked at. Which files it misses is told as far as its card names them.
Files of one's own and the small world are at hand, or an error of `care.load_suite`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from care.data.benchmark import Benchmark
from care.data.jsonl import ENDING
from care.data.registry import find
from care.data.small_world import suites as small_world
from care.data.source import Files, Source
from care.errors import DataError, DownloadError


@dataclass(frozen=True)
class SuiteNeeds:
    """What a suite needs."""

    name: str
    """Name of the suite."""
    licence: str
    """Its licence; of a file of one's own none is known."""
    at_hand: bool
    """Whether it can be asked without a network."""
    to_do: str
    """What would be fetched, or has to be done by hand; empty where nothing."""
    source: Source | None = None
    """Where a published suite comes from."""
    missing: tuple[str, ...] = ()
    """Files of the source that would be fetched; of one on the Hub all that the suite needs, of
    others the first."""


_FILES = ("table", "tables", "archive")
"""What readers call the files of a source that they read, on a suite's card."""


class _Absent(DownloadError):
    """A file that would be fetched."""


@dataclass(frozen=True)
class _Here(Source):
    """A source of which only that is given which is there."""

    def fetch(self, relative: str) -> Path:
        found = self.kept(relative)
        if found is None:
            raise _Absent(relative)
        return found


def needs(name: str) -> SuiteNeeds:
    """What the suite of that name needs. UsageError if there is none."""
    if name.endswith(ENDING):
        there = Path(name).is_file()
        return SuiteNeeds(name, "your own file", there, "" if there else "there is no such file")
    if name in small_world.NAMES:
        return SuiteNeeds(name, "Apache-2.0; pictograms SIL OFL 1.1", True, "")
    card = find(name)
    to_do, absent = _missing(card)
    files = tuple(_not_kept(card, absent))
    return SuiteNeeds(
        name, card.source.licence, not to_do, "; ".join(to_do), source=card.source, missing=files
    )


def _missing(card: Benchmark) -> tuple[Sequence[str], str]:
    """What is to be done for the first example, and the first file that would be fetched for it."""
    source = card.source
    here = _Here(**{field.name: getattr(source, field.name) for field in fields(source)})
    consent = f", after the terms at {source.page} are accepted" if source.gated else ""
    try:
        for draft in card.reader(Files(here), **card.options):
            draft.finished(card.name, "benign")
            return [], ""
    except _Absent as error:
        fetched = f"{error} is fetched from {source.page}{consent}"
        to_do = [fetched, source.instructions()] if source.by_hand else [fetched]
        return to_do, str(error)
    except DataError as error:
        return [source.instructions() or str(error)], ""
    return [f"{source.page} gives no example"], ""


def _not_kept(card: Benchmark, absent: str) -> list[str]:
    """The files that would be fetched, the `absent` one first.

    A reader stops at the first. On the Hub a card names the others, as files of the repository;
    elsewhere they may be inside of an archive.
    """
    found = [absent] if absent else []
    if card.source.host == "hub":
        named = [card.options.get(option, ()) for option in _FILES]
        files = [f for name in named for f in ((name,) if isinstance(name, str) else name)]
        found += [file for file in files if file != absent and card.source.kept(file) is None]
    return found
