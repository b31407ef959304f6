"""Write and read reports: `report.html` and `report.json` from one tree.

Both files are rendered and written beside their targets first; only then do they replace an older
report, so a full disk or an error leaves the older one whole. The HTML names the SHA-256 of its
JSON, which reveals the one case left: a process killed between the two final renames.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from care.diagnosis.results import Diagnosis
from care.errors import DataError, StorageError
from care.report.conclusions import verdict
from care.report.html import render, render_diagnosis
from care.report.schema import SCHEMA, WHAT, validate, validate_diagnosis
from care.report.targets import summarise
from care.runs.reading import read_json
from care.typed import to_tree

HTML_NAME = "report.html"
JSON_NAME = "report.json"
_DEFAULTS: dict[str, Any] = {
    "controls": {},
    "diagnosis": None,
    "attribution": {"examples": []},
    "repair": None,
    "examples": [],
}
_NO_FINDINGS: dict[str, Any] = {
    "heatmap": [],
    "rescan": None,
    "comparison": [],
    "causal": [],
    "neurons": None,
    "trust": None,
}


def write_report(tree: Mapping[str, Any], folder: Path | str) -> tuple[Path, Path]:
    """Validate a tree and write `report.html` and `report.json` into `folder`.

    Parameters
    ----------
    tree
        A report as described in `docs/report.md`; numpy values are fine. Optional parts that are
        missing are filled in as empty, `summary` is computed when absent, and the sentences of the
        diagnosis (`supported`, `unsupported`) are always written anew from its figures.
    folder
        Created when it doesn't exist.

    Returns
    -------
    tuple[Path, Path]
        The HTML file and the JSON file.

    Raises
    ------
    DataError
        If the tree breaks the schema (the message names the key), or if its `summary` differs from
        what `summarise` computes.
    StorageError
        If the files can't be written; an older report in `folder` is then untouched.
    """
    full = complete(tree)
    # ASCII keeps every string exact, lone surrogates from broken model output included.
    text = json.dumps(full, indent=1, allow_nan=False) + "\n"
    payload = text.encode("ascii")
    page = render(full, hashlib.sha256(payload).hexdigest()).encode("utf-8")
    html_path, json_path = Path(folder) / HTML_NAME, Path(folder) / JSON_NAME
    try:
        _replace_all({html_path: page, json_path: payload})
    except OSError as error:
        raise StorageError(
            f"The report can't be written to {folder}: {error.strerror or error}; free some space "
            "or pass another folder."
        ) from error
    return html_path, json_path


def write_diagnosis(
    diagnosis: Diagnosis | Mapping[str, Any], folder: Path | str, title: str
) -> Path:
    """Write `diagnosis.html` and `diagnosis.json` of a diagnosis alone; the page's path.

    Raises DataError and StorageError as `write_report`.
    """
    validate_diagnosis(found := to_tree(diagnosis, WHAT))
    full = _with_verdict(found)
    payload = (json.dumps(full, indent=1, allow_nan=False) + "\n").encode("ascii")
    tree = {"schema": SCHEMA, "title": title, "diagnosis": full}
    digest = hashlib.sha256(payload).hexdigest()
    page, data = Path(folder) / "diagnosis.html", Path(folder) / "diagnosis.json"
    html = render_diagnosis(tree, digest, data.name).encode("utf-8")
    try:
        _replace_all({page: html, data: payload})
    except OSError as error:
        raise StorageError(
            f"The diagnosis can't be written to {folder}: {error.strerror or error}; free some "
            "space or pass another folder."
        ) from error
    return page


def load_report(path: Path | str) -> dict[str, Any]:
    """Read a report from its JSON file, or from the folder that holds `report.json`.

    Raises
    ------
    DataError
        If the file is missing, isn't JSON, or has another schema.
    """
    file = Path(path)
    if file.is_dir():
        file = file / JSON_NAME
    if not file.exists():
        raise DataError(
            f"There is no readable report at {file}; pass the folder of a finished run or its "
            "report.json."
        )
    tree = read_json(file, "report", otherwise="pass the report.json of a finished run")
    if not isinstance(tree, dict):
        raise DataError(f"The report {file} holds no JSON object; pass a report.json.")
    validate(tree, strict=False)
    return tree


def complete(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A validated copy of the tree with plain JSON values and every top-level key."""
    full = {**_DEFAULTS, **to_tree(tree, WHAT)}
    given = full.pop("summary", None)
    validate(full)
    if full["diagnosis"] is not None:
        full["diagnosis"] = _with_verdict(full["diagnosis"])
    computed = to_tree(summarise(full))
    if given is not None and (key := _first_difference(given, computed)):
        raise DataError(
            f"The report can't be used: `summary.{key}` isn't what the suites, outcomes and "
            "controls give; leave `summary` out or take it from `care.report.summarise`."
        )
    return {**full, "summary": computed}


def _with_verdict(diagnosis: Mapping[str, Any]) -> dict[str, Any]:
    """Every key of a valid diagnosis; the verdict is always written anew from the figures."""
    full = {**_NO_FINDINGS, **diagnosis}
    full["causal"] = [{"pairs": "", **row} for row in full["causal"]]
    if full["neurons"] is not None:
        full["neurons"] = {"pairs": "", "repair": None, **full["neurons"]}
        if full["neurons"]["repair"] is not None:
            full["neurons"]["repair"] = {"judged": None, **full["neurons"]["repair"]}
    return full | {key: list(lines) for key, lines in asdict(verdict(full)).items()}


def _first_difference(given: Any, computed: Mapping[str, Any]) -> str | None:
    if not isinstance(given, dict):
        return "verdict"
    keys = sorted({*given, *computed})
    return next((k for k in keys if not _same(given.get(k), computed.get(k))), None)


def _same(one: Any, other: Any) -> bool:
    numbers = isinstance(one, int | float) and isinstance(other, int | float)
    return abs(one - other) < 1e-9 if numbers else one == other


def _replace_all(contents: Mapping[Path, bytes]) -> None:
    """Write every file beside its target and flush it to disk, then move all into place."""
    pending: dict[Path, Path] = {}
    try:
        for target, content in contents.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_dir():  # found now, because the moves below must not fail half-way
                raise IsADirectoryError(None, f"{target} is a folder")
            pending[target] = _write_beside(target, content)
        for target in list(pending):
            pending[target].replace(target)
            del pending[target]
    finally:
        for leftover in pending.values():
            leftover.unlink(missing_ok=True)


def _write_beside(target: Path, content: bytes) -> Path:
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp's 0600 would keep a shared run folder's report private
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary
