"""Published suites on small copies of their real layout; every change of a schema is noticed."""

import re

import pytest

from care import load_suite
from care.data.registry import REGISTRY
from care.errors import DataError
from kit import suite_copies as copies
from kit.suite_copies import changed, folder, load, own_cache  # noqa: F401

NAMES = list(REGISTRY)


@pytest.mark.parametrize("name", NAMES)
def test_a_suite_is_read_from_a_copy(name, folder):
    suite, benchmark = load(name, folder), REGISTRY[name]
    assert (suite.name, suite.role) == (name, benchmark.role)
    assert suite.licence == benchmark.source.licence != ""
    assert suite.source == f"{benchmark.source.page}, read from {folder}"
    assert re.fullmatch("sha256:[0-9a-f]{64}", suite.revision)
    assert len(suite) == copies.make(name).n
    for example in suite:
        assert example.suite == name
        assert example.goal
        assert example.category or name in ("advbench", "vlsafe")
        assert example.kind == ("malicious" if suite.role == "attack" else "benign")
        assert bool(example.references) == (suite.role == "utility")
        assert all(image.size[0] > 1 for image in example.load_images())


@pytest.mark.parametrize("name", NAMES)
def test_ids_stay_when_rows_are_added_or_read_again(name, folder, tmp_path):
    before = {e.id: e.digest() for e in load(name, folder)}
    found = copies.make(name)
    if isinstance(found.tables[found.first], list) and "scienceqa" not in name:
        found.tables[found.first] = found.tables[found.first][::-1]
    again = load_suite(name, path=found.write(tmp_path / "again"))
    if name == "mme":  # its two questions about a picture have no ids but their order
        assert before.keys() == {e.id for e in again}
    elif name != "advbench-m":  # request i is asked beside picture i
        assert before == {e.id: e.digest() for e in again}


def rename(rows, column):
    for row in rows:
        row[f"new {column}"] = row.pop(column, "")


def clear(rows, column):
    rows[0][column] = ""


def spoil(rows, column):
    rows[0][column] = [3.5]


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        *((n, rename, "there is no column {}") for n in NAMES),
        *((n, clear, "column {} must be") for n in NAMES),
        *((n, spoil, "column {} must be") for n in NAMES if "sv" not in copies.make(n).first[-3:]),
    ],
)
def test_a_changed_column_is_an_error(name, damage, message, folder):
    found = copies.make(name)
    for column in set(found.columns()) - set(found.blank.split() if damage is clear else ()):
        table = changed(name, folder, lambda rows, column=column: damage(rows, column))
        with pytest.raises(DataError, match=re.escape(message.format(repr(column)))) as caught:
            load_suite(name, path=folder)
        assert f"{table}, row " in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_or_missing_table_is_an_error(name, folder):
    found = copies.make(name)
    found.write(folder)
    (folder / found.first).write_text("", encoding="utf-8")
    with pytest.raises(DataError, match=r"no rows"):
        load_suite(name, path=folder)
    (folder / found.first).unlink()
    with pytest.raises(DataError, match=re.escape(f"no file {found.first}")):
        load_suite(name, path=folder)


PICTURED = [n for n in NAMES if copies.make(n).pictures and not n.startswith("jailbreakv")]


@pytest.mark.parametrize("name", PICTURED)
def test_a_missing_picture_is_an_error(name, folder):
    found = copies.make(name)
    found.write(folder)
    for picture in found.pictures:
        (folder / picture).unlink()
    with pytest.raises(DataError, match=r"row .*: the picture \S+ isn't in") as caught:
        load_suite(name, path=folder)
    assert REGISTRY[name].source.instructions() in str(caught.value)


PARTS = (
    *("data/imgs", "data/images", "data/multimodal_behavior_images"),
    *("dataset/advimage", "test", "images", ""),
)
"""Folders of pictures in the sources."""


@pytest.mark.parametrize("name", PICTURED)
def test_pictures_may_lie_in_a_folder_of_their_own(name, folder, tmp_path):
    found = copies.make(name)
    suite = load_suite(name, path=found.write(folder))
    inside, digest = suite.examples[0].images[0].relative_to(folder), suite.digest()
    parts = next(part for part in PARTS if str(inside).startswith(part))
    own = tmp_path / "own"
    (folder / parts).rename(own)
    if parts == "":
        found.pictures = []
        found.write(folder)
    again = load_suite(name, path=folder, images=own)
    assert again.examples[0].images[0].is_relative_to(own)
    assert again.digest() == digest


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_is_the_same_whatever_the_order(name, folder):
    whole = load(name, folder)
    group = REGISTRY[name].group
    some = load_suite(name, path=folder, limit=1, seed=3)
    assert len({group(e.id) for e in some}) == 1
    assert set(some) <= set(whole)
    assert load_suite(name, path=folder, limit=1, seed=3) == some
    assert load_suite(name, path=folder, limit=10**6) == whole


def test_a_sample_needs_no_pictures_but_its_own(folder):
    found = copies.make("mossbench")
    found.write(folder)
    (example,) = load_suite("mossbench", path=folder, limit=1)
    for picture in found.pictures:
        if folder / picture not in example.images:
            (folder / picture).unlink()
    assert load_suite("mossbench", path=folder, limit=1).examples == (example,)
    with pytest.raises(DataError, match="isn't in"):
        load_suite("mossbench", path=folder, limit=2)


def test_other_seeds_draw_other_samples_and_greater_ones_hold_smaller_ones(folder):
    found = copies.make("redteam-2k")
    found.tables[found.first] = [
        {"id": n, "question": f"Bake {n} cakes.", "policy": "Bias"} for n in range(40)
    ]
    found.write(folder)

    def drawn(limit, seed):
        return [e.id for e in load_suite("redteam-2k", path=folder, limit=limit, seed=seed)]

    assert len(drawn(10, 0)) == 10
    assert drawn(10, 0) != drawn(10, 1)
    assert set(drawn(5, 0)) < set(drawn(10, 0))
    assert drawn(10, 0) == sorted(drawn(10, 0), key=int)


def test_one_table_may_be_passed_by_itself(folder):
    found = copies.make("strongreject")
    found.write(folder)
    suite = load_suite("strongreject", path=folder / found.first)
    assert len(suite) == found.n
    copies.make("advbench-m").write(folder)
    with pytest.raises(DataError, match="one file, but this suite also needs"):
        table = folder / "dataset/advbench/1_bomb_explosive.csv"
        load_suite("advbench-m", path=table, images=folder / "dataset/advimage")


def test_goals_stand_beside_the_text_of_an_attack(folder):
    for name in ("jailbreakv", "mm-safetybench", "figstep"):
        for example in load(name, folder / name):
            assert example.goal != example.prompt


def same_examples(name, folder, change):
    """A copy has the same examples after `change(rows, columns)` of its first table."""
    before, found = load(name, folder), copies.make(name)
    change(found.rows(), found.columns())
    after = load_suite(name, path=found.write(folder.parent / "changed"))
    assert [(e.id, e.digest()) for e in after] == [(e.id, e.digest()) for e in before]


@pytest.mark.parametrize("name", NAMES)
def test_columns_that_arent_used_arent_demanded(name, folder):
    def drop(rows, columns):
        for row in rows:
            for column in row.keys() - columns:
                del row[column]

    same_examples(name, folder, drop)


INDEX = {
    **dict.fromkeys(("jbb-harmful", "jbb-benign"), "Index"),
    **dict.fromkeys(("xstest", "xstest-unsafe", "redteam-2k", "jailbreakv-mini"), "id"),
    **dict.fromkeys(("jailbreakv", "vlguard-safe"), "id"),
    **dict.fromkeys(("harmbench", "harmbench-multimodal"), "BehaviorID"),
    **dict.fromkeys(("mmbench", "mmbench-plain"), "index"),
    "mossbench": "pid",
    "pope-random": "question_id",
}


@pytest.mark.parametrize("lost", ["", "Unnamed: 0", "__index_level_0__"])
@pytest.mark.parametrize("name", INDEX)
def test_an_index_that_has_lost_its_name_is_read(name, lost, folder):
    def lose(rows, columns):
        for row in rows:
            row[lost] = row.pop(INDEX[name])

    same_examples(name, folder, lose)
