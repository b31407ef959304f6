"""What a type says about itself: docstrings of its fields, a JSON schema, a table for the manual.

    described(Rate)       [Field("rate", "number in [0, 1]", "The share.", required=True), …]
    json_schema(Report)   JSON Schema (draft 2020-12) for programs that read a report
    table(Rate)           the rows `key | type | meaning` of docs/report.md

Everything is read from the dataclass: names and order of its fields, their hints and bounds
(`care.typed`), and the docstrings under them, which stand in its source.
"""

from __future__ import annotations

import ast
import inspect
import math
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from care.typed import HIDDEN, Length, Pattern, Range, defaults, hints, metadata

DRAFT = "https://json-schema.org/draft/2020-12/schema"
"""The dialect of `json_schema`."""

_WORDS = {str: "string", bool: "true or false", int: "integer", float: "number", Any: "any value"}
_JSON = {str: "string", bool: "boolean", int: "integer", float: "number"}


class Field(NamedTuple):
    """One field of a type, in words."""

    key: str
    """Its name, and its key in the JSON."""
    type: str
    """What it may be."""
    meaning: str
    """The docstring under it, in one line."""
    required: bool
    """Whether it must be there when the type is read."""


def described(kind: type) -> list[Field]:
    """The fields of a dataclass that its JSON has, in their order."""
    docs, optional = docstrings(kind), defaults(kind)
    return [
        Field(key, in_words(hint), docs.get(key, ""), key not in optional)
        for key, hint in hints(kind).items()
        if HIDDEN not in metadata(hint)
    ]


def table(kind: type) -> str:
    """The fields of a dataclass as a table of Markdown, without a line end after it."""
    rows = ["| key | type | meaning |", "|---|---|---|"]
    for field in described(kind):
        meaning = field.meaning.replace("|", "\\|")
        may = "" if field.required else "; may be missing"
        rows.append(f"| `{field.key}` | {field.type}{may} | {meaning} |")
    return "\n".join(rows)


@cache
def docstrings(kind: type) -> dict[str, str]:
    """The docstring under each field of a dataclass, each as one line; those inherited first."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if is_dataclass(base):
            found |= _own_docstrings(base)
    return found


def _own_docstrings(kind: type) -> dict[str, str]:
    found = {}
    for field, doc in pairwise(_classes(kind.__module__)[kind.__qualname__].body):
        if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr):
            found[ast.unparse(field.target)] = " ".join(ast.literal_eval(doc.value).split())
    return found


@cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    """The classes of a module by qualified name. `inspect.getsource` of each would parse the whole
    module each time, which is seen in `care --help`."""
    return dict(_below(ast.parse(inspect.getsource(sys.modules[module])), ""))


def _below(node: ast.AST, place: str) -> Iterator[tuple[str, ast.ClassDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield place + child.name, child
            yield from _below(child, f"{place}{child.name}.")
        elif isinstance(child, ast.FunctionDef):
            yield from _below(child, f"{place}{child.name}.<locals>.")


# -- a hint in words -----------------------------------------------------------------------------


def in_words(hint: Any) -> str:
    """What a hint allows: `integer ≥ 1`, `list of Rate`, `string or null`."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return in_words(parts[0]) + "".join(map(_bound_words, parts[1:]))
    if origin in (Union, types.UnionType):
        return " or ".join([*(in_words(p) for p in parts if p is not type(None)), "null"])
    if origin is Literal:
        names = [f"`{part}`" for part in parts]
        return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    if origin is list or (origin is tuple and parts[-1] is Ellipsis):
        return f"list of {in_words(parts[0])}"
    if origin is tuple:
        return f"list [{', '.join(map(in_words, parts))}]"
    if origin is not None and issubclass(origin, Mapping):
        if parts[1] is Any:
            return "object"
        names = ", ".join(f"`{name}`" for name in get_args(parts[0]))
        return f"{{{names}: {in_words(parts[1])}}}" if names else f"name → {in_words(parts[1])}"
    return _WORDS.get(hint) or f"{hint.__name__}{' as text' * hasattr(hint, 'parse')}"


def _bound_words(bound: Any) -> str:
    if isinstance(bound, Range):
        if math.isinf(bound.high):
            return f" ≥ {bound.low:g}"
        return f" in [{bound.low:g}, {bound.high:g}]".replace("-", "\N{MINUS SIGN}")
    if isinstance(bound, Length):
        return f", {bound.n} items"
    return f" ({bound.words})" if isinstance(bound, Pattern) else ""


# -- a hint as JSON schema -----------------------------------------------------------------------


def json_schema(kind: type) -> dict[str, Any]:
    """The JSON schema of a dataclass; unknown keys are allowed, as later versions may add some."""
    defined: dict[type, dict[str, Any]] = {}
    top = _schema(kind, defined)
    names = [one.__name__ for one in defined]
    if len(set(names)) < len(names):
        raise TypeError(f"two types of {kind.__name__} have one name: {', '.join(sorted(names))}")
    return {"$schema": DRAFT, **top, "$defs": {one.__name__: made for one, made in defined.items()}}


def types_of(kind: type) -> list[type]:
    """A dataclass and all that its fields are made of, in the order in which they are met."""
    defined: dict[type, dict[str, Any]] = {}
    _schema(kind, defined)
    return list(defined)


def _schema(hint: Any, defined: dict[type, dict[str, Any]]) -> dict[str, Any]:
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return {}
    if origin is Annotated:
        made, bounds = _schema(parts[0], defined), {}
        for bound in parts[1:]:
            bounds |= _bound_schema(bound)
        return made | (_of_numbers(parts[0], bounds) if is_dataclass(parts[0]) else bounds)
    if origin in (Union, types.UnionType):
        inner = [_schema(part, defined) for part in parts if part is not type(None)]
        return {"anyOf": [*inner, {"type": "null"}]}
    if origin is Literal:
        return {"enum": list(parts)}
    if origin is tuple and parts[-1] is not Ellipsis:
        items = [_schema(part, defined) for part in parts]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "items": False}
    if origin in (list, tuple):
        return {"type": "array", "items": _schema(parts[0], defined)}
    if origin is not None and issubclass(origin, Mapping):
        names = {"required": list(get_args(parts[0]))} if get_args(parts[0]) else {}
        return {"type": "object", "additionalProperties": _schema(parts[1], defined), **names}
    if hint in _JSON or hasattr(hint, "parse"):  # a class that is written as text
        return {"type": _JSON.get(hint, "string")}
    return _defined(hint, defined)


def _defined(kind: Any, defined: dict[type, dict[str, Any]]) -> dict[str, Any]:
    """A reference to the type, which is defined once."""
    if kind not in defined:
        defined[kind] = {}  # known already to whatever inside it refers to it
        docs, optional = docstrings(kind), defaults(kind)
        shown = {key: hint for key, hint in hints(kind).items() if HIDDEN not in metadata(hint)}
        defined[kind] |= {
            "description": inspect.cleandoc(kind.__doc__ or ""),
            "type": "object",
            "properties": {
                key: {**_schema(hint, defined), "description": docs.get(key, "")}
                for key, hint in shown.items()
            },
            "required": [key for key in shown if key not in optional],
        }
    return {"$ref": f"#/$defs/{kind.__name__}"}


def _of_numbers(kind: Any, bounds: dict[str, Any]) -> dict[str, Any]:
    """Bounds of an object are those of each field that is a plain number."""
    found = {key: bounds for key, hint in hints(kind).items() if hint is float}
    return {"properties": found} if bounds else {}


def _bound_schema(bound: Any) -> dict[str, Any]:
    if isinstance(bound, Range):
        ends = {"minimum": bound.low, "maximum": bound.high}
        return {key: end for key, end in ends.items() if math.isfinite(end)}
    if isinstance(bound, Length):
        return {"minItems": bound.n, "maxItems": bound.n}
    return {"pattern": f"^{bound.regex}$"} if isinstance(bound, Pattern) else {}
