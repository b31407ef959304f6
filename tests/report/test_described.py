"""What a type of results says about itself."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from care.models.sites import Site
from care.report.described import described, docstrings, json_schema, table
from care.typed import HIDDEN, Change, Length, Pattern, Positive, Range, Share


@dataclass(frozen=True)
class Rate:
    """A share."""

    rate: Share
    """The share,
    on two lines."""


@dataclass(frozen=True)
class Low:
    """A limit."""

    low: float
    """Of what it is."""


@dataclass(frozen=True)
class Named:
    """What has a name."""

    name: Annotated[str, Pattern("[a-z]+", "small letters")]
    """Its | name."""


@dataclass(frozen=True)
class Suite(Named):
    """A suite with its rates."""

    role: Literal["attack", "utility", "over_refusal"]
    """What it's for."""
    site: Site | None
    """Where."""
    rates: tuple[Rate, ...]
    """Some."""
    ends: tuple[Positive, Change]
    """Two."""
    pair: Annotated[list[float], Length(2)]
    """Two others."""
    by: dict[str, Rate]
    """Under their names."""
    free: dict[str, Any]
    """Anything."""
    counts: dict[Literal["yes", "no"], Positive]
    """Of either."""
    least: Annotated[Low, Range(0.0)]
    """Not below 0."""
    n: int = 1
    """How many."""
    hidden: Annotated[int, HIDDEN] = 0
    """Not in the JSON."""


def test_the_words_of_every_hint() -> None:
    found = described(Suite)
    assert {field.key: field.type for field in found} == {
        "name": "string (small letters)",
        "role": "`attack`, `utility` or `over_refusal`",
        "site": "Site as text or null",
        "rates": "list of Rate",
        "ends": "list [integer ≥ 1, number in [−1, 1]]",
        "pair": "list of number, 2 items",
        "by": "name → Rate",
        "free": "object",
        "counts": "{`yes`, `no`: integer ≥ 1}",
        "least": "Low ≥ 0",
        "n": "integer",
    }
    assert [field.key for field in found if not field.required] == ["n"]


def test_docstrings_are_one_line_and_inherited() -> None:
    assert docstrings(Rate) == {"rate": "The share, on two lines."}
    assert list(docstrings(Suite))[:2] == ["name", "role"]


def test_a_table_of_markdown() -> None:
    assert table(Named).splitlines() == [
        "| key | type | meaning |",
        "|---|---|---|",
        "| `name` | string (small letters) | Its \\| name. |",
    ]
    assert "| `n` | integer; may be missing | How many. |" in table(Suite)


def test_the_json_schema() -> None:
    schema = json_schema(Suite)
    assert schema["$ref"] == "#/$defs/Suite"
    suite, rate = schema["$defs"]["Suite"], schema["$defs"]["Rate"]
    assert suite["description"] == "A suite with its rates."
    assert suite["required"] == list(suite["properties"])[:-1]
    found = {key: {**value, "description": ""} for key, value in suite["properties"].items()}
    reference = {"$ref": "#/$defs/Rate"}
    assert found == {
        key: {**value, "description": ""}
        for key, value in {
            "name": {"type": "string", "pattern": "^[a-z]+$"},
            "role": {"enum": ["attack", "utility", "over_refusal"]},
            "site": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "rates": {"type": "array", "items": reference},
            "ends": {
                "type": "array",
                "prefixItems": [
                    {"type": "integer", "minimum": 1},
                    {"type": "number", "minimum": -1.0, "maximum": 1.0},
                ],
                "minItems": 2,
                "items": False,
            },
            "pair": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
            "by": {"type": "object", "additionalProperties": reference},
            "free": {"type": "object", "additionalProperties": {}},
            "counts": {
                "type": "object",
                "additionalProperties": {"type": "integer", "minimum": 1},
                "required": ["yes", "no"],
            },
            "least": {"$ref": "#/$defs/Low", "properties": {"low": {"minimum": 0.0}}},
            "n": {"type": "integer"},
        }.items()
    }
    assert rate["properties"]["rate"] == {
        "type": "number",
        "minimum": 0.0,
        "maximum": 1.0,
        "description": "The share, on two lines.",
    }


def test_two_types_of_one_name_are_no_schema() -> None:
    mine = Rate

    def another() -> type:
        @dataclass(frozen=True)
        class Rate:
            """Another."""

            of: Share
            """The other."""

        return Rate

    @dataclass(frozen=True)
    class Both:
        """Two."""

        one: mine
        """One."""
        other: another()
        """The other."""

    with pytest.raises(TypeError, match="one name: Both, Rate, Rate"):
        json_schema(Both)
