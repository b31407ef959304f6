"""What defenses are fitted on: requests with the model's own answers, sorted by their outcome.

    complied   attacks that worked
    refused    malicious requests that were refused
    answered   benign requests that were answered

Answers are the model's own, so activations are those that occur. Those at the decision position,
the last of the prompt, may be taken from the same reading of the prompts. Material can be stored
and read back; nothing here fits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import safetensors
import safetensors.numpy
from safetensors import SafetensorError

from care.data.contamination import goals_told
from care.data.digests import example_digest
from care.data.example import Example, ExampleKind
from care.defenses.activations import decisions, read_decisions
from care.errors import DataError, FitError, UsageError
from care.judges.refusal import certainly_refused
from care.judges.rules import RulesJudge
from care.models.batches import by_length
from care.models.sites import Site
from care.models.vlm import VLM
from care.runs.files import write_whole
from care.runs.kept_batches import KeptBatches, texts_from, texts_to
from care.runs.shards import Shard

Answered = tuple[Example, str]
_Found = list[tuple[str, dict[Site, np.ndarray]]]
"""Of each request of a batch the answer and the activations."""

CLASSES = ("complied", "refused", "answered")
"""The classes of a `Material`, in order."""

ANSWER_TOKENS = 24
"""Tokens of the answers that are fitted on, unless others are asked for."""

_CLASS_OF: dict[tuple[ExampleKind, str], str] = {
    ("malicious", "harmful"): "complied",
    ("malicious", "refused"): "refused",
    ("benign", "safe"): "answered",
}
"""Class of an answer by the kind of its request and its outcome; others are left out."""

KINDS = tuple(kind for kind, _ in _CLASS_OF)
"""What the requests of each class are."""


@dataclass(frozen=True)
class Sorted:
    """Requests with the model's own answers, by their outcome."""

    complied: tuple[Answered, ...]
    """Attacks that worked, with the model's answers."""
    refused: tuple[Answered, ...]
    """Malicious requests that the model refused, with its refusals."""
    answered: tuple[Answered, ...]
    """Benign requests, with the model's answers."""
    decisions: Mapping[Site, tuple[np.ndarray, ...]] = field(default_factory=dict, compare=False)
    """Activations at the decision position, (N, D) of each of the three classes, of the sites at
    which they were taken when the requests were answered."""
    max_new_tokens: int | None = field(default=None, compare=False)
    """Length that the answers were given; None where it isn't known."""

    @property
    def count(self) -> int:
        """Requests of all classes."""
        return sum(len(getattr(self, name)) for name in CLASSES)

    def without(self, left_out: Callable[[Example], bool]) -> Sorted:
        """What is there but for some of the requests."""
        kept = {
            name: [n for n, (e, _) in enumerate(getattr(self, name)) if not left_out(e)]
            for name in CLASSES
        }
        return self.part(kept)

    def part(self, kept: Mapping[str, Sequence[int]]) -> Self:
        """The requests at these places of each class, with their activations."""
        return type(self)(
            **{name: tuple(getattr(self, name)[i] for i in kept[name]) for name in CLASSES},
            decisions={
                site: tuple(
                    part[list(kept[name])] for name, part in zip(CLASSES, rows, strict=True)
                )
                for site, rows in self.decisions.items()
            },
            max_new_tokens=self.max_new_tokens,
        )


@dataclass(frozen=True)
class Material(Sorted):
    """What a defense is fitted on: no class is empty."""

    def __post_init__(self) -> None:
        for name in CLASSES:
            if not getattr(self, name):
                raise FitError(
                    f"no example of the class {name!r} to fit on: a fit needs attacks that "
                    "worked, malicious requests that were refused, and answered benign requests"
                )

    @classmethod
    def of(cls, found: Sorted) -> Self:
        """What was sorted, if no class is empty; FitError else."""
        return cls(
            found.complied, found.refused, found.answered, found.decisions, found.max_new_tokens
        )

    @property
    def refusing(self) -> list[str]:
        """One of the model's own refusals for each attack that worked, in turn."""
        refusals = [answer for _, answer in self.refused]
        return [refusals[place % len(refusals)] for place in range(len(self.complied))]

    @cached_property
    def goals(self) -> dict[str, Any]:
        """Digests of all goals, by which an artefact's leaks are told
        (`care.evaluation.leak_check`)."""
        examples = [e for name in CLASSES for e, _ in getattr(self, name)]
        return goals_told(examples)


def gather(vlm: VLM, attacks: Sequence[Example], benign: Sequence[Example], **how: Any) -> Material:
    """Let the model answer, and sort its answers by outcome; `how` are the options of `ask`.

    FitError if no attack worked, no malicious request was refused, or no benign one answered.
    UsageError as of `check_kinds`.
    """
    check_kinds(attacks, benign)
    return Material.of(ask(vlm, [*attacks, *benign], **how))


def check_kinds(attacks: Sequence[Example], benign: Sequence[Example]) -> None:
    """UsageError unless all attacks are malicious and all other requests benign."""
    passed = (("malicious", "attacks", attacks), ("benign", "benign requests", benign))
    for kind, name, part in passed:
        wrong = [example for example in part if example.kind != kind]
        if wrong:
            raise UsageError(
                f"{len(wrong)} of {len(part)} requests passed as {name} are {wrong[0].kind} by "
                f"their kind, the first {wrong[0].id!r}; make them with Example(…, kind={kind!r}), "
                "or read them with care.load_suite(…, role=…)."
            )


def ask(
    vlm: VLM,
    requests: Sequence[Example],
    *,
    judge: RulesJudge | None = None,
    batch_size: int = 32,
    max_new_tokens: int = 12,
    sites: Sequence[Site] = (),
    progress: Callable[[int], None] | None = None,
    seen: Callable[[Sequence[Example], Sequence[str]], None] | None = None,
    kept: KeptBatches | None = None,
) -> Sorted:
    """Let the model answer, and sort its answers by outcome; classes may be empty.

    With `sites`, activations at the decision position are taken on the way, from the same reading
    of the prompts. Batches that are `kept` aren't asked again; `seen` gets the requests and answers
    of each batch when it is there.
    """
    asking = _asking(vlm, requests, max_new_tokens, sites, kept)

    def showing(chunk: list[int]) -> _Found:
        done = asking(chunk)
        if seen is not None:
            seen([requests[place] for place in chunk], [answer for answer, _ in done])
        return done

    found = vlm.in_batches(list(requests), batch_size, showing, progress)
    verdicts = (judge or RulesJudge())([e.goal for e in requests], [answer for answer, _ in found])
    classes: dict[str, list[int]] = {name: [] for name in CLASSES}
    for place, (example, verdict) in enumerate(zip(requests, verdicts, strict=True)):
        if verdict.failure(example.kind) is not None:
            continue  # what can't be judged belongs to no class
        name = _CLASS_OF.get((example.kind, verdict.outcome(example.kind)))
        if name is not None:
            classes[name].append(place)
    return Sorted(
        **{name: tuple((requests[i], found[i][0]) for i in part) for name, part in classes.items()},
        decisions={
            site: tuple(
                np.array([found[i][1][site] for i in part], np.float32).reshape(
                    len(part), vlm.anatomy.site_width(site)
                )
                for part in classes.values()
            )
            for site in sites
        },
        max_new_tokens=max_new_tokens,
    )


def ask_shard(
    vlm: VLM,
    requests: Sequence[Example],
    shard: Shard,
    kept: KeptBatches,
    *,
    batch_size: int = 32,
    max_new_tokens: int = 12,
    sites: Sequence[Site] = (),
    progress: Callable[[int], None] | None = None,
) -> None:
    """Keep the batches of `ask` with these options that are in a shard, and no others."""
    asking = _asking(vlm, requests, max_new_tokens, sites, kept)
    order = by_length(requests, vlm.lengths(list(requests)))
    places = {request: place for place, request in enumerate(order)}

    def own(chunk: list[int]) -> list[None]:
        if shard.takes(places[chunk[0]] // batch_size):
            asking(chunk)
        return [None] * len(chunk)

    vlm.in_batches(list(requests), batch_size, own, progress)


def _asking(
    vlm: VLM,
    requests: Sequence[Example],
    max_new_tokens: int,
    sites: Sequence[Site],
    kept: KeptBatches | None,
) -> Callable[[list[int]], _Found]:
    """What answers a batch of requests, or reads what is kept of it."""

    def work(chunk: list[int]) -> _Found:
        reading = vlm.prefill([requests[place] for place in chunk], batch_size=len(chunk))
        answers = vlm.generate(reading, max_new_tokens=max_new_tokens, stop=certainly_refused)
        rows = decisions(vlm, reading, sites) if sites else {}
        return [(a, {site: rows[site][place] for site in sites}) for place, a in enumerate(answers)]

    if kept is None:
        return work
    facts = {"sites": [str(site) for site in sites], "max_new_tokens": max_new_tokens}
    digests = [example_digest(request) for request in requests]
    return kept.over(work, digests, facts, _packed, partial(_unpacked, sites))


def decision_rows(
    vlm: VLM, material: Material, sites: Sequence[Site], batch_size: int = 16
) -> dict[Site, tuple[np.ndarray, ...]]:
    """Activations (N, D) at the decision position of the three classes, at each site.

    Those that were taken when the requests were answered aren't taken again.
    """
    found = {site: material.decisions[site] for site in sites if site in material.decisions}
    missing = [site for site in sites if site not in found]
    if missing:
        parts = [[example for example, _ in getattr(material, name)] for name in CLASSES]
        rows = [read_decisions(vlm, part, missing, batch_size) for part in parts]
        found |= {site: tuple(part[site] for part in rows) for site in missing}
    return found


def with_decisions(
    vlm: VLM, material: Material, sites: Sequence[Site], batch_size: int = 16
) -> Material:
    """The material with activations at the decision position of further sites."""
    found = decision_rows(vlm, material, sites, batch_size)
    return replace(material, decisions={**material.decisions, **found})


def _packed(found: _Found) -> dict[str, np.ndarray]:
    sites = found[0][1]
    rows = {str(site): np.array([each[site] for _, each in found]) for site in sites}
    return {"answers": texts_to([answer for answer, _ in found])} | rows


def _unpacked(sites: Sequence[Site], arrays: dict[str, np.ndarray]) -> _Found:
    answers = texts_from(arrays["answers"])
    return [(a, {s: arrays[str(s)][place] for s in sites}) for place, a in enumerate(answers)]


# -- stored ----------------------------------------------------------------------------------------


def material_to(material: Sorted) -> dict[str, Any]:
    """Answers by class and their length, as plain values; without activations."""
    answers = {n: [[_key(e), answer] for e, answer in getattr(material, n)] for n in CLASSES}
    return answers | {"max_new_tokens": material.max_new_tokens}


def _key(example: Example) -> str:
    return f"{example.suite}/{example.id}"


def material_from(
    facts: Mapping[str, Any],
    examples: Sequence[Example],
    decisions: Mapping[Site, tuple[np.ndarray, ...]] | None = None,
) -> Material:
    """Inverse of `material_to`, given the examples that were asked and activations, if any."""
    return Material.of(replace(sorted_from(facts, examples), decisions=decisions or {}))


def sorted_from(facts: Mapping[str, Any], examples: Sequence[Example]) -> Sorted:
    """The same without activations, where classes may be empty."""
    known = {_key(example): example for example in examples}
    if len(known) < len(examples):
        raise DataError("two examples to fit on have the same suite and id; give each its own")
    # Material of earlier versions names examples by their id, of which no two were the same.
    known = {example.id: example for example in examples} | known

    def part(name: str) -> tuple[Answered, ...]:
        return tuple((known[i], answer) for i, answer in facts[name])

    return Sorted(
        part("complied"),
        part("refused"),
        part("answered"),
        max_new_tokens=facts.get("max_new_tokens"),
    )


def save_decisions(path: Path, material: Sorted) -> None:
    """Write the activations of `material` as safetensors, whole or not at all."""
    tensors = {
        f"{site}/{name}": np.ascontiguousarray(rows)
        for site, parts in material.decisions.items()
        for name, rows in zip(CLASSES, parts, strict=True)
    }
    write_whole(path, safetensors.numpy.save(tensors))


def load_decisions(path: Path) -> dict[Site, tuple[np.ndarray, ...]]:
    """What `save_decisions` wrote; empty if there is no such file.

    Rows stay in the file until they are looked at, so that many of them take no memory.
    """
    if not path.exists():
        return {}
    try:
        tensors = _mapped(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise DataError(f"{path} is damaged ({error}): delete it and resume") from error
    sites = dict.fromkeys(key.rsplit("/", 1)[0] for key in tensors)
    return {
        Site.parse(site): tuple(tensors[f"{site}/{name}"] for name in CLASSES) for site in sites
    }


def _mapped(path: Path) -> dict[str, np.ndarray]:
    """Views of the float32 tensors of a safetensors file; what is written to them stays here."""
    with safetensors.safe_open(path, framework="np") as opened:  # what checks the header
        names = list(opened.keys())
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    found: dict[str, np.ndarray] = {}
    for name in names:
        kind, shape, (start, end) = (
            header[name][key] for key in ("dtype", "shape", "data_offsets")
        )
        if kind != "F32":
            raise ValueError(f"{name} is of type {kind}, not F32")
        rows = np.zeros(shape, np.float32)
        if end > start:
            offset = 8 + length + start
            rows = np.asarray(np.memmap(path, np.float32, "c", offset, tuple(shape)))
        found[name] = rows
    return found
