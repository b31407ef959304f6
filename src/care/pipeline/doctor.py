"""What a main job would run on, in one page: versions, machine, hub, model, judges and suites.

Nothing is fetched and no model is loaded. The hub is asked once whether it answers, and what it
lists of each repository that isn't at hand (`to_fetch`), and not at all where it is switched off
(HF_HUB_OFFLINE). What a job asks, and for how long, is in `dry_run`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from huggingface_hub import constants

from care.data.at_hand import SuiteNeeds, needs
from care.data.source import cache_folder
from care.judges.config import HubConfig
from care.judges.registry import judge_config
from care.models.embedded.cache import base_folder
from care.models.hub_files import cached
from care.models.spec import ModelSpec
from care.pipeline.config import NAMED, RepairJob
from care.pipeline.hub_listing import Hub
from care.pipeline.to_fetch import Fetch, free_at, lack_of_space, sums, to_fetch, total_said
from care.runs.environment import GIB, machine_facts, versions

EXTRAS = {
    "accelerate": "for --device-map: several devices, and weights put aside",
    "bitsandbytes": "for --quantize: pip install 'care-vlm[quantize]'",
    "pyarrow": "for suites in Parquet: pip install 'care-vlm[parquet]'",
}
"""Packages that a job may need, and what for."""


@dataclass(frozen=True)
class LookedAt:
    """One thing that was looked at."""

    about: str
    """What it is."""
    found: str
    """What there is."""
    to_do: str = ""
    """What is missing, or to be known."""
    bytes: int | None = 0
    """Bytes that would be fetched of it; None where nobody tells."""

    def with_size(self, fetch: Fetch) -> LookedAt:
        """This, with what would be fetched."""
        found = "; ".join(filter(None, (self.found, fetch.said)))
        return replace(self, found=found, bytes=fetch.size)


def findings(job: RepairJob) -> list[LookedAt]:
    """All of it, in the order of the page."""
    hub = Hub()
    named = [(option, needs(name)) for option in NAMED for name in getattr(job, option)]
    fetches = to_fetch(job, [need for _, need in named], hub)
    fetched = [
        model_finding(job.model),
        *(_judge(wanted) for wanted in job.judging.judges),
        *(_suite(option, need) for option, need in named),
    ]
    return [
        *(LookedAt(name, number) for name, number in versions().items()),
        *(LookedAt(name, *_installed(name, why)) for name, why in EXTRAS.items()),
        *_machine(),
        _hub(hub),
        *(each.with_size(fetch) for each, fetch in zip(fetched, fetches, strict=True)),
        LookedAt(
            "to fetch", total_said(fetches), lack_of_space(fetches), sum(sums(fetches).values())
        ),
    ]


def _installed(name: str, why: str) -> tuple[str, str]:
    try:
        return version(name), ""
    except PackageNotFoundError:
        return "not installed", why


def _machine() -> Iterator[LookedAt]:
    facts = machine_facts()
    for name in ("system", "cpu", "cores"):
        yield LookedAt(name, str(facts[name]))
    yield LookedAt("memory", f"{facts['memory_gib']} GiB")
    for place in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(place)
        name = torch.cuda.get_device_name(place)
        bf16 = "" if torch.cuda.is_bf16_supported() else "no bfloat16: pass --dtype float16"
        told = f"{name}, {free / GIB:.0f} of {total / GIB:.0f} GiB free"
        yield LookedAt(f"device cuda:{place}", told, bf16)
    if not torch.cuda.is_available():
        yield LookedAt("device", "cpu", "no GPU is seen; answers of a large model are slow here")
    for what, folder in (("suites", cache_folder()), ("models", Path(constants.HF_HUB_CACHE))):
        free = free_at(folder) / GIB
        yield LookedAt(f"disk for {what}", f"{free:.0f} GiB free at {folder}")


def _hub(hub: Hub) -> LookedAt:
    if constants.HF_HUB_OFFLINE:
        return LookedAt("hub", "switched off by HF_HUB_OFFLINE", "only what is at hand is read")
    if hub.silence:
        return LookedAt("hub", hub.silence, "go online")
    return LookedAt("hub", f"{constants.ENDPOINT} answers")


def model_finding(model: ModelSpec) -> LookedAt:
    """Whether a model is at hand; where it isn't, what is to do."""
    if model.name is None:
        there = base_folder().is_dir()
        to_do = "" if there else "care download model embedded"
        return LookedAt("model embedded", "assembled" if there else "not assembled yet", to_do)
    return LookedAt(f"model {model.name}", *_on_hub(model.name, model.revision))


def _on_hub(name: str, revision: str | None) -> tuple[str, str]:
    """Whether a model is at hand: a folder, or what was fetched from the Hub."""
    if Path(name).is_dir():
        return "a folder", ""
    try:
        found = cached(name, revision)
    except ValueError:
        return "not found", "correct the name: it is no folder, and none that the Hub could have"
    if found == "whole":
        return "fetched", ""
    if found == "in part":
        return "fetched in part", "the rest is fetched when it is loaded"
    return "not fetched", "it is fetched when it is loaded"


def _judge(wanted: str) -> LookedAt:
    config = judge_config(wanted)
    if not isinstance(config, HubConfig):
        return LookedAt(f"judge {config.name}", "at hand")
    return LookedAt(f"judge {config.name}", *_on_hub(config.model, config.revision))


def _suite(option: str, need: SuiteNeeds) -> LookedAt:
    there = "at hand" if need.at_hand else "not at hand"
    return LookedAt(f"--{option} {need.name}", f"{there}; licence: {need.licence}", need.to_do)
