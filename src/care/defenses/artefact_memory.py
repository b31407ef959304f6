"""What a repair remembers of its fit, in two files of its artefact that it also works without.

    memory.json         families, kinds, sites and settings, to which repair it belongs, a digest
    memory.safetensors  the rows: of equal ones the first alone, and which each is

The digest covers both files as that of the repair covers its own, and names the repair's: neither
can be changed, nor laid beside another repair, by accident. Of goals and pictures eight bytes of a
digest are there, and no text of a request or an answer; but activations say something of what was
asked, so a repair goes to the Hub without its memory, and both files may be removed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from care.defenses.material import CLASSES
from care.defenses.monitors.features import Tag
from care.defenses.monitors.memory import FittedRows, HeldRows, MonitorMemory
from care.defenses.monitors.results import Pooling, Reads
from care.defenses.repair.families import Told
from care.defenses.repair.gate import GateConfig
from care.defenses.repair.memory import DecisionMemory, Memory
from care.defenses.repair.subspace import Projection
from care.defenses.stored import digest_of
from care.errors import ArtefactError, CareError
from care.models.sites import Site, SiteKind
from care.runs.files import to_json
from care.runs.reading import GIB, parse_json, read_file
from care.typed import Share, from_tree, to_tree

FORMAT = 1
"""Version of the layout; others are refused."""
FACTS, NUMBERS = "memory.json", "memory.safetensors"
"""Files of the memory."""
LIMIT = GIB // 4
"""Most bytes of a memory that is kept unless it is asked for."""
MAX_FACTS, MAX_NUMBERS = GIB // 16, 4 * GIB
"""Most bytes of each file that are read."""

_AGAIN = "remove both memory files, without which the repair does the same, or fetch them again"
_WORD = 16
"""Digits of a digest that are kept."""


@dataclass(frozen=True, kw_only=True)
class DecisionFacts:
    """What memory.json says of `DecisionMemory`."""

    families: tuple[str, ...]
    """Names of all families."""
    sites: tuple[Site, ...]
    """Where activations were taken."""
    fit_kind: SiteKind | None
    """Kind of site at which they are taken; none: where channels are."""
    gate: GateConfig | None
    """How gates are fitted; none: there are none."""
    projection: Projection
    """How the unsafe coordinates are taken away."""
    beta: float
    """β."""


@dataclass(frozen=True, kw_only=True)
class RememberedMonitor:
    """What memory.json says of a `MonitorMemory`."""

    reads: Reads
    """What the monitor reads."""
    site: Site | None
    """Where; none for the refusal log-odds."""
    pooling: Pooling
    """How it pools."""
    kinds: tuple[str, ...]
    """Names of all families and kinds."""
    shrinkage: Share
    """Weight of the diagonal in a detector's covariance."""
    hard: Share
    """Share of harmless scores that tells how hard the kinds are."""
    share: Share
    """Greatest share of each harmless kind that may raise the alarm."""


@dataclass(frozen=True, kw_only=True)
class MemoryFacts:
    """What memory.json holds."""

    format: int
    """Version of the layout."""
    repair: str
    """Digest of the repair that it belongs to."""
    decisions: DecisionFacts | None
    """What its channels rest on."""
    monitors: tuple[RememberedMonitor, ...]
    """What its monitors rest on."""
    sha256: str
    """The digest."""


# -- written ---------------------------------------------------------------------------------------


def packed(memory: Memory, repair: str) -> tuple[str, bytes]:
    """What memory.json and memory.safetensors hold; `repair` is the digest of the repair."""
    tensors: dict[str, np.ndarray] = {}
    monitors = []
    for place, each in enumerate(memory.monitors):
        kinds = _names([tag.kind for tag in each.fitted.tags], each.held.kinds)
        _pack_monitor(tensors, f"monitors.{place}", each, kinds)
        monitors.append(
            RememberedMonitor(
                reads=each.reads,
                site=each.site,
                pooling=each.pooling,
                kinds=kinds,
                shrinkage=each.shrinkage,
                hard=each.hard,
                share=each.share,
            )
        )
    decisions = None if memory.decisions is None else _pack_decisions(tensors, memory.decisions)
    numbers = save_tensors({name: np.ascontiguousarray(part) for name, part in tensors.items()})
    told = {"format": FORMAT, "repair": repair, "decisions": decisions, "monitors": monitors}
    facts = json.loads(to_json(to_tree(told, "The memory", ArtefactError)))  # as a reader gets them
    return to_json(facts | {"sha256": digest_of(facts, numbers)}, indent=1), numbers


def _pack_decisions(tensors: dict[str, np.ndarray], memory: DecisionMemory) -> DecisionFacts:
    names = _names(*([each.family for each in part] for part in memory.told))
    for name, told in zip(CLASSES, memory.told, strict=True):
        place = f"decisions.{name}"
        tensors[f"{place}.families"] = _indices([each.family for each in told], names)
        tensors[f"{place}.goals"] = _words([each.goal for each in told])
        tensors[f"{place}.pictures"] = _words([each.pictures for each in told])
    for site, parts in memory.rows.items():
        for name, rows in zip(CLASSES, parts, strict=True):
            _pack_rows(tensors, f"decisions.{name}.{site}", rows)
    return DecisionFacts(
        families=names,
        sites=tuple(memory.rows),
        fit_kind=memory.fit_kind,
        gate=memory.gate,
        projection=memory.projection,
        beta=memory.beta,
    )


def _pack_monitor(
    tensors: dict[str, np.ndarray], place: str, memory: MonitorMemory, kinds: Sequence[str]
) -> None:
    tags, held = memory.fitted.tags, memory.held
    _pack_rows(tensors, f"{place}.fitted", memory.fitted.x)
    tensors[f"{place}.fitted.kinds"] = _indices([tag.kind for tag in tags], kinds)
    tensors[f"{place}.fitted.harmful"] = np.array([tag.harmful for tag in tags], np.uint8)
    tensors[f"{place}.fitted.groups"] = _words([tag.group for tag in tags])
    _pack_rows(tensors, f"{place}.held", held.x)
    tensors[f"{place}.held.kinds"] = _indices(held.kinds, kinds)
    tensors[f"{place}.held.of"] = held.of.astype(np.int32)


def _pack_rows(tensors: dict[str, np.ndarray], place: str, rows: np.ndarray) -> None:
    """Rows (N, D), equal ones once: answers and requests repeat."""
    seen: dict[bytes, int] = {}
    index = [seen.setdefault(row.tobytes(), len(seen)) for row in rows.astype(np.float32)]
    first = np.unique(np.array(index, np.int64), return_index=True)[1]
    tensors[f"{place}.rows"] = rows[first].astype(np.float32)
    tensors[f"{place}.index"] = np.array(index, np.int32)


def _names(*parts: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for part in parts for name in part))


def _indices(names: Sequence[str], known: Sequence[str]) -> np.ndarray:
    places = {name: place for place, name in enumerate(known)}
    return np.array([places[name] for name in names], np.int32)


def _words(digests: Sequence[str]) -> np.ndarray:
    return np.array([int(digest or "0", 16) for digest in digests], np.uint64)


# -- read ------------------------------------------------------------------------------------------


def load(folder: Path, repair: str) -> Memory | None:
    """The memory beside a repair with this digest, checked; None if there is none.

    Raises ArtefactError for one that is damaged or belongs to another repair.
    """
    path = folder / FACTS
    if not path.is_file():
        return None
    content = read_file(path, "file of the memory", MAX_FACTS, ArtefactError)
    tree = parse_json(content, str(path), ArtefactError, _AGAIN)
    numbers = read_file(folder / NUMBERS, "file of the memory", MAX_NUMBERS, ArtefactError)
    facts = from_tree(
        MemoryFacts, tree, strict=False, what=f"The file {path}", error=ArtefactError, todo=_AGAIN
    )
    if facts.format != FORMAT:
        raise ArtefactError(
            f"The memory in {folder} has format {facts.format}, this version of care reads "
            f"{FORMAT}; {_AGAIN}."
        )
    if digest_of(tree, numbers) != facts.sha256:
        raise ArtefactError(
            f"The memory in {folder} doesn't have the digest that {FACTS} states: it was damaged "
            f"or changed; {_AGAIN}."
        )
    if facts.repair != repair:
        raise ArtefactError(f"The memory in {folder} belongs to another repair; {_AGAIN}.")
    try:
        tensors = load_tensors(numbers)
        decisions = None if facts.decisions is None else _decisions(tensors, facts.decisions)
        monitors = (_monitor(tensors, f"monitors.{i}", m) for i, m in enumerate(facts.monitors))
        return Memory(decisions, tuple(monitors))
    except ArtefactError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, SafetensorError, CareError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ArtefactError(f"The memory in {folder} is malformed ({what}); {_AGAIN}.") from error


def _decisions(tensors: Mapping[str, np.ndarray], facts: DecisionFacts) -> DecisionMemory:
    told = []
    for name in CLASSES:
        place = f"decisions.{name}"
        columns = (
            _named(tensors[f"{place}.families"], facts.families),
            _digests(tensors[f"{place}.goals"]),
            _digests(tensors[f"{place}.pictures"]),
        )
        told.append(tuple(Told(*each) for each in zip(*columns, strict=True)))
    rows = {
        site: tuple(
            _rows(tensors, f"decisions.{name}.{site}", len(part))
            for name, part in zip(CLASSES, told, strict=True)
        )
        for site in facts.sites
    }
    return DecisionMemory(
        tuple(told), rows, facts.fit_kind, facts.gate, facts.projection, facts.beta
    )


def _monitor(
    tensors: Mapping[str, np.ndarray], place: str, facts: RememberedMonitor
) -> MonitorMemory:
    fitted = (
        tensors[f"{place}.fitted.harmful"].astype(bool).tolist(),
        _named(tensors[f"{place}.fitted.kinds"], facts.kinds),
        _digests(tensors[f"{place}.fitted.groups"]),
    )
    tags = tuple(Tag(*each) for each in zip(*fitted, strict=True))
    of, kinds = tensors[f"{place}.held.of"], _named(tensors[f"{place}.held.kinds"], facts.kinds)
    if sorted(set(of.tolist())) != list(range(len(kinds))):
        raise ArtefactError(
            f"The memory has readings of {len(set(of.tolist()))} of its {len(kinds)} held "
            f"examples; {_AGAIN}."
        )
    return MonitorMemory(
        facts.reads,
        facts.site,
        facts.pooling,
        FittedRows(_rows(tensors, f"{place}.fitted", len(tags)), tags),
        HeldRows(_rows(tensors, f"{place}.held", len(of)), of, tuple(kinds)),
        facts.shrinkage,
        facts.hard,
        facts.share,
    )


def _rows(tensors: Mapping[str, np.ndarray], place: str, count: int) -> np.ndarray:
    rows, index = tensors[f"{place}.rows"], tensors[f"{place}.index"]
    fits = rows.ndim == 2 and rows.dtype == np.float32 and np.isfinite(rows).all()
    if not fits or len(index) != count or (index < 0).any():
        raise ArtefactError(
            f"The memory has {rows.dtype} numbers of shape {rows.shape} for {len(index)} of "
            f"{count} rows as {place} where finite ones of type float32 belong; {_AGAIN}."
        )
    return rows[index]


def _named(index: np.ndarray, names: Sequence[str]) -> list[str]:
    if (index < 0).any():
        raise IndexError("a name before the first")
    return [names[int(place)] for place in index]


def _digests(words: np.ndarray) -> list[str]:
    return [f"{word:0{_WORD}x}" if word else "" for word in words.tolist()]
