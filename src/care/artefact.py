"""A repair on disk: a folder like any on the Hugging Face Hub, checked before it is used.

`repair.json` says what the repair does and what it was fitted on, `repair.safetensors` holds the
numbers, `README.md` is the model card. Loading checks, in this order and before any number is
used: format version, digest of the numbers, names, types, shapes and finiteness of the numbers,
what the channels say, and the model's architecture. Another revision of the same model warns.
Saving makes the same checks before it writes. No pickle anywhere.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from care.anatomy import Site
from care.errors import ArtefactError, CareError
from care.gate import Gate
from care.reading import GIB, parse_json, read_file
from care.repair import Channel, Repair
from care.storage import to_json, write_whole
from care.subspace import Subspace

if TYPE_CHECKING:
    from care.vlm import VLM

MAX_FACTS, MAX_NUMBERS = GIB // 4, 4 * GIB
"""Most bytes of repair.json and of repair.safetensors, which are held in memory."""

FORMAT = 1
"""Version of the artefact's layout; a reader refuses versions it doesn't know."""

_VOLATILE = ("_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype")

_SUBSPACE_FACTS = (
    "null_quantile",
    "significant",
    "shrinkage",
    "condition",
    "n_malicious",
    "n_benign",
)

_GATE_PARTS = ("filters", "mean", "low", "high")

_TYPES = {"eigenvalues": np.float64}
"""Types of the arrays; those that aren't named here are float32."""

_MANIFEST_PARTS = ("model", "evaluation")
"""Entries of the manifest that are read, so that they have to be objects."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
"""owner/name as the Hub allows it."""


def model_facts(vlm: VLM) -> dict[str, Any]:
    """What identifies the model a repair belongs to."""
    config = _stable(vlm.model.config.to_dict())
    template = getattr(vlm.processor, "chat_template", None) or ""
    return {
        "name": vlm.name,
        "revision": vlm.revision,
        "class": type(vlm.model).__name__,
        "layers": vlm.anatomy.n_layers,
        "width": vlm.anatomy.width,
        "config_sha256": _digest(json.dumps(config, sort_keys=True, default=str).encode()),
        "processor": type(vlm.processor).__name__,
        "chat_template_sha256": _digest(str(template).encode()),
    }


def _stable(config: Any) -> Any:
    """A configuration, nested ones too, without what depends on how the model was loaded."""
    if not isinstance(config, dict):
        return config
    return {key: _stable(value) for key, value in config.items() if key not in _VOLATILE}


def save(repair: Repair, folder: Path) -> Path:
    """Write the artefact's folder and return it.

    Raises ArtefactError for numbers that loading would refuse, UsageError for a manifest that has
    no JSON form, both before anything is written, and StorageError if writing fails.
    """
    _check_manifest(repair.manifest)
    tensors: dict[str, np.ndarray] = {}
    channels = []
    for place, channel in enumerate(repair.channels):
        subspace = channel.subspace
        parts = _parts(channel)
        _check_parts(place, parts, subspace.width, subspace.rank)
        gate = None if channel.gate is None else _gate_facts(channel.gate)
        _check_gate_facts(place, gate)
        tensors |= {f"channels.{place}.{name}": part for name, part in parts.items()}
        channels.append(
            {
                "site": str(channel.site),
                "modality": channel.modality,
                "scopes": list(channel.scopes),
                "strength": channel.strength,
                "gate": gate,
                "rank": subspace.rank,
                "width": subspace.width,
            }
            | {fact: getattr(subspace, fact) for fact in _SUBSPACE_FACTS}
        )
    numbers = save_tensors(tensors)
    facts = {
        "format": FORMAT,
        "name": repair.name,
        "fusion": repair.fusion,
        "channels": channels,
        "sha256": _digest(numbers),
        "manifest": repair.manifest,
    }
    contents = {
        "repair.safetensors": numbers,
        "README.md": card(repair),
        "repair.json": to_json(facts, indent=1),
    }
    for name, content in contents.items():
        write_whole(folder / name, content)
    return folder


def load(name_or_path: str | Path, vlm: VLM | None = None) -> Repair:
    """Read and check an artefact; ArtefactError says what is wrong with it."""
    folder = _local(name_or_path)
    facts = _facts(folder)
    numbers = _read(folder / "repair.safetensors", MAX_NUMBERS)
    if _digest(numbers) != facts["sha256"]:
        raise ArtefactError(
            f"the numbers in {folder} don't have the digest that repair.json states: the artefact "
            "was damaged or changed; fetch it again"
        )
    try:
        tensors = load_tensors(numbers)
        channels = tuple(_channel(c, tensors, i) for i, c in enumerate(facts["channels"]))
        repair = Repair(channels, facts["fusion"], facts["name"], facts["manifest"])
    except ArtefactError:
        raise
    except (KeyError, TypeError, ValueError, SafetensorError, CareError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ArtefactError(
            f"the artefact in {folder} is malformed ({what}); fetch it again or fit a new one"
        ) from error
    if vlm is not None:
        check_model(repair, vlm)
    return repair


def check_model(repair: Repair, vlm: VLM) -> None:
    """ArtefactError for another architecture or width; a warning for another revision."""
    repair.check(vlm)
    _check_manifest(repair.manifest)
    stated, found = repair.manifest.get("model"), model_facts(vlm)
    if not stated:
        return
    for key in ("class", "layers", "width"):
        if stated.get(key) != found[key]:
            raise ArtefactError(
                f"the repair was fitted on {stated.get('name')} with {key} {stated.get(key)}, but "
                f"{vlm.name} has {found[key]}; fit a repair for this model"
            )
    for key in ("revision", "config_sha256", "chat_template_sha256"):
        if stated.get(key) != found[key]:
            warnings.warn(
                f"the repair was fitted on another {key.removesuffix('_sha256')} of "
                f"{stated.get('name')}: {stated.get(key)}, here {found[key]}",
                stacklevel=3,
            )


def push(repair: Repair, repo_id: str, **options: Any) -> str:
    """Upload the artefact to the Hub as a model repository; the URL of the commit."""
    from huggingface_hub import HfApi

    api = HfApi(token=options.pop("token", None))
    api.create_repo(repo_id, exist_ok=True, private=options.pop("private", None))
    with tempfile.TemporaryDirectory() as scratch:
        folder = save(repair, Path(scratch) / "repair")
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, **options))


def card(repair: Repair) -> str:
    """The model card: threat model, figures with intervals, known failures."""
    model = repair.manifest.get("model") or {}
    rows = "\n".join(
        f"| {c.site} | {c.modality} | {', '.join(c.scopes)} | {_gate_words(c)} "
        f"| {c.subspace.rank} | {c.strength:g} |"
        for c in repair.channels
    )
    figures = _figures(repair.manifest.get("evaluation") or {})
    return f"""---
library_name: care
base_model: {model.get("name", "unknown")}
tags: [safety, vision-language, activation-editing]
---
# {repair.name}: a repair for {model.get("name", "an unnamed model")}

Unsafe subspaces that are projected out of activations while the model runs; no weight is changed.
Use it with `care.Repair.from_pretrained(folder)` and `with repair.applied(vlm): ...`.

| site | fitted on | edited tokens | gate | rank | strength |
|---|---|---|---|---|---|
{rows}

## Figures
{figures}

## Threat model
The attacker chooses picture and text, and knows neither the repair nor its subspaces: attack
pictures were optimised against the unrepaired model. An attacker who optimises through the repair
is not covered by these figures.

## Known failures
A repair removes what its fitting data show. Attacks of another kind, other languages and long
conversations were not measured. Judges are imperfect: read answers before you rely on a rate.
"""


def _gate_words(channel: Channel) -> str:
    """The families of attacks for which the gate of a channel opens."""
    if channel.gate is None:
        return "none"
    return ", ".join(channel.gate.families) or f"{len(channel.gate.low)} filters"


def _figures(evaluation: dict[str, Any]) -> str:
    suites = evaluation.get("suites", [])
    if not suites:
        return "Not evaluated yet."
    head = "| suite | n | before | after |\n|---|---|---|---|\n"
    return head + "\n".join(
        f"| {s['name']} ({s['metric']}) | {s['n']} | {_interval(s['before'])} "
        f"| {_interval(s['after'])} |"
        for s in suites
    )


def _interval(rate: dict[str, float]) -> str:
    return f"{rate['rate']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}]"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _local(name_or_path: str | Path) -> Path:
    """The artefact's folder, fetched from the Hub if a text has the form owner/name."""
    folder = Path(name_or_path)
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ArtefactError(f"{folder} is a file: pass the folder that holds repair.json")
    if isinstance(name_or_path, Path) or _is_path(name_or_path):
        raise ArtefactError(
            f"there is no artefact in {name_or_path}: pass a folder that holds repair.json, or "
            "owner/name of one on the Hub"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name_or_path), allow_patterns=["repair.*", "README.md"]))
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ArtefactError(
            f"{name_or_path} is neither a folder nor an artefact that the Hub would give: {reason}"
        ) from error


def _is_path(text: str) -> bool:
    """Whether a text means a folder here: it isn't owner/name, or `owner` is a folder here."""
    return not _HUB_NAME.fullmatch(text) or Path(text).parent.is_dir()


def _read(path: Path, limit: int) -> bytes:
    if not path.exists():
        raise ArtefactError(
            f"there is no {path}: an artefact is a folder with repair.json and repair.safetensors"
        )
    return read_file(path, "file of the artefact", limit, ArtefactError)


def _facts(folder: Path) -> dict[str, Any]:
    path = folder / "repair.json"
    facts = parse_json(_read(path, MAX_FACTS), str(path), ArtefactError, "fetch it again")
    version = facts.get("format") if isinstance(facts, dict) else None
    if version != FORMAT:
        raise ArtefactError(
            f"{folder} has artefact format {version}, this version of care reads {FORMAT}"
        )
    wanted = ("name", "fusion", "channels", "sha256", "manifest")
    missing = [key for key in wanted if key not in facts]
    if missing:
        raise ArtefactError(f"{folder / 'repair.json'} lacks {', '.join(missing)}; fetch it again")
    for key, kind, form in (("name", str, "a text"), ("channels", list, "a list")):
        if not isinstance(facts[key], kind):
            raise ArtefactError(
                f"{key} in {folder / 'repair.json'} must be {form}, got {facts[key]!r:.80}; fetch "
                "it again"
            )
    _check_manifest(facts["manifest"])
    return facts


def _check_manifest(manifest: object) -> None:
    """ArtefactError unless it is an object in which `model` and `evaluation` are objects too."""
    parts = {"the manifest": manifest}
    if isinstance(manifest, dict):
        parts |= {f"{key} in the manifest": manifest.get(key) or {} for key in _MANIFEST_PARTS}
    for what, part in parts.items():
        if not isinstance(part, dict):
            raise ArtefactError(
                f"{what} must be an object of named facts, got {part!r:.80}; leave it out or "
                "write it as save_pretrained does"
            )


# -- numbers ---------------------------------------------------------------------------------------


def _parts(channel: Channel) -> dict[str, np.ndarray]:
    """The arrays of a channel by name, in the types they are stored in."""
    subspace = channel.subspace
    gate = channel.gate
    parts = {
        "basis": subspace.basis,
        "mean": subspace.mean,
        "eigenvalues": subspace.eigenvalues,
    }
    if gate is not None:
        parts |= {f"gate.{name}": getattr(gate, name) for name in _GATE_PARTS}
    with np.errstate(over="ignore"):  # what overflows is refused for not being finite
        return {
            name: np.ascontiguousarray(part, _TYPES.get(name, np.float32))
            for name, part in parts.items()
        }


def _gate_facts(gate: Gate) -> dict[str, Any]:
    facts = {fact: getattr(gate, fact) for fact in ("opened_benign", "quantile")}
    return facts | {"families": list(gate.families), "opened": dict(gate.opened)}


def _gate(facts: dict[str, Any], parts: dict[str, np.ndarray]) -> Gate:
    return Gate(
        **{name: parts[f"gate.{name}"] for name in _GATE_PARTS},
        families=tuple(facts["families"]),
        **{fact: facts[fact] for fact in ("opened", "opened_benign", "quantile")},
    )


def _check_gate_facts(place: int, facts: object) -> None:
    """ArtefactError unless they are null or names with shares in [0, 1]."""
    if facts is None:
        return
    if not isinstance(facts, dict):
        raise ArtefactError(
            f"gate of channel {place} must be an object of facts or null, got {facts!r:.80}; "
            "correct it or fetch the artefact again"
        )
    families, opened = facts["families"], facts["opened"]
    wanted = {
        "families": ("a list of texts", _are_texts(families)),
        "opened": (
            "an object of shares in [0, 1]",
            isinstance(opened, dict)
            and _are_texts(list(opened))
            and all(map(_is_share, opened.values())),
        ),
    }
    for fact in ("opened_benign", "quantile"):
        fine = facts[fact] is None or _is_share(facts[fact])
        wanted[fact] = ("a number in [0, 1] or null", fine)
    for fact, (form, fine) in wanted.items():
        if not fine:
            raise ArtefactError(
                f"{fact} of the gate of channel {place} must be {form}, got {facts[fact]!r:.80}; "
                "correct it or fetch the artefact again"
            )


def _are_texts(names: object) -> bool:
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def _is_share(number: object) -> bool:
    return isinstance(number, int | float) and type(number) is not bool and 0 <= number <= 1


def _check_parts(place: int, parts: dict[str, np.ndarray], width: int, rank: int) -> None:
    """ArtefactError unless the arrays of a channel have their types, shapes and finite entries."""
    count = parts["gate.filters"].shape[1:2] if "gate.filters" in parts else ()
    shapes = {
        "mean": (width,),
        "gate.filters": (width, *(count or (1,))),
        "gate.mean": (width,),
        "gate.low": count,
        "gate.high": count,
    }
    for name, part in parts.items():
        kind = np.dtype(_TYPES.get(name, np.float32))
        shape = shapes.get(name, (width, rank)) if name != "eigenvalues" else part.shape[:1]
        if part.dtype != kind or part.shape != shape or not np.isfinite(part).all():
            raise ArtefactError(
                f"channel {place} of the artefact has {part.dtype} numbers of shape {part.shape} "
                f"as its {name} where finite ones of type {kind} and shape {shape} belong; fit "
                "the repair again"
            )
    if "gate.low" in parts and (parts["gate.low"] >= parts["gate.high"]).any():
        raise ArtefactError(
            f"channel {place} of the artefact has a gate.low that isn't below its gate.high in "
            "float32; fit the repair again"
        )
    values = parts["eigenvalues"]
    # The first of `mean+cov` is a statistic of another kind; other controls have none at all.
    if 0 < len(values) < rank or (np.diff(values[1:]) > 0).any():
        raise ArtefactError(
            f"channel {place} of the artefact has {len(values)} eigenvalues for its {rank} "
            "directions, which must be none or as many at least, largest first; fit the repair "
            "again"
        )


def _channel(facts: dict[str, Any], tensors: dict[str, np.ndarray], place: int) -> Channel:
    names = ["basis", "mean", "eigenvalues"]
    _check_gate_facts(place, facts["gate"])
    if facts["gate"] is not None:
        names += [f"gate.{name}" for name in _GATE_PARTS]
    elif any(name.startswith(f"channels.{place}.gate.") for name in tensors):
        raise ArtefactError(
            f"channel {place} of the artefact has the numbers of a gate, but repair.json says that "
            "it has none; fetch the artefact again"
        )
    parts = {name: tensors[f"channels.{place}.{name}"] for name in names}
    _check_parts(place, parts, facts["width"], facts["rank"])
    for fact in _SUBSPACE_FACTS:
        if not isinstance(facts[fact], int | float | None):
            raise ArtefactError(
                f"{fact} of channel {place} must be a number or null, got {facts[fact]!r:.80}; "
                "fetch the artefact again"
            )
    subspace = Subspace(
        **{name: parts[name] for name in names[:3]},
        **{fact: facts[fact] for fact in _SUBSPACE_FACTS},
    )
    scopes = facts["scopes"]
    return Channel(
        site=Site.parse(facts["site"]),
        modality=facts["modality"],
        scopes=tuple(scopes) if isinstance(scopes, list) else scopes,
        subspace=subspace,
        strength=facts["strength"],
        gate=None if facts["gate"] is None else _gate(facts["gate"], parts),
    )
