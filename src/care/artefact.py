"""A repair on disk: a folder like any on the Hugging Face Hub, checked before it is used.

`repair.json` says what the repair does and what it was fitted on, `repair.safetensors` holds the
numbers, `README.md` is the model card. Loading checks, in this order and before any number is
used: format version, digest of the numbers, names and shapes, finiteness, and the model's
architecture. Another revision of the same model warns. No pickle anywhere.
"""

from __future__ import annotations

import hashlib
import json
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
from care.repair import Channel, Repair
from care.storage import to_json, write_whole
from care.subspace import Subspace

if TYPE_CHECKING:
    from care.vlm import VLM

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
    """Write the artefact; StorageError if that fails. Returns the folder."""
    tensors: dict[str, np.ndarray] = {}
    channels = []
    for place, channel in enumerate(repair.channels):
        subspace, stem = channel.subspace, f"channels.{place}"
        tensors[f"{stem}.basis"] = np.ascontiguousarray(subspace.basis)
        tensors[f"{stem}.mean"] = subspace.mean
        tensors[f"{stem}.eigenvalues"] = subspace.eigenvalues
        if channel.bounds is not None:
            tensors[f"{stem}.low"], tensors[f"{stem}.high"] = channel.bounds
        if channel.pattern is not None:
            tensors[f"{stem}.pattern"] = np.ascontiguousarray(channel.pattern)
        channels.append(
            {
                "site": str(channel.site),
                "modality": channel.modality,
                "scopes": list(channel.scopes),
                "operation": channel.operation,
                "strength": channel.strength,
                "oblique": channel.pattern is not None,
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
    write_whole(folder / "repair.safetensors", numbers)
    write_whole(folder / "README.md", card(repair))
    write_whole(folder / "repair.json", to_json(facts, indent=1))
    return folder


def load(name_or_path: str | Path, vlm: VLM | None = None) -> Repair:
    """Read and check an artefact; ArtefactError says what is wrong with it."""
    folder = _local(name_or_path)
    facts = _facts(folder)
    numbers = _read(folder / "repair.safetensors")
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
        raise ArtefactError(f"the artefact in {folder} is malformed: {error}") from error
    if vlm is not None:
        check_model(repair, vlm)
    return repair


def check_model(repair: Repair, vlm: VLM) -> None:
    """ArtefactError for another architecture or width; a warning for another revision."""
    repair.check(vlm)
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
    model = repair.manifest.get("model", {})
    rows = "\n".join(
        f"| {c.site} | {c.modality} | {', '.join(c.scopes)} | {c.operation} | {c.subspace.rank} "
        f"| {c.strength:g} |"
        for c in repair.channels
    )
    figures = _figures(repair.manifest.get("evaluation", {}))
    return f"""---
library_name: care
base_model: {model.get("name", "unknown")}
tags: [safety, vision-language, activation-editing]
---
# {repair.name}: a repair for {model.get("name", "an unnamed model")}

Unsafe subspaces that are projected out of activations while the model runs; no weight is changed.
Use it with `care.Repair.from_pretrained(folder)` and `with repair.applied(vlm): ...`.

| site | fitted on | edited tokens | operation | rank | strength |
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
    folder = Path(name_or_path)
    if folder.is_dir():
        return folder
    if str(name_or_path).count("/") != 1 or str(name_or_path).startswith((".", "/")):
        raise ArtefactError(f"there is no artefact in {folder}: pass a folder with a repair.json")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name_or_path), allow_patterns=["repair.*", "README.md"]))
    except Exception as error:
        raise ArtefactError(
            f"{name_or_path} is neither a folder nor an artefact that the Hub would give: {error}"
        ) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtefactError(
            f"can't read {path}: {error.strerror}; an artefact is a folder with repair.json and "
            "repair.safetensors"
        ) from error


def _facts(folder: Path) -> dict[str, Any]:
    try:
        facts = json.loads(_read(folder / "repair.json"))
    except ValueError as error:
        raise ArtefactError(f"{folder / 'repair.json'} isn't valid JSON: {error}") from error
    version = facts.get("format") if isinstance(facts, dict) else None
    if version != FORMAT:
        raise ArtefactError(
            f"{folder} has artefact format {version}, this version of care reads {FORMAT}"
        )
    wanted = ("name", "fusion", "channels", "sha256", "manifest")
    missing = [key for key in wanted if key not in facts]
    if missing:
        raise ArtefactError(f"{folder / 'repair.json'} lacks {', '.join(missing)}")
    return facts


def _channel(facts: dict[str, Any], tensors: dict[str, np.ndarray], place: int) -> Channel:
    stem, width, rank = f"channels.{place}", facts["width"], facts["rank"]
    parts = {name: tensors[f"{stem}.{name}"] for name in ("basis", "mean", "eigenvalues")}
    bounds = None
    if facts["operation"] == "clip":
        bounds = (tensors[f"{stem}.low"], tensors[f"{stem}.high"])
    pattern = tensors[f"{stem}.pattern"] if facts["oblique"] else None
    shapes = [(parts["basis"], (width, rank)), (parts["mean"], (width,))]
    if pattern is not None:
        shapes.append((pattern, (width, rank)))
    shapes += [(bound, (rank,)) for bound in bounds or ()]
    for tensor, shape in shapes:
        if tensor.shape != shape or not np.isfinite(tensor).all():
            raise ArtefactError(
                f"channel {place} of the artefact has a tensor of shape {tensor.shape} where "
                f"{shape} finite numbers belong"
            )
    subspace = Subspace(**parts, **{fact: facts[fact] for fact in _SUBSPACE_FACTS})
    return Channel(
        site=Site.parse(facts["site"]),
        modality=facts["modality"],
        scopes=tuple(facts["scopes"]),
        subspace=subspace,
        strength=facts["strength"],
        operation=facts["operation"],
        bounds=bounds,
        pattern=pattern,
    )
