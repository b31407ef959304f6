"""A defense on disk: the fields of a frozen dataclass, checked before they are used.

    defense.json         which defense, its settings, the model and goals it was fitted on, a digest
    numbers.safetensors  its arrays, float32

A class derived from `StoredDefense` is stored by its fields alone: those that are numpy arrays are
its numbers, all others its settings. Loading checks, in this order: format, digest, the names and
values of the settings, the names of the numbers, what the class itself refuses, and the model. The
digest covers everything but itself: defense.json as canonical JSON, a new line, the bytes of the
numbers. It tells damage and changes by accident; who means to deceive can state another. No pickle.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from care.data.contamination import goals_told
from care.data.example import Example, Suite
from care.defenses.base import Defense
from care.errors import ArtefactError, CareError, FitError, UsageError
from care.models.identity import model_facts
from care.runs.files import to_json, write_whole
from care.runs.reading import GIB, parse_json, read_file
from care.typed import defaults, from_tree, hints, to_tree

if TYPE_CHECKING:
    from care.models.vlm import VLM

FORMAT = 1
"""Version of the layout; others are refused."""
FACTS, NUMBERS = "defense.json", "numbers.safetensors"
"""Files of a defense's folder."""
MAX_FACTS, MAX_NUMBERS = GIB // 4, 4 * GIB
"""Most bytes of each, which are held in memory."""

_AGAIN = "fit it again, or fetch it again"


@dataclass(frozen=True, eq=False, kw_only=True)
class StoredDefense(Defense):
    """A defense that is its fields: arrays are its numbers, everything else its settings."""

    stored_as: ClassVar[str] = FACTS

    name: str = ""
    """Name in tables; the registered one unless another is given."""
    manifest: dict[str, Any] = field(default_factory=dict)
    """What it was fitted on: `model` and `fitted_on`, as `fitted_on` has them."""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.registered_as)
        for name in numbers_of(type(self)):
            rows = np.ascontiguousarray(getattr(self, name), dtype=np.float32)
            if not np.isfinite(rows).all():
                raise FitError(
                    f"The numbers {name!r} of the defense {self.name} aren't all finite; fit it on "
                    "other examples."
                )
            object.__setattr__(self, name, rows)

    @classmethod
    def fit(
        cls,
        vlm: VLM,
        attacks: Suite | Sequence[Example],
        benign: Suite | Sequence[Example],
        **options: Any,
    ) -> Self:
        """Of a class that needs no examples: what is chosen are its settings, by name."""
        if cls.cost.needs:
            return super().fit(vlm, attacks, benign, **options)
        return cls(**options)

    def check(self, vlm: VLM) -> None:
        """ArtefactError where it was fitted on another model; a warning of another revision."""
        what = f"the defense {self.name}"
        check_model(self.manifest.get("model"), vlm, what, "fit it for this model")

    def digest(self) -> str:
        """The SHA-256 that its folder states, over everything it does and was fitted on."""
        return self._packed()[0]["sha256"]

    def save(self, folder: str | Path) -> Path:
        """Write its two files, each whole or not at all, and return the folder."""
        facts, numbers = self._packed()
        write_whole(Path(folder) / NUMBERS, numbers)
        write_whole(Path(folder) / FACTS, to_json(facts, indent=1))
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path, vlm: VLM | None = None) -> Self:
        """Read what `save` wrote, checked, also against `vlm` if it is given."""
        facts, numbers = _read(Path(folder))
        if facts.get("defense") != cls.registered_as:
            raise ArtefactError(
                f"the defense in {folder} is {facts.get('defense')!r:.40}, not "
                f"{cls.registered_as!r}; load it by care.load_defense"
            )
        made = cls._unpacked(facts, numbers, Path(folder))
        if vlm is not None:
            made.check(vlm)
        return made

    def _packed(self) -> tuple[dict[str, Any], bytes]:
        numbers = save_tensors({name: getattr(self, name) for name in numbers_of(type(self))})
        settings = {name: getattr(self, name) for name in hints(_settings(type(self)))}
        told = {
            "format": FORMAT,
            "defense": self.registered_as,
            "name": self.name,
            "settings": settings,
            "manifest": self.manifest,
        }
        what = f"The defense {self.name}"
        facts = json.loads(to_json(to_tree(told, what, ArtefactError)))  # as a reader gets them
        return facts | {"sha256": digest_of(facts, numbers)}, numbers

    @classmethod
    def _unpacked(cls, facts: Mapping[str, Any], numbers: bytes, folder: Path) -> Self:
        what = f"The file {folder / FACTS}"
        kind = _settings(cls)
        tree = facts.get("settings")
        settings = from_tree(kind, tree, "settings", what=what, error=ArtefactError, todo=_AGAIN)
        try:
            arrays = load_tensors(numbers)
            if arrays.keys() != set(numbers_of(cls)):
                raise UsageError(
                    f"it holds the numbers {', '.join(sorted(arrays)) or 'none'} in place of "
                    f"{', '.join(numbers_of(cls))}"
                )
            given = {name: getattr(settings, name) for name in hints(kind)}
            name, manifest = str(facts["name"]), dict(facts["manifest"])
            return cls(**given, **arrays, name=name, manifest=manifest)
        except (KeyError, TypeError, ValueError, SafetensorError, CareError) as error:
            said = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise ArtefactError(
                f"the defense in {folder} is malformed ({said}); {_AGAIN}"
            ) from error


def fitted_on(vlm: VLM, examples: Iterable[Example]) -> dict[str, Any]:
    """The manifest of a defense: the model, and digests of the goals it was fitted on
    (`care.evaluation.leak_check`)."""
    examples = list(examples)
    goals = {"examples": len(examples), "goals": goals_told(examples)}
    return {"model": model_facts(vlm), "fitted_on": goals}


def defense_in(folder: Path) -> str:
    """The registered name of the defense that was saved in a folder, before it is checked."""
    return str(_facts(folder).get("defense"))


def check_model(stated: Mapping[str, Any] | None, vlm: VLM, what: str, todo: str) -> None:
    """ArtefactError for another architecture or width; a warning for another revision.

    `stated` is what `care.models.identity.model_facts` said when it was fitted; None: nothing.
    """
    if not stated:
        return
    found = model_facts(vlm)
    for key in ("class", "layers", "width"):
        if stated.get(key) != found[key]:
            raise ArtefactError(
                f"{what} was fitted on {stated.get('name')} with {key} {stated.get(key)}, but "
                f"{vlm.name} has {found[key]}; {todo}"
            )
    for key in ("revision", "config_sha256", "chat_template_sha256"):
        if stated.get(key) != found[key]:
            warnings.warn(
                f"{what} was fitted on another {key.removesuffix('_sha256')} of "
                f"{stated.get('name')}: {stated.get(key)}, here {found[key]}",
                stacklevel=4,
            )


def digest_of(facts: Mapping[str, Any], numbers: bytes) -> str:
    """SHA-256 of facts without their `sha256`, and of the bytes of their numbers."""
    others = {key: value for key, value in facts.items() if key != "sha256"}
    # ASCII, so that text which has no UTF-8 has a digest too.
    canonical = json.dumps(others, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode() + b"\n" + numbers).hexdigest()


@cache
def numbers_of(kind: type[StoredDefense]) -> tuple[str, ...]:
    """The fields of a class that are arrays."""
    return tuple(name for name, hint in hints(kind).items() if hint is np.ndarray)


@cache
def _settings(kind: type[StoredDefense]) -> type:
    """A dataclass of the fields that are neither arrays nor told beside the settings."""
    beside = {"name", "manifest", *numbers_of(kind)}
    known = defaults(kind)
    parts: list[Any] = [
        (name, hint, field(default=known[name])) if name in known else (name, hint)
        for name, hint in hints(kind).items()
        if name not in beside
    ]
    return make_dataclass(f"{kind.__name__}Settings", parts, frozen=True, kw_only=True)


def _facts(folder: Path) -> dict[str, Any]:
    path = folder / FACTS
    content = read_file(path, "file of the defense", MAX_FACTS, ArtefactError)
    facts = parse_json(content, str(path), ArtefactError, _AGAIN)
    version = facts.get("format") if isinstance(facts, dict) else None
    if version != FORMAT or type(version) is not int:
        raise ArtefactError(
            f"{folder} has format {version!r:.20} of a defense, this version of care reads "
            f"{FORMAT}; {_AGAIN}"
        )
    return facts


def _read(folder: Path) -> tuple[dict[str, Any], bytes]:
    facts = _facts(folder)
    numbers = read_file(folder / NUMBERS, "file of the defense", MAX_NUMBERS, ArtefactError)
    if digest_of(facts, numbers) != facts.get("sha256"):
        raise ArtefactError(
            f"the settings and numbers in {folder} don't have the digest that {FACTS} states: the "
            f"defense was damaged or changed; {_AGAIN}"
        )
    return facts, numbers
