"""A repair on disk: a folder like any on the Hugging Face Hub, checked before it is used.

`repair.json` says what the repair does and what it was fitted on, `repair.safetensors` holds the
numbers, `README.md` is the model card. Loading checks, in this order and before any number is
used: format version, the digest, names, types, shapes and sizes of the numbers, what the channels
say, and the model's architecture. Another revision of the same model warns. Saving makes the same
checks before it writes. No pickle anywhere.

The digest, `sha256` in repair.json, is that of everything else: the other entries of repair.json as
canonical JSON (sorted keys, no spaces), a new line, the bytes of repair.safetensors. It tells
damage and changes by accident; who means to deceive can state another.
"""

from __future__ import annotations

import json
import re
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from care.defenses import artefact_memory, stored
from care.defenses.artefact_card import card
from care.defenses.artefact_channels import (
    ChannelFacts,
    arrays_of,
    channel_from,
    channel_to,
    check_apart,
    names_of,
)
from care.defenses.artefact_monitors import (
    MonitorFacts,
    monitor_arrays,
    monitor_from,
    monitor_names,
    monitor_to,
)
from care.defenses.repair.channel import Fusion, RepairData
from care.defenses.stored import digest_of
from care.errors import ArtefactError, CareError, StorageError
from care.runs.files import storage_errors, to_json, write_whole
from care.runs.reading import GIB, parse_json, read_file
from care.typed import WHEN_SET, from_tree, to_tree

if TYPE_CHECKING:
    from care.models.vlm import VLM

FORMATS = (2, 3)
"""Versions of the artefact's layout that are read; others are refused. In version 1 the digest
covered the numbers alone; 3 is a repair with monitors, and 2 is still written of one without."""
FACTS, NUMBERS, CARD = "repair.json", "repair.safetensors", "README.md"
"""Files of the artefact's folder."""
MEMORY = (artefact_memory.FACTS, artefact_memory.NUMBERS)
"""Files of what it remembers, which may be missing (`artefact_memory`)."""
MAX_FACTS, MAX_NUMBERS = GIB // 4, 4 * GIB
"""Most bytes of repair.json and of repair.safetensors, which are held in memory."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
"""owner/name as the Hub allows it."""


@dataclass(frozen=True, kw_only=True)
class ManifestParts:
    """The entries of a repair's manifest that are read."""

    model: dict[str, Any] | None = None
    """What it was fitted on, as `care.models.identity.model_facts` has it."""
    evaluation: dict[str, Any] | None = None
    """Figures for the model card."""


@dataclass(frozen=True, kw_only=True)
class ArtefactFacts:
    """What repair.json holds."""

    format: int
    """Version of the layout."""
    name: str
    """Name in tables."""
    fusion: Fusion
    """How two corrections of one token are combined."""
    channels: tuple[ChannelFacts, ...]
    """Each with its numbers in repair.safetensors."""
    monitors: Annotated[tuple[MonitorFacts, ...], WHEN_SET] = ()
    """Each with its detector in repair.safetensors."""
    manifest: ManifestParts
    """What it was fitted on and with; other entries are left alone."""
    sha256: str
    """The digest."""


def save(repair: RepairData, folder: Path, memory: bool | None = None) -> Path:
    """Write the artefact's folder and return it.

    What the repair remembers of its fit goes along, or not, as `memory` says; by default if it has
    at most `artefact_memory.LIMIT` bytes, and a larger one is left out with a warning. Raises
    ArtefactError for what loading would refuse, UsageError for a manifest that has no JSON form,
    both before anything is written, and StorageError if writing fails.
    """
    check_apart(repair.channels)
    facts, numbers = _packed(repair)
    remembered = _remembered(repair, facts["sha256"], memory)
    contents = {
        NUMBERS: numbers,
        CARD: card(repair),
        FACTS: to_json(facts, indent=1),
    }
    with storage_errors(f"remove the memory in {folder}"):
        for name in MEMORY:  # of the repair that was there
            (folder / name).unlink(missing_ok=True)
    for name, content in {**contents, **remembered}.items():
        write_whole(folder / name, content)
    return folder


def _remembered(repair: RepairData, sha256: str, wanted: bool | None) -> dict[str, bytes | str]:
    """The files of the repair's memory, if it is kept."""
    if repair.memory is None or wanted is False:
        return {}
    files = artefact_memory.packed(repair.memory, sha256)
    size = sum(map(len, files))
    if wanted is None and size > artefact_memory.LIMIT:
        warnings.warn(
            f"What {repair.name} remembers of its fit has {size / GIB:.2g} GiB and isn't kept, so "
            "that nothing can be folded in later; save it with memory=True to keep it.",
            stacklevel=3,
        )
        return {}
    return dict(zip(MEMORY, files, strict=True))


def digest(repair: RepairData) -> str:
    """The SHA-256 that the repair's artefact states; raises what `save` raises."""
    return _packed(repair)[0]["sha256"]


def _packed(repair: RepairData) -> tuple[dict[str, Any], bytes]:
    """What repair.json and repair.safetensors hold."""
    tensors = {
        f"channels.{place}.{name}": part
        for place, channel in enumerate(repair.channels)
        for name, part in arrays_of(channel, place).items()
    }
    tensors |= {
        f"monitors.{place}.{name}": part
        for place, monitor in enumerate(repair.monitors)
        for name, part in monitor_arrays(monitor, place).items()
    }
    numbers = save_tensors(tensors)
    told = {
        "format": FORMATS[bool(repair.monitors)],
        "name": repair.name,
        "fusion": repair.fusion,
        "channels": [channel_to(channel) for channel in repair.channels],
    }
    if repair.monitors:
        told["monitors"] = [monitor_to(monitor) for monitor in repair.monitors]
    told = to_tree(told, "The repair", ArtefactError) | {"manifest": repair.manifest}
    facts = json.loads(to_json(told))  # as a reader gets them
    facts |= {"sha256": digest_of(facts, numbers)}
    _checked(facts, "The repair", "correct it")
    return facts, numbers


def _checked(facts: dict[str, Any], what: str, todo: str) -> ArtefactFacts:
    return from_tree(ArtefactFacts, facts, strict=False, what=what, error=ArtefactError, todo=todo)


def load(name_or_path: str | Path, vlm: VLM | None = None) -> RepairData:
    """Read and check an artefact; ArtefactError says what is wrong with it."""
    folder = local_folder(name_or_path)
    facts = _facts(folder)
    numbers = _read(folder / NUMBERS, MAX_NUMBERS)
    if digest_of(facts, numbers) != facts.get("sha256"):
        raise ArtefactError(
            f"The facts and numbers in {folder} don't have the digest that repair.json states: the "
            "artefact was damaged or changed; fetch it again."
        )
    again = "fetch it again or fit a new one"
    told = _checked(facts, f"The file {folder / FACTS}", again)
    try:
        tensors = load_tensors(numbers)
        channels = tuple(channel_from(c, tensors, i) for i, c in enumerate(told.channels))
        monitors = tuple(monitor_from(m, tensors, i) for i, m in enumerate(told.monitors))
        check_apart(channels)
        used = names_of(told.channels) | monitor_names(told.monitors)
        if unused := sorted(tensors.keys() - used):
            raise ArtefactError(
                f"no channel of the artefact in {folder} uses its numbers {', '.join(unused):.80}; "
                f"{again}"
            )
        memory = artefact_memory.load(folder, told.sha256)
        repair = RepairData(channels, told.fusion, told.name, facts["manifest"], monitors, memory)
    except ArtefactError:
        raise
    except (KeyError, TypeError, ValueError, SafetensorError, CareError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ArtefactError(f"the artefact in {folder} is malformed ({what}); {again}") from error
    if vlm is not None:
        check_model(repair, vlm)
    return repair


def check_model(repair: RepairData, vlm: VLM) -> None:
    """ArtefactError for another architecture or width; a warning for another revision."""
    repair.check_sites(vlm)
    manifest, what = repair.manifest, "The repair"
    parts = from_tree(
        ManifestParts, manifest, "manifest", strict=False, what=what, error=ArtefactError
    )
    stored.check_model(parts.model, vlm, "the repair", "fit a repair for this model")


def push(repair: RepairData, repo_id: str, **options: Any) -> str:
    """Upload the artefact to the Hub as a model repository, without its memory; the URL of the
    commit."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = save(repair, Path(scratch) / "repair", memory=False)
        return upload(folder, repo_id, **options)


def upload(folder: Path, repo_id: str, **options: Any) -> str:
    """Upload a folder to the Hub as a model repository; the URL of the commit.

    StorageError, in one sentence, for whatever the Hub or the network refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=options.pop("token", None))
    try:
        api.create_repo(repo_id, exist_ok=True, private=options.pop("private", None))
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, **options))
    except Exception as error:  # of its own, of httpx, and of what both are built on
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise StorageError(
            f"{folder} could not be uploaded as {repo_id} ({reason}); check the name, the network "
            "and the token, then push it again."
        ) from error


def local_folder(name_or_path: str | Path) -> Path:
    """The artefact's folder, fetched from the Hub if a text has the form owner/name."""
    folder = Path(name_or_path)
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ArtefactError(f"{folder} is a file: pass the folder that holds repair.json.")
    if isinstance(name_or_path, Path) or not _is_hub_name(name_or_path):
        raise ArtefactError(
            f"There is no artefact in {name_or_path}: pass a folder that holds repair.json, or "
            "owner/name of one on the Hub."
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name_or_path), allow_patterns=["repair.*", CARD]))
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ArtefactError(
            f"{name_or_path} is neither a folder nor an artefact that the Hub would give: {reason}"
        ) from error


def _is_hub_name(text: str) -> bool:
    """Whether a text means owner/name on the Hub; not so where `owner` is a folder here."""
    return bool(_HUB_NAME.fullmatch(text)) and not Path(text).parent.is_dir()


def _read(path: Path, limit: int) -> bytes:
    if not path.exists():
        raise ArtefactError(
            f"There is no {path}: an artefact is a folder with repair.json and repair.safetensors."
        )
    return read_file(path, "file of the artefact", limit, ArtefactError)


def _facts(folder: Path) -> dict[str, Any]:
    """repair.json of a format that this version reads, not yet checked otherwise."""
    path = folder / FACTS
    facts = parse_json(_read(path, MAX_FACTS), str(path), ArtefactError, "fetch it again")
    version = facts.get("format") if isinstance(facts, dict) else None
    if version not in FORMATS or type(version) is not int:
        old = version == 1 and type(version) is int
        why = ", whose digest doesn't cover what the repair does: fit it again" if old else ""
        raise ArtefactError(
            f"{folder} has artefact format {version}, this version of care reads "
            f"{' and '.join(map(str, FORMATS))}{why}"
        )
    return facts
