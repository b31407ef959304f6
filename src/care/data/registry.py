"""The one door to all suites: published ones, those of the small world, and files of one's own.

Of the published ones nothing is shipped: such a suite is read from a local copy or fetched from its
source at a pinned revision. `REGISTRY` holds them all in one order, attacks first.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from care.data.benchmark import Benchmark, Reader, choose
from care.data.benchmarks import pictured_requests, text_requests, visual_questions
from care.data.example import Suite, SuiteRole
from care.data.jsonl import ENDING, read_suite
from care.data.small_world import suites as small_world
from care.data.source import Source
from care.errors import UsageError

_MODULES = {
    "text_requests": text_requests,
    "pictured_requests": pictured_requests,
    "visual_questions": visual_questions,
}
"""Where the readers are that cards name."""

_ROLES = ("attack", "over_refusal", "utility")


def _benchmarks() -> Iterator[Benchmark]:
    """Every card, in the order of the file, whose head says what is in it."""
    file = resources.files("care.data.benchmarks").joinpath("cards.yaml")
    loader = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader  # ten times as fast
    cards: dict[str, dict[str, Any]] = yaml.load(file.read_text(encoding="utf-8"), loader)
    for folder, card in cards.items():
        suites: dict[str, dict[str, Any]] = card.pop("suites")
        differs: str = card.pop("differs", "")
        source = Source(folder=folder, **card)
        for name, own in suites.items():
            facts: dict[str, Any] = {"differs": differs, **own}
            by_hand = facts.pop("by_hand", source.by_hand)
            yield Benchmark(
                name,
                source=replace(source, by_hand=by_hand),
                reader=_reader(facts.pop("reader")),
                **facts,
            )


def _reader(name: str) -> Reader:
    module, _, function = name.partition(".")
    return getattr(_MODULES[module], function)


REGISTRY: dict[str, Benchmark] = {
    found.name: found for found in sorted(_benchmarks(), key=lambda one: _ROLES.index(one.role))
}
"""Every published suite by its name."""


def load_suite(
    name: str | Path,
    split: str = "test",
    role: SuiteRole | None = None,
    *,
    path: str | Path | None = None,
    images: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Suite:
    """A suite by name, or from a JSON Lines file (see `care.data.jsonl`).

    Args:
        name: a published suite or one of the small world of the embedded model (`care list suites`
            shows both), or the path of a file that ends in .jsonl.
        split: `fit`, `validation` or `test` of the small world; the others have no splits.
        role: of a file, see `care.data.jsonl.read_suite`; a named suite has its own.
        path: a local copy of a published suite: a folder laid out as its source is, or its table.
            Without one, it is fetched from its source at the pinned revision.
        images: the folder of a published suite's pictures, if they aren't in `path`.
        limit: at most so many examples, a sample drawn by their ids (of suites whose examples
            belong together, such as the rotations of one question, so many groups).
        seed: seed of the sample.

    Raises:
        UsageError: no such suite or split, or arguments that don't fit the suite.
        DataError: a file, picture or example is missing or not what was published.
        DownloadError: a published suite can't be fetched.
        MissingDependencyError: it comes as Parquet, and pyarrow isn't installed.
    """
    own = str(name).endswith(ENDING)
    if not own and name not in small_world.NAMES:
        return find(str(name)).suite(path, images, limit, seed)
    if path is not None or images is not None:
        raise UsageError(
            f"path and images are for published suites, but {str(name)!r} isn't one; leave them "
            "out, or choose a name from `care list suites`."
        )
    if own:
        suite = read_suite(name, role)
    elif split in ("fit", "validation", "test"):
        suite = small_world.load(str(name), split)
    else:
        raise UsageError(f"There is no split {split!r}; use fit, validation or test.")
    if limit is None:
        return suite
    chosen = choose((example.id for example in suite), limit, seed)
    return replace(suite, examples=tuple(e for e in suite if e.id in chosen))


def fitted_suite(name: str) -> Suite:
    """All of a suite that may have been fitted on.

    Of the small world that is the fit split, at the lengths that `care repair` fits on.
    """
    if name in small_world.NAMES:
        return small_world.load(name, "fit", small_world.FIT_LENGTHS[name])
    return load_suite(name)


def find(name: str) -> Benchmark:
    """The suite of that name; UsageError with the nearest names if there is none."""
    if name in REGISTRY:
        return REGISTRY[name]
    near = difflib.get_close_matches(name, [*REGISTRY, *small_world.NAMES], n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UsageError(
        f"There is no suite {name!r}; {hint}`care list suites` shows their names, and a file of "
        "your own ends in .jsonl."
    )
