"""A defense from the folder that it was saved in, or by the name that it is registered by.

A folder is that of the class whose file lies in it (`Defense.stored_as`), or that the file names
(`care.defenses.stored`). A named class is made without arguments; one that has to be fitted first
can't be, and is named by its folder. A class of one's own is known once its module is imported.
Nothing is guessed: what is neither a folder, nor a name, nor owner/name of a repair on the Hub is
an error that lists what there is.
"""

from __future__ import annotations

import inspect
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from care.defenses import known, stored
from care.defenses.base import Defense, registered
from care.defenses.neuron_suppression import NeuronSuppression
from care.defenses.repair.repair import Repair
from care.errors import ArtefactError, UsageError

if TYPE_CHECKING:
    from care.models.vlm import VLM


def load_defense(name_or_folder: str | Path, vlm: VLM | None = None) -> Defense:
    """The defense saved in a folder, or registered by a name; checked against `vlm` if given.

    Also owner/name of a repair on the Hub, and the file of suppressed neurons that a run wrote. A
    `Path` is never taken for a name. Raises UsageError for an unknown name, and what reading the
    folder raises.
    """
    path = Path(name_or_folder)
    found = known.kind_of(name_or_folder) if isinstance(name_or_folder, str) else None
    if found is not None and not path.exists():
        defense = _made(str(name_or_folder), found)
        if vlm is not None:
            defense.check(vlm)
        return defense
    if path.is_dir():
        return _kind_in(path).load(path, vlm)
    if path.is_file() and path.name != Repair.stored_as:
        return NeuronSuppression.load(path, vlm)
    if isinstance(name_or_folder, str) and path.name == name_or_folder and not path.exists():
        raise UsageError(_unknown(name_or_folder))
    return Repair.load(name_or_folder, vlm)  # says what is wrong with a path, or asks the Hub


def _made(name: str, kind: type[Defense]) -> Defense:
    try:
        inspect.signature(kind).bind()
    except TypeError:
        raise UsageError(
            f"The defense {name!r} isn't complete by its name alone; fit it with "
            f"{kind.__name__}.fit(...), save it, and name its folder."
        ) from None
    return kind()


def _kind_in(folder: Path) -> type[Defense]:
    """The class whose file lies in a folder, or that the file names."""
    if (folder / stored.FACTS).exists():
        name = stored.defense_in(folder)
        kind = known.kind_of(name)
        if kind is None:
            raise ArtefactError(
                f"the defense in {folder} is {name!r:.40}, which is not among "
                f"{', '.join(known.names())}; import the module that registers it"
            )
        return kind
    kinds = [kind for kind in registered().values() if kind.stored_as]
    for kind in kinds:
        if (folder / str(kind.stored_as)).exists():
            return kind
    files = ", ".join(sorted({stored.FACTS, *(str(kind.stored_as) for kind in kinds)}))
    raise ArtefactError(
        f"There is no defense in {folder}: none of {files} lies there; pass the folder that a "
        "defense was saved in."
    )


def _unknown(name: str) -> str:
    names = known.names()
    near = get_close_matches(name, names, n=3)
    meant = f" Did you mean {' or '.join(near)}?" if near else ""
    return (
        f"There is no defense {name!r}: it is no folder, and registered are "
        f"{', '.join(names)}.{meant} Import the module that registers it, or pass the "
        "folder of a saved one."
    )
