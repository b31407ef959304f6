"""A run: a folder that survives being killed at any moment and can be resumed.

    manifest.json   what was run, on what machine, with which versions; stages with their cost
    rows.jsonl      one JSON object a line, each with a unique "key"; appended and synced to disk
    answers.jsonl   the same, for what a model answered before it was judged
    …               artefacts, written whole or not at all

A run doesn't know what its rows mean; `care.evaluate` does.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from care.errors import CareError, StorageError, UsageError
from care.runs.environment import machine_facts, peak_memory_gib, versions
from care.runs.files import (
    NO_LINK,
    PART,
    Place,
    config_digest,
    storage_errors,
    to_json,
    write_whole,
)
from care.runs.manifest import MANIFEST, SCHEMA, check_is_run, differences, now, read_manifest
from care.runs.parts import check_beside
from care.runs.reading import file_digest
from care.runs.rows import Row, Rows
from care.runs.secrets import hidden
from care.runs.shards import FOLDER as SHARDS

try:
    import fcntl
except ImportError:  # Windows: runs work there, but two at once in one folder aren't refused
    fcntl = None

ROWS, ANSWERS, LOCK = "rows.jsonl", "answers.jsonl", ".lock"


class Run:
    """A resumable folder of rows and artefacts, open for writing by one process at a time.

    Parameters: `path`, the folder, made if absent; `resume`, go on with what is there; `config`,
    everything that decides the rows: resuming with another one is refused, None isn't compared.

    Raises: UsageError when the folder holds something and `resume` is False, isn't a run, was made
    with another configuration, or is a shard's beside those of another job; StorageError when it
    can't be written, another process has it open, or it was deleted or replaced meanwhile;
    DataError when a row other than the last is damaged, or the manifest isn't one.

    Attributes: `path`; `manifest`, as it is on disk; `results` and `answers`, the `Rows`
    of rows.jsonl and answers.jsonl.
    """

    def __init__(
        self, path: str | Path, resume: bool = False, config: Mapping[str, Any] | None = None
    ) -> None:
        self.path = Path(path)
        plain = None if config is None else json.loads(to_json(config))
        if plain is not None:
            check_beside(self.path, plain)
        self.manifest: dict[str, Any] = {}
        self._made = not self.path.exists()
        found = self._prepare_folder(resume)
        lock = self._take_lock()
        self._lock: int | None = lock
        self._place = Place(self.path / LOCK, lock)
        try:
            self._open_manifest(found, plain)
            self.results = Rows(self.path / ROWS)
            self.answers = Rows(self.path / ANSWERS)
        except BaseException:
            os.close(lock)
            raise

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._made and isinstance(error, CareError):
            self._leave_nothing()
        self.close()

    def _leave_nothing(self) -> None:
        """Take away a folder that was made for nothing, such as for a model that isn't there."""
        with suppress(OSError):
            held = list(self.path.iterdir())
            known = {MANIFEST, LOCK, ROWS, ANSWERS}
            if {place.name for place in held} <= known and not (self.results or self.answers):
                for place in held:
                    place.unlink()
                self.path.rmdir()

    def close(self) -> None:
        """Let the folder go. Nothing has to be flushed: every write is on disk when it returns."""
        self.results.close()
        self.answers.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # --- rows -----------------------------------------------------------------------------------

    def has(self, key: str) -> bool:
        """True when a row with this key is on disk."""
        return key in self.results

    def get(self, key: str) -> Row | None:
        """The row with this key, or None."""
        return self.results.get(key)

    def rows(self) -> list[Row]:
        """All rows, in the order in which they were written."""
        return self.results.all()

    def add(self, *rows: Mapping[str, Any]) -> None:
        """Append rows; all of them are on disk on return. See `care.runs.rows.Rows.add` for
        errors."""
        self.results.add(*rows)

    # --- artefacts and stages -------------------------------------------------------------------

    def write(self, name: str, content: bytes | str) -> Path:
        """Write an artefact whole or not at all, and return its path."""
        self.check_there()
        return write_whole(self.path / name, content, make_folder=False)

    def check_there(self) -> None:
        """StorageError if the folder was deleted or replaced since the run was opened.

        Whoever writes into the folder other than by this class asks before, so that no second,
        half-empty folder is made under the same name.
        """
        self._place.check()

    def write_json(self, name: str, content: object) -> Path:
        """Write an artefact as indented JSON, whole or not at all, and return its path."""
        return self.write(name, to_json(content, indent=2) + "\n")

    def inside(self, *names: str) -> Path:
        """A place within the folder, for whoever writes there other than by this class.

        Raises what `check_there` does, and UsageError where links lead out of the folder.
        """
        self.check_there()
        place = self.path.joinpath(*names)
        if not place.resolve().is_relative_to(self.path.resolve()):
            raise UsageError(
                f"{place} leads out of the run's folder, to {place.resolve()}; remove the link."
            )
        return place

    def record(self, **facts: object) -> None:
        """Put facts into the manifest (suites, model, …) and save it, without keys in them."""
        self.manifest |= hidden(json.loads(to_json(facts)))
        self.write_json(MANIFEST, self.manifest)

    def sign(self, name: str) -> None:
        """Keep the digest of a file in the manifest, by which `intact` tells damage later."""
        digests = self.manifest.get("files", {})
        self.record(files=digests | {name: self._digest(self.path / name)})

    def intact(self, name: str) -> bool:
        """Whether a file is as it was signed; True also of one that neither is nor was signed."""
        return self._digest(self.path / name) == self.manifest.get("files", {}).get(name)

    def _digest(self, path: Path) -> str | None:
        if not path.is_file():
            return None
        return file_digest(path, error=StorageError)

    def pin(self, what: str, facts: Mapping[str, Any]) -> None:
        """Hold the run to facts that decide its rows and are found out after it was opened.

        They are kept in the manifest as `pinned[what]`: digests of the model, of suites by name,
        of repairs by name. What an earlier attempt has recorded is never written over.

        Raises: UsageError when one of them was another one in an earlier attempt, or the run was
        started by a version that recorded none.
        """
        if "pinned" not in self.manifest:
            raise UsageError(
                f"The run in {self.path} was started by an earlier version of care, which didn't "
                f"record by which {what} its rows were made, so it can't be resumed; choose "
                "another folder."
            )
        known: dict[str, Any] = self.manifest["pinned"].get(what, {})
        plain: dict[str, Any] = json.loads(to_json(facts))
        for name, fact in plain.items():
            if name in known and known[name] != fact:
                raise UsageError(
                    f"The {what} of the run in {self.path} changed since it was started ({name}: "
                    f"{known[name]!r:.20}… then, {fact!r:.20}… now); resume it with the same or "
                    "choose another folder."
                )
        if plain.keys() - known.keys():
            self.record(pinned=self.manifest["pinned"] | {what: known | plain})

    @contextmanager
    def stage(self, name: str) -> Generator[None, None, None]:
        """Time a part of the job; seconds add up over resumed attempts, the peak is the largest.

        The manifest's `stages` lists, in order of first entry: name, seconds, peak_memory_gib (of
        the process so far), attempts and status (running, done, failed). A stage that reads
        "running" after the process has ended was killed; those seconds are unknown.
        """
        if not any(entry["name"] == name for entry in self.stages):
            fresh = {"name": name, "seconds": 0.0, "peak_memory_gib": None, "attempts": 0}
            self.stages.append(fresh)
        entry = next(entry for entry in self.stages if entry["name"] == name)
        entry |= {"status": "running", "attempts": entry["attempts"] + 1}
        self.record()
        before, started = entry["seconds"], time.monotonic()
        status = "failed"
        try:
            yield
            status = "done"
        finally:
            peaks = [p for p in (entry["peak_memory_gib"], peak_memory_gib()) if p is not None]
            entry |= {
                "status": status,
                "seconds": round(before + time.monotonic() - started, 3),
                "peak_memory_gib": max(peaks, default=None),
            }
            if status == "done":
                self.record()
            else:  # the error under way says more than one about the manifest would
                with suppress(StorageError):
                    self.record()

    @property
    def stages(self) -> list[dict[str, Any]]:
        """The manifest's stages; see `stage`."""
        return self.manifest["stages"]

    def stage_done(self, name: str) -> bool:
        """True when a stage of this name ended without an error, in this process or before."""
        return any(s["name"] == name and s["status"] == "done" for s in self.stages)

    # --- opening --------------------------------------------------------------------------------

    def _prepare_folder(self, resume: bool) -> bool:
        """Make the folder; return whether it holds a run to go on with."""
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path} is a file; a run needs a folder of its own.")
        with storage_errors(f"make the folder {self.path}"):
            self.path.mkdir(parents=True, exist_ok=True)
            names = {p.name for p in self.path.iterdir()} - {LOCK}
            # A kill before the first manifest leaves nothing but half a file.
            names = {name for name in names if not name.endswith(PART)}
        if names and not resume:
            raise UsageError(
                f"The folder {self.path} isn't empty; resume the run in it, choose another "
                "folder, or empty it."
            )
        if names - {SHARDS} and MANIFEST not in names:
            raise UsageError(
                f"The folder {self.path} has no {MANIFEST}, so it isn't a run that could be "
                "resumed; choose another folder."
            )
        return MANIFEST in names

    def _take_lock(self) -> int:
        with storage_errors(f"open {self.path / LOCK}"):
            handle = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | NO_LINK, 0o644)
        if fcntl is None:
            return handle
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            os.close(handle)
            raise StorageError(
                f"Another process is writing the run in {self.path}; wait for it or choose "
                "another folder."
            ) from error
        except OSError:  # some network disks have no locks: go on without
            return handle
        for left in self.path.glob(f"*{PART}"):  # by a kill, for nobody else writes here now
            with suppress(OSError):
                left.unlink()
        return handle

    def _open_manifest(self, found: bool, config: Mapping[str, Any] | None) -> None:
        digest = config_digest(config or {})
        if not found:
            self.record(
                schema=SCHEMA,
                created=now(),
                command=sys.argv,
                config=config or {},
                config_digest=digest,
                machine=machine_facts(),
                versions=versions(),
                stages=[],
                resumed=[],
                pinned={},
            )
            return
        self.manifest = read_manifest(self.path / MANIFEST)
        if config is not None and self.manifest["config_digest"] != digest:
            changed = differences(self.manifest["config"], hidden(config))
            raise UsageError(
                f"The run in {self.path} was started with another configuration ({changed}); "
                "resume it with the same one or choose another folder."
            )
        self.manifest["resumed"].append({"at": now(), "versions": versions()})
        self.record()


def copy_run(path: Path, out: Path) -> Path:
    """Copy a run that stands still into a folder that isn't there yet or is empty; the folder.

    An earlier copy of the same run is gone on with. Raises: UsageError when `path` holds no run or
    `out` something else; StorageError if it fails.
    """
    check_is_run(path)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if (out / MANIFEST).is_file():
            one, other = (read_manifest(folder / MANIFEST) for folder in (path, out))
            if all(one.get(key) == other.get(key) for key in ("created", "config_digest")):
                return out
        raise UsageError(f"The folder {out} isn't empty; choose another one for the copy.")
    work = out.with_name(f"{out.name[:64]}.{secrets.token_hex(8)}{PART}")
    with storage_errors(f"copy the run in {path} to {out}"):
        try:
            # Only contents: what lies on a read-only disk may be copied with its permissions.
            shutil.copytree(
                path,
                work,
                ignore=shutil.ignore_patterns(LOCK, f"*{PART}"),
                copy_function=shutil.copyfile,
            )
            for folder in (work, *(one for one in work.rglob("*") if one.is_dir())):
                folder.chmod(0o755)
            work.replace(out)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return out
