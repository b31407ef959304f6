"""Zip archives of published suites, unpacked whole or not at all.

Into a folder of this process's own, which is moved to its place when everything is in it: after a
kill, or beside another process that does the same, the place holds all of the archive or nothing.
One that would fill the disk is refused before anything is written; paths that lead out of the
folder are cut by the standard library.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

from care.errors import DataError
from care.runs.files import PART, storage_errors, write_whole

_DONE = ".done"
"""File that tells a whole unpacked folder from half of one."""

_MAX_UNPACKED = 100 << 30
"""Most bytes of an archive when it is unpacked."""


def unpacked(archive: Path, target: Path) -> Path:
    """The folder `target` with all that is in a zip archive, unpacked where it isn't there yet.

    Raises DataError for an archive that isn't whole or too large, StorageError if writing fails.
    """
    if (target / _DONE).is_file():
        return target
    with storage_errors(f"unpack {archive}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f"{target.name}.", suffix=PART, dir=target.parent))
        try:
            _extract(archive, work)
            write_whole(work / _DONE, "")
            if not (target / _DONE).is_file():
                shutil.rmtree(target, ignore_errors=True)  # half of one, from a kill
                with suppress(OSError):  # another process was faster
                    work.rename(target)
            if not (target / _DONE).is_file():
                raise OSError(f"the folder {target} can't be made")
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return target


def _extract(archive: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as opened:
            size = sum(member.file_size for member in opened.infolist())
            if size > _MAX_UNPACKED:
                raise DataError(
                    f"{archive} holds {size:,} bytes, above the limit of {_MAX_UNPACKED:,}; get "
                    "the published file."
                )
            opened.extractall(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise DataError(
            f"{archive} isn't a whole zip archive ({error}); fetch it again."
        ) from error
