"""Where a published data set comes from, and how its files are found or fetched.

A `Source` pins a revision: a commit on the Hub or GitHub, or the digest of a file. `Files` gives a
loader its tables and pictures: from a folder or file of the user's own if one was passed, otherwise
from the source at that revision, kept under $CARE_CACHE (default ~/.cache/care), folder suites.
What may not be fetched by a program is looked for where the user was told to put it.

Pictures inside tables become files of the cache, named by their content, so that a suite of
thousands of them doesn't lie in memory. Nothing is fetched for files that are there.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from PIL import Image

from care.data.archives import unpacked
from care.data.tables import Row, read_rows
from care.errors import DataError, DownloadError
from care.runs.files import write_whole
from care.runs.reading import file_digest

Host = Literal["hub", "github", "web"]

_SECONDS = 60
"""How long a server may be silent."""


def cache_folder() -> Path:
    """Where fetched files and pictures lie."""
    return Path(os.environ.get("CARE_CACHE") or "~/.cache/care").expanduser() / "suites"


@dataclass(frozen=True)
class Source:
    """One published data set at one revision."""

    folder: str
    """Folder of the cache for what has to be fetched by hand."""
    page: str
    """Page that people read."""
    licence: str
    """SPDX identifier or name of the licence, or that none is stated."""
    host: Host
    """Who serves the files."""
    at: str
    """Repository on the Hub or GitHub; of a file on the web its address without the file's name."""
    revision: str
    """Commit; of a file on the web `sha256:…`, or the name of a release without a known digest."""
    gated: bool = False
    """Whether the Hub asks for an account and consent first."""
    by_hand: str = ""
    """What a person has to fetch; {folder} is replaced by where it belongs."""

    def place(self) -> Path:
        """Where what is fetched by hand belongs."""
        return cache_folder() / self.folder

    def instructions(self) -> str:
        """What a person has to fetch and where it belongs; empty if nothing."""
        return self.by_hand.replace("{folder}", str(self.place()))

    def kept(self, relative: str) -> Path | None:
        """Where a file lies that was fetched before; None where it wasn't. Nothing is fetched."""
        if self.host != "hub":
            target = self._target(relative)
            return target if target.is_file() else None
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(
            self.at, relative, revision=self.revision, repo_type="dataset"
        )
        return Path(found) if isinstance(found, str) else None

    def _target(self, relative: str) -> Path:
        kind, _, digest = self.revision.partition(":")
        return self.place() / "fetched" / (digest or kind)[:16] / _plain(relative)

    def fetch(self, relative: str) -> Path:
        """One file at the pinned revision. DownloadError if it can't be had."""
        if self.host == "hub":
            return self._from_hub(relative)
        address = f"{self.at}/{relative}"
        if self.host == "github":
            address = f"https://raw.githubusercontent.com/{self.at}/{self.revision}/{relative}"
        target, digest = self._target(relative), self.revision.partition(":")[2]
        if not target.is_file():
            data = _get(address, f"{self.page}, or pass a copy with path")
            found = hashlib.sha256(data).hexdigest()
            if digest and found != digest:
                raise DownloadError(
                    f"{address} has SHA-256 {found}, but {digest} was published; get the right "
                    "file and pass it with path."
                )
            write_whole(target, data)
        return target

    def _from_hub(self, relative: str) -> Path:
        from huggingface_hub import hf_hub_download  # pyright: ignore[reportUnknownVariableType]

        try:
            return Path(
                hf_hub_download(self.at, relative, repo_type="dataset", revision=self.revision)
            )
        except (OSError, ValueError) as error:  # the Hub's own errors are one of the two
            first = next(iter(str(error).splitlines()), type(error).__name__)
            consent = f"accept the terms at {self.page} and log in; or " if self.gated else ""
            raise DownloadError(
                f"{relative} of {self.at} at {self.revision[:12]} can't be fetched "
                f"({first.rstrip('.')}); "
                f"{consent}go online, or pass a local copy with path."
            ) from error


def _get(address: str, otherwise: str) -> bytes:
    if not address.endswith((".png", ".jpg")):  # hundreds of pictures would be hundreds of lines
        print(f"Downloading {address}", file=sys.stderr, flush=True)
    try:
        with urllib.request.urlopen(address, timeout=_SECONDS) as answer:
            return answer.read()
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise DownloadError(
            f"{address} can't be fetched ({getattr(error, 'reason', error)}); go online, get it "
            f"from {otherwise}."
        ) from error


def _plain(relative: str) -> str:
    """A path of a source, checked: it must stay below the folder it is put into."""
    parts = PurePosixPath(relative.replace("\\", "/")).parts
    if not parts or parts[0] == "/" or ".." in parts:
        raise DataError(f"The path {relative!r} leads out of its folder; get the published file.")
    return "/".join(parts)


@dataclass
class Files:
    """The files of one data set: the user's own, or fetched."""

    source: Source
    """Where it is published."""
    path: Path | None = None
    """The user's copy: a folder laid out as the source is, or the one table that is needed."""
    images: Path | None = None
    """The user's folder of pictures."""
    notes: list[str] = field(default_factory=list[str])
    """What a loader did otherwise than usual; becomes part of the suite's version."""
    _read: dict[str, Path] = field(default_factory=dict[str, Path])

    def __post_init__(self) -> None:
        if self.path is not None and not self.path.exists():
            raise DataError(f"There is no file or folder {self.path}; correct the path.")
        if self.images is not None and not self.images.is_dir():
            raise DataError(f"There is no folder of pictures {self.images}; correct images.")

    def note(self, text: str, warning: str = "") -> None:
        """Keep a note, and warn, once."""
        if text not in self.notes:
            self.notes.append(text)
            if warning:
                warnings.warn(warning, stacklevel=3)

    def table(self, relative: str) -> Path:
        """The file at `relative` of the source. DataError or DownloadError if there is none."""
        if relative not in self._read:
            self._read[relative] = self._find(relative)
        return self._read[relative]

    def _find(self, relative: str) -> Path:
        if self.path is None:
            return self.source.fetch(relative)
        if self.path.is_file():
            if self._read:
                raise DataError(
                    f"{self.path} is one file, but this suite also needs {relative}; pass the "
                    f"folder that holds a copy of {self.source.page}."
                )
            return self.path
        for name in (relative, PurePosixPath(relative).name):
            if (self.path / name).is_file():
                return self.path / name
        raise DataError(
            f"{self.path} has no file {relative}; pass the file itself, or a folder laid out as "
            f"{self.source.page} is."
        )

    def has(self, relative: str) -> bool:
        """Whether the user's folder has a file at `relative`."""
        return self.path is not None and (self.path / relative).is_file()

    def rows(self, relative: str) -> Iterator[Row]:
        """The rows of the table at `relative`."""
        return read_rows(self.table(relative))

    def image(self, inside: str, below: str = "", *, fetched: bool = False) -> Path | None:
        """A picture at `inside` of the folder of pictures, which is `below` in the source.

        With `fetched` it is fetched if nothing of the user's own is given. None if it isn't there.
        """
        inside, path = _plain(inside), self.path
        if self.images is not None:
            places = [self.images]
        elif path is not None:
            folder = path if path.is_dir() else path.parent
            places = [folder / below, folder, self.source.place()]
        else:
            places = [self.source.place()]
        for place in places:
            if (place / inside).is_file():
                return place / inside
        if not fetched or path is not None or self.images is not None:
            return None
        return self.source.fetch(f"{below}/{inside}" if below else inside)

    def needed_image(
        self, inside: str, row: Row, below: str = "", *, fetched: bool = False
    ) -> Path:
        """As `image`; DataError with what to fetch if it isn't there."""
        found = self.image(inside, below, fetched=fetched)
        if found is None:
            where = self.images or self.path or self.source.place()
            otherwise = self.source.instructions() or f"get it from {self.source.page}"
            raise DataError(
                f"{row.where}: the picture {inside} isn't in {where}; {otherwise}, or pass the "
                "folder of pictures with images."
            )
        return found

    def stored(self, data: bytes, row: Row, column: str) -> Path:
        """A picture from a cell as a file of the cache. DataError if it isn't a picture."""
        try:
            with Image.open(io.BytesIO(data)) as opened:
                ending = (opened.format or "").lower()
        except Exception as error:  # decoders raise errors of many kinds
            raise row.wrong(column, "a picture") from error
        return keep_picture(data, ending)

    def unpacked(self, relative: str) -> Path:
        """The folder that the zip archive at `relative` was unpacked into."""
        archive = self.table(relative)
        return unpacked(archive, cache_folder() / "unpacked" / _digest(archive)[:16])

    def provenance(self) -> tuple[str, str]:
        """Source and revision of what was read: of the user's own files their digest."""
        fixed = self.source.revision
        if self.path is None and (self.source.host != "web" or fixed.startswith("sha256:")):
            return self.source.page, fixed
        hasher = hashlib.sha256()
        for _, path in sorted(self._read.items()):
            hasher.update(_digest(path).encode())
        read = f"sha256:{_digest(next(iter(self._read.values())))}"
        if len(self._read) > 1:
            read = f"sha256:{hasher.hexdigest()}"
        if self.path is None:
            return self.source.page, f"{fixed}, {read}"
        return f"{self.source.page}, read from {self.path}", read


def keep_picture(data: bytes, ending: str) -> Path:
    """Write a picture into the cache under the digest of its bytes, once; its path."""
    target = cache_folder() / "pictures" / f"{hashlib.sha256(data).hexdigest()[:32]}.{ending}"
    return target if target.is_file() else write_whole(target, data)


def _digest(path: Path) -> str:
    return file_digest(path, "table")
