"""Settings that are given to a comparison in place of a search."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from care.defenses.rivals.astra import Astra
from care.errors import DataError, UsageError
from care.evaluation.comparison_table import TriedSettings
from care.pipeline.compare import compare
from care.pipeline.comparison_rows import QUICKER, open_options, rivals, unless_quicker
from care.pipeline.config import CompareJob
from care.pipeline.given_settings import check_rows, read_settings, with_given
from care.pipeline.tuning import settings_of

SHIPPED = Path(__file__).parents[2] / "docs" / "comparison-settings.json"


def a_file(folder: Path, tree: Any) -> Path:
    path = folder / "settings.json"
    path.write_text(json.dumps(tree))
    return path


def test_they_are_read_from_a_mapping_and_from_a_finished_table(tmp_path: Path) -> None:
    given = {"shiftdc": {"depths": [0.3, 0.7], "strength": 1.0}}
    read = read_settings(a_file(tmp_path, given))
    assert read == {"shiftdc": {"depths": (0.3, 0.7), "strength": 1.0}}
    tried = [
        TriedSettings({"strength": 2.0}, None, 0.1, 1.0, 1.0, False),
        TriedSettings({"strength": 3.0}, None, 0.1, 1.0, 1.0, True),
    ]
    rows = [
        {"name": "astra", "tried": [asdict(each) for each in tried]},
        {"name": "jpeg", "tried": []},
        {"name": "text-first", "tried": [asdict(TriedSettings({}, None, None, None, None, True))]},
    ]
    assert read_settings(a_file(tmp_path, {"rows": rows})) == {"astra": {"strength": 3.0}}


def test_a_row_keeps_its_own_settings_where_none_is_given() -> None:
    own = {"depth": 0.5, "rank": "auto", "layers": (3,)}
    tried = {"rank": (1, "auto"), "layers": ((3,), (4, 5))}
    assert with_given("x", own, {"depth": 1}, tried) == own | {"depth": 1}
    assert with_given("x", own, {"rank": 8, "layers": (7,)}, tried) == {
        "depth": 0.5,
        "rank": 8,
        "layers": (7,),
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"deep": 0.5}, r"the option 'deep', which it doesn't search; it has depth, layers"),
        ({"depth": "0.5"}, r"depth='0.5', which is of another type than 0.5"),
        ({"depth": True}, "another type"),
        ({"layers": (0.5,)}, "another type"),
        ({"layers": 3}, "another type"),
    ],
)
def test_what_a_row_cannot_have_is_one_sentence(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        with_given("x", {"depth": 0.5, "layers": (3,)}, given, {})


@pytest.mark.parametrize("tree", [[1], 3, {"rows": [{"name": "a"}]}, {"astra": 3}, {"rows": 2}])
def test_a_file_of_another_shape_is_one_sentence(tmp_path: Path, tree: Any) -> None:
    with pytest.raises(DataError, match="neither"):
        read_settings(a_file(tmp_path, tree))


def test_settings_of_rows_that_are_not_compared_are_told(tmp_path: Path) -> None:
    there: dict[str, Any] = {"astra": ({}, {}), "cast": ({"depth": 0.5}, {})}
    with pytest.raises(UsageError, match=r"are of astro, and none of these.*astra, cast"):
        check_rows({"astro": {}}, there, tmp_path)
    check_rows({"astro": {"deep": 1}, "cast": {}}, there, tmp_path)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"cast": {}, "spo-vlm": {"step": 5}}, "give spo-vlm the option 'step'"),
        ({"care, tuned": {"strength": "1"}}, "care, tuned strength='1', which is of another type"),
    ],
)
def test_a_wrong_option_is_told_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr("care.pipeline.compare.Splits", lambda job: pytest.fail("it went on"))
    with pytest.raises(UsageError, match=said):
        compare(CompareJob(settings=a_file(tmp_path, given)))


def test_a_quick_comparison_takes_them_but_for_what_it_shortens() -> None:
    given, kinds = read_settings(SHIPPED), rivals(["all"])
    check_rows(given, open_options(kinds), SHIPPED)
    quick = unless_quicker(given, True)
    assert unless_quicker(given, False) == given
    assert quick["spo-vlm"] == {"depths": (0.2, 0.5), "strength": 0.25}
    for name, kind in kinds.items():
        [own] = settings_of(kind, 1, always=QUICKER.get(name, {}))
        assert with_given(name, own, quick.get(name, {}), kind.searched).keys() == own.keys()


def test_a_manifest_holds_what_was_given_and_nothing_without(tmp_path: Path) -> None:
    path = a_file(tmp_path, {"astra": {"depth": 0.5}})
    assert CompareJob(settings=path).config()["settings"] == {"astra": {"depth": 0.5}}
    assert "settings" not in CompareJob().config()
    with pytest.raises(DataError, match=r"none\.json"):
        CompareJob(settings=tmp_path / "none.json").config()


def test_those_of_the_readme_are_options_of_their_rows() -> None:
    given = read_settings(SHIPPED)
    for name, kind in rivals([]).items():
        (own,) = settings_of(kind, 1)
        assert with_given(name, own, given.get(name, {}), kind.searched).keys() == own.keys()
        assert given.get(name, {}).keys() == own.keys()
    assert settings_of(Astra, 1)[0].keys() == given["astra"].keys()
