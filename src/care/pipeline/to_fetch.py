"""How many bytes a job would fetch: of its model, of the judges and of the named suites.

    bytes = Σ over files that the job needs and that aren't here, each counted once

Sizes are those of the Hub's own listings (`hub_listing`), of the embedded model those of its
wheels; other servers aren't asked. What isn't known is told with the reason, and nothing fails.
Not counted: what is fetched by hand, and copies that are made here (unpacked archives, pictures of
tables).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import urlsplit

from huggingface_hub import constants

from care.data.at_hand import SuiteNeeds
from care.judges.config import HubConfig, JudgeConfig
from care.judges.registry import judge_config
from care.models.embedded.cache import base_folder
from care.models.embedded.fetch import TEXT, TOWER, WHEELS_VARIABLE
from care.models.hub_files import ADAPTER, cached, loaded_files
from care.models.spec import ModelSpec
from care.pipeline.config import RepairJob
from care.pipeline.hub_listing import Hub, Listing

Part = Literal["model", "judges", "suites"]


@dataclass(frozen=True)
class Fetch:
    """What would be fetched of one thing."""

    about: str
    """What it is called."""
    part: Part
    """What of a job it is."""
    folder: Path
    """Where it would go."""
    files: Mapping[str, int] = field(default_factory=dict[str, int])
    """Bytes of each file, by its address."""
    untold: str = ""
    """Why its size isn't known, as the end of a sentence; then there are no files."""

    @property
    def size(self) -> int | None:
        """Bytes; None where they aren't known."""
        return None if self.untold else sum(self.files.values())

    @property
    def said(self) -> str:
        """Its size in words; empty where nothing would be fetched."""
        if self.untold:
            return f"size not known: {self.untold}"
        return f"{in_words(self.size)} to fetch" if self.size else ""


def model_fetch(model: ModelSpec, hub: Hub) -> Fetch:
    """What would be fetched of the model under test."""
    bare = Fetch(model.shown, "model", _hub_folder())
    if model.name is not None:
        return _of_model(bare, model.name, model.revision, hub)
    here = base_folder().is_dir() or bool(os.environ.get(WHEELS_VARIABLE))
    wheels = {} if here else {w.filename: w.megabytes * 10**6 for w in (TEXT, TOWER)}
    return replace(bare, folder=base_folder().parent, files=wheels)


def judge_fetch(judge: JudgeConfig, hub: Hub) -> Fetch:
    """What would be fetched of a judge from the Hub; what others fetch isn't looked at."""
    bare = Fetch(judge.name, "judges", _hub_folder())
    if not isinstance(judge, HubConfig):
        return bare
    return _of_model(bare, judge.model, judge.revision, hub)


def suite_fetch(needed: SuiteNeeds, hub: Hub) -> Fetch:
    """What would be fetched of a suite."""
    source, bare = needed.source, Fetch(needed.name, "suites", _hub_folder())
    if source is None or not needed.missing:
        return bare
    if source.host != "hub":
        host = "GitHub" if source.host == "github" else urlsplit(source.at).hostname
        return replace(bare, untold=f"it comes from {host}, which isn't asked")
    listing = hub.listing(source.at, source.revision, "dataset")
    return _of_files(bare, f"{source.at}@{source.revision}", listing, needed.missing)


def _of_model(bare: Fetch, name: str, revision: str | None, hub: Hub) -> Fetch:
    try:
        here = Path(name).is_dir() or cached(name, revision) == "whole"
    except ValueError:
        return replace(bare, untold="it is neither a folder nor a name that the Hub could have")
    if here:
        return bare
    listing = hub.listing(name, revision, "model")
    wanted = loaded_files(listing.files)
    if not listing.untold and not wanted:
        adapter = ADAPTER in listing.files
        kind = "an adapter, and its model isn't asked for" if adapter else "no weights to load"
        return replace(bare, untold=f"the Hub lists {kind}")
    return _of_files(bare, f"{name}@{revision}", listing, wanted)


def _of_files(bare: Fetch, where: str, listing: Listing, wanted: Sequence[str]) -> Fetch:
    """These files of a listing."""
    if listing.untold:
        return replace(bare, untold=listing.untold)
    sizes = {name: listing.files.get(name) for name in wanted}
    if unsaid := [name for name, size in sizes.items() if size is None]:
        return replace(bare, untold=f"the Hub lists no size of {unsaid[0]}")
    return replace(bare, files={f"{where}/{name}": size for name, size in sizes.items() if size})


def _hub_folder() -> Path:
    return Path(constants.HF_HUB_CACHE)


# -- all of it -------------------------------------------------------------------------------------


def to_fetch(job: RepairJob, needed: Iterable[SuiteNeeds], hub: Hub | None = None) -> list[Fetch]:
    """What would be fetched of the model, each judge and each of the suites, in this order."""
    hub = hub or Hub()
    return [
        model_fetch(job.model, hub),
        *(judge_fetch(judge_config(wanted), hub) for wanted in job.judging.judges),
        *(suite_fetch(each, hub) for each in needed),
    ]


def sums(fetches: Iterable[Fetch]) -> dict[str, int]:
    """Known bytes by part; a file that two of them need is counted for the first."""
    seen: set[str] = set()
    found = dict.fromkeys(get_args(Part), 0)
    for fetch in fetches:
        found[fetch.part] += sum(fetch.files[name] for name in fetch.files.keys() - seen)
        seen |= fetch.files.keys()
    return found


def total_said(fetches: Collection[Fetch]) -> str:
    """All of it in words: "16.6 GB of model, 1.2 GB of suites (3 sizes not known)"."""
    told = ", ".join(f"{in_words(size)} of {part}" for part, size in sums(fetches).items() if size)
    count = len({(fetch.part, fetch.about) for fetch in fetches if fetch.untold})
    unknown = f"{count} size{'s' * (count != 1)} not known" if count else ""
    return f"{told} ({unknown})" if told and unknown else told or unknown or "nothing"


def lack_of_space(fetches: Iterable[Fetch]) -> str:
    """A sentence where what is known to be fetched doesn't fit on the disk; empty where it does."""
    files: dict[Path, dict[str, int]] = {}
    for fetch in fetches:
        files.setdefault(fetch.folder, {}).update(fetch.files)
    sizes = {folder: sum(found.values()) for folder, found in files.items()}
    return " ".join(
        f"It doesn't fit: {in_words(size)} would be fetched to {folder}, where {in_words(free)} "
        "are free; free some, or name another folder in "
        f"{'HF_HUB_CACHE' if folder == _hub_folder() else 'CARE_CACHE'}."
        for folder, size in sizes.items()
        if size > (free := free_at(folder))
    )


def free_at(folder: Path) -> int:
    """Free bytes of the disk on which a folder lies or would be made."""
    there = next(place for place in (folder, *folder.parents) if place.is_dir())
    return shutil.disk_usage(there).free


def in_words(size: int | None) -> str:
    """Bytes as people read them, 1 GB being 10⁹."""
    size = size or 0
    if size >= 10**9:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.0f} MB" if size >= 10**7 else f"{max(size / 1e6, 0.1):.1f} MB"
