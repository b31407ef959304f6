"""The one door to all suites: names, files, splits, and what the cards state."""

import inspect
from pathlib import Path

import pytest

from care.data.registry import REGISTRY, fitted_suite, load_suite
from care.data.small_world import suites as world
from care.errors import DataError, UsageError
from kit.refusals import refusals

NAMES = list(REGISTRY)


def test_suites_by_name():
    assert load_suite("lookalike", "validation").role == "over_refusal"
    assert load_suite("direct").examples != load_suite("direct", "fit").examples


def test_what_was_fitted_on_is_the_fit_split_of_the_small_world(tmp_path):
    found = fitted_suite("naming")
    assert found.revision == "fit" and len(found) == world.FIT_LENGTHS["naming"]
    (tmp_path / "own.jsonl").write_text('{"prompt": "a", "kind": "benign"}')
    assert len(fitted_suite(str(tmp_path / "own.jsonl"))) == 1


test_wrong_use = refusals(
    (UsageError, "no suite 'nope'.*care list suites", lambda: load_suite("nope")),
    (UsageError, "no suite 'advbnch'; did you mean advbench", lambda: load_suite("advbnch")),
    (UsageError, "no split 'train'", lambda: load_suite("direct", "train")),
    (UsageError, "limit is 0", lambda: load_suite("advbench", limit=0)),
    (UsageError, "for published suites", lambda tmp_path: load_suite("direct", path=tmp_path)),
    (DataError, "no file or folder", lambda: load_suite("advbench", path="nowhere")),
    (
        DataError,
        "no folder of pictures",
        lambda tmp_path: load_suite("figstep", path=tmp_path, images=tmp_path / "none"),
    ),
)


@pytest.mark.parametrize("name", NAMES)
def test_a_card_gives_its_reader_what_it_takes(name):
    benchmark = REGISTRY[name]
    inspect.signature(benchmark.reader).bind(object(), **benchmark.options)
    assert benchmark.role in ("attack", "over_refusal", "utility")
    assert benchmark.about.endswith(".") and benchmark.size >= 0


@pytest.mark.parametrize("name", REGISTRY)
def test_every_source_is_pinned_and_has_a_licence(name):
    source = REGISTRY[name].source
    assert source.page.startswith("https://") and source.licence
    if source.host == "web":
        assert source.revision.startswith(("sha256:", "release "))
    else:
        assert len(source.revision) == 40 and int(source.revision, 16)
    assert str(source.place()) in source.instructions() or not source.by_hand


@pytest.mark.parametrize("name", NAMES)
def test_the_documentation_has_every_suite(name):
    page = (Path(__file__).parents[2] / "docs" / "suites.md").read_text(encoding="utf-8")
    benchmark = REGISTRY[name]
    for fact in (f"`{name}`", benchmark.source.revision, benchmark.source.licence):
        assert fact in page
    assert not benchmark.size or f"{benchmark.size:,}" in page
