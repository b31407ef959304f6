"""The one door to all suites: names, files, splits, and what the cards state."""

import inspect
from pathlib import Path

import pytest

from care.data.registry import REGISTRY, fitted_suite, load_suite
from care.data.small_world import suites as world
from care.errors import DataError, UsageError

NAMES = list(REGISTRY)


def test_suites_by_name():
    assert load_suite("lookalike", "validation").role == "over_refusal"
    assert load_suite("direct").examples != load_suite("direct", "fit").examples
    with pytest.raises(UsageError, match=r"no suite 'nope'.*care suites list"):
        load_suite("nope")
    with pytest.raises(UsageError, match="no split 'train'"):
        load_suite("direct", "train")


def test_what_was_fitted_on_is_the_fit_split_of_the_small_world(tmp_path):
    found = fitted_suite("naming")
    assert found.revision == "fit" and len(found) == world.FIT_LENGTHS["naming"]
    (tmp_path / "own.jsonl").write_text('{"prompt": "a", "kind": "benign"}')
    assert len(fitted_suite(str(tmp_path / "own.jsonl"))) == 1


def test_wrong_use(tmp_path):
    folder = tmp_path / "copy"
    with pytest.raises(UsageError, match=r"no suite 'advbnch'; did you mean advbench"):
        load_suite("advbnch")
    with pytest.raises(UsageError, match="limit is 0"):
        load_suite("advbench", limit=0)
    with pytest.raises(UsageError, match="for published suites"):
        load_suite("direct", path=folder)
    with pytest.raises(DataError, match="no file or folder"):
        load_suite("advbench", path=folder)
    folder.mkdir()
    with pytest.raises(DataError, match="no folder of pictures"):
        load_suite("figstep", path=folder, images=folder / "none")


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
