"""Suites in files of the user's own, read and written.

A file is JSON Lines, one example a line:

    {"id": "a1", "prompt": "How do I…?", "images": ["a1.png"], "kind": "malicious",
     "goal": "…", "category": "…", "references": ["two"], "system": "…", "opening": "Sure, "}

Only `prompt` is needed, or `images`, paths relative to the file. Without an `id` an example is
called by its line; `kind` may be left out where the role of the file says it. Everything is checked
on reading, pictures too: an error names its line, before hours of work begin. Half of a surrogate
pair (a cut emoji) becomes U+FFFD, and a warning names the lines.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path
from typing import Any, cast, get_args

from care.data.example import Example, Suite, SuiteRole
from care.errors import CareError, DataError, UsageError
from care.runs.files import to_json, write_whole
from care.runs.reading import parse_json, text_lines, valid

ENDING = ".jsonl"
"""Ending of a file of examples."""

_TEXTS = ("id", "prompt", "goal", "kind", "category", "system", "opening")
_LISTS = ("images", "references")


def read_suite(path: str | Path, role: SuiteRole | None = None, name: str | None = None) -> Suite:
    """The suite in a JSON Lines file.

    Args:
        path: the file, in UTF-8.
        role: what the examples are for. An `attack` file holds malicious examples only, any other
            benign ones only, so `kind` may be left out. Without a role every line states its
            kind, and the role is `attack` or `utility` after it.
        name: name of the suite; by default the file's name without its ending.

    Raises:
        DataError: the file can't be read or is empty, or (with the line's number) an example is
            malformed, has a picture that can't be used, an id twice, or the wrong kind.
    """
    path = Path(path)
    if role is not None and role not in get_args(SuiteRole):
        raise UsageError(f"role is {role!r}; use one of {', '.join(get_args(SuiteRole))}.")
    name = name or path.stem
    examples: list[Example] = []
    lines_of: dict[str, int] = {}
    mended: list[int] = []
    for number, line in text_lines(path, "file of examples"):
        where = f"{path}, line {number}"
        try:
            fields = valid(found := _fields(line, where))
            mended += [number] * (fields != found)
            example = _example(fields, where, role, number, path.parent, name)
            example.load_images()  # a picture that can't be read is wanted now
        except CareError as error:
            if str(error).startswith(where):
                raise
            raise DataError(f"{where}: {error}") from error
        if example.id in lines_of:
            raise DataError(
                f"{where}: the id {example.id!r} is that of line {lines_of[example.id]} already; "
                "ids must be unique."
            )
        if role is None and examples and example.kind != examples[0].kind:
            raise DataError(
                f"{where}: this example is {example.kind}, those above are {examples[0].kind}; "
                "put malicious and benign examples into two files."
            )
        lines_of[example.id] = number
        examples.append(example)
    if not examples:
        raise DataError(f"{path} holds no examples; write one JSON object a line.")
    if role is None:
        role = "attack" if examples[0].kind == "malicious" else "utility"
    if mended:
        told = ", ".join(map(str, mended[:5])) + (" and others" if len(mended) > 5 else "")
        warnings.warn(
            f"{path} holds text that isn't valid Unicode (line {told}), as a cut emoji is; it was "
            "replaced by U+FFFD.",
            stacklevel=2,
        )
    return Suite(name, role, tuple(examples), source=str(path))


def write_suite(suite: Suite, path: str | Path) -> Path:
    """Write a suite as `read_suite` reads it, pictures as PNGs in a folder beside the file.

    Raises: StorageError if that fails.
    """
    path = Path(path)
    folder = f"{path.stem}-images"
    lines: list[str] = []
    written: set[str] = set()
    for example in suite:
        fields: dict[str, Any] = {key: getattr(example, key) for key in _TEXTS}
        fields |= {"images": [], "references": list(example.references)}
        for image in example.load_images():
            content = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
            relative = f"{folder}/{content[:16]}.png"
            fields["images"].append(relative)
            if relative not in written:
                buffer = io.BytesIO()
                image.save(buffer, "PNG")
                write_whole(path.parent / relative, buffer.getvalue())
                written.add(relative)
        lines.append(to_json({key: value for key, value in fields.items() if value}))
    return write_whole(path, "\n".join(lines) + "\n")


def _fields(line: str, where: str) -> dict[str, Any]:
    found = parse_json(line, where, otherwise="write one object a line")
    if not isinstance(found, dict):
        raise DataError(f"{where} holds {line.strip()!r:.60}, which isn't a JSON object.")
    fields = cast("dict[str, Any]", found)
    unknown = sorted(fields.keys() - {*_TEXTS, *_LISTS})
    if unknown:
        raise DataError(
            f"{where} has the unknown field {unknown[0]!r}; there are "
            f"{', '.join((*_TEXTS, *_LISTS))}."
        )
    for key in _TEXTS:
        if not isinstance(fields.get(key, ""), str):
            raise DataError(f"{where}: {key} must be text, got {fields[key]!r:.60}.")
    for key in _LISTS:
        value = fields.get(key, [])
        texts = cast("list[object]", value if isinstance(value, list) else [value])
        if not all(isinstance(item, str) for item in texts):
            raise DataError(f"{where}: {key} must be a list of texts, got {fields[key]!r:.60}.")
        fields[key] = texts
    return fields


def _example(
    fields: dict[str, Any], where: str, role: SuiteRole | None, number: int, folder: Path, name: str
) -> Example:
    expected = None if role is None else "malicious" if role == "attack" else "benign"
    kind = fields.get("kind", expected)
    if kind is None:
        raise DataError(f'{where} has no kind; write "kind": "malicious" or "benign".')
    if expected is not None and kind in ("malicious", "benign") and kind != expected:
        raise DataError(
            f"{where}: this example is {kind}, but the file was passed for {expected} ones; "
            "move it to the other file."
        )
    images = tuple(
        image if image.startswith(("http://", "https://")) else folder / image
        for image in fields["images"]
    )
    rest = {key: fields[key] for key in ("goal", "category", "system", "opening") if key in fields}
    return Example(
        id=fields.get("id", f"{name}-{number:04d}"),
        prompt=fields.get("prompt", ""),
        images=images,
        kind=kind,
        suite=name,
        references=tuple(fields["references"]),
        **rest,
    )
