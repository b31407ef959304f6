"""Rows of tables: formats, damage, and cells that are what they are asked as."""

import sys

import pytest

from care.data.registry import REGISTRY
from care.data.source import Files
from care.data.tables import Row, read_rows
from care.errors import DataError, MissingDependencyError
from kit import suite_copies as copies


def rows_of(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_rows(path))


def test_csv_cells_may_hold_anything(tmp_path):
    text = '\ufeffgoal,note\n"a, ""b""\nc\u2028d",\n' + f'"{"x" * 200_000}",y\n'
    first, second = rows_of(tmp_path / "a.csv", text)
    assert first.text("goal") == 'a, "b"\nc\u2028d'
    assert first.where == f"{tmp_path / 'a.csv'}, row 1"
    assert len(second.text("goal")) == 200_000


def test_a_quote_within_a_cell_is_forgiven_and_a_short_row_lacks_cells(tmp_path):
    (row,) = rows_of(tmp_path / "a.csv", 'goal,note\n"a"b,c\n')
    assert row.text("note") == "c"
    (short,) = rows_of(tmp_path / "a.csv", "goal,note\na\n")
    with pytest.raises(DataError, match="column 'note' must be text"):
        short.text("note")


def test_columns_without_a_name_hide_no_other(tmp_path):
    (row,) = rows_of(tmp_path / "a.csv", "goal,,\na,b,c\n")
    assert row.text("goal") == "a" and len(row.fields) == 3


def test_json_in_its_three_shapes(tmp_path):
    assert [r.number("a") for r in rows_of(tmp_path / "a.json", '[{"a": 1}, {"a": "2"}]')] == [1, 2]
    (keyed,) = rows_of(tmp_path / "a.json", '{"x": {"a": 1}}')
    assert keyed.key == "x" and keyed.where.endswith("row 'x'")
    assert len(rows_of(tmp_path / "a.json", '{"a": 1}\n\n{"a": 2}\n')) == 2
    assert len(rows_of(tmp_path / "a.jsonl", '{"a": "x\u2028y"}\n{"a": 2}\n')) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "3", "neither a list nor an object"),
        ("a.json", "[3]", "row 1 holds 3"),
        ("a.jsonl", '{"a": 1}\n{"a"', "line 2 isn't valid JSON"),
        ("a.csv", b"goal\n\xff\n", "isn't UTF-8"),
        ("a.csv", "goal\n", "no rows"),
        ("a.txt", "goal\n", "isn't a table"),
        ("a.csv", 'goal,note\n"a,c\nd,e\n', "isn't whole CSV"),
        ("a.csv", "goal\na,b\n", "row 1 has more cells"),
        ("a.csv", "goal,note,goal\na,b,c\n", "2 columns named 'goal'"),
        ("a.tsv", "goal\tgoal\na\tb\n", "2 columns named 'goal'"),
        ("a.json", '{"1": {"a": 1}, "1": {"a": 2}}', "key '1' twice"),
        ("a.json", '[{"a": 1, "a": 2}]', "key 'a' twice"),
        ("a.json", '{"a": 1}\n{"a": 1, "a": 2}', "line 2 holds the key 'a' twice"),
        ("a.jsonl", '{"a": {"b": 1, "b": 2}}', "line 1 holds the key 'b' twice"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.jsonl", '{"a": ' + "[" * 300 + "]" * 300 + "}", "line 1 is nested deeper"),
    ],
)
def test_damaged_tables(name, content, message, tmp_path):
    with pytest.raises(DataError, match=message):
        rows_of(tmp_path / name, content)


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="can't be read"):
        list(read_rows(tmp_path / "none.csv"))


def test_half_an_emoji_in_a_table_is_replaced_with_one_warning(tmp_path):
    with pytest.warns(UserWarning, match="row 1 and maybe others") as said:
        rows = rows_of(tmp_path / "a.jsonl", '{"a": "\\ud83d"}\n{"a": "\\ud83d"}\n')
    assert len(said) == 1 and [row.text("a") for row in rows] == ["\ufffd"] * 2


def test_cells_are_what_they_are_asked_as():
    row = Row({"yes": "True", "no": 0, "n": " 12 ", "word": " Yes ", "id": 3, "none": None}, "here")
    assert row.flag("yes") and not row.flag("no")
    assert row.number("n") == 12
    assert row.one_of("word", ("yes", "no")) == "yes"
    assert (row.label("id"), row.label("n")) == ("3", "12")
    assert row.text("none", blank=True) == ""
    for ask in (row.text, row.number, row.flag, row.texts, row.inner, row.inners, row.picture):
        with pytest.raises(DataError, match="here: column 'none' must be"):
            ask("none")
        with pytest.raises(DataError, match="here: there is no column 'missing', but 'yes', 'no'"):
            ask("missing")


def test_a_picture_in_a_cell():
    data = copies.picture_bytes()
    for cell in (data, copies.as_base64(data), {"bytes": data, "path": "a.png"}):
        assert Row({"image": cell}, "here").picture("image") == data
    files = Files(REGISTRY["mmbench"].source)
    row = Row({"image": "bm8gcGljdHVyZQ=="}, "here")
    with pytest.raises(DataError, match="here: column 'image' must be a picture"):
        files.stored(row.picture("image"), row, "image")
    for cell in ("not base64", b"", {"bytes": None}, 3):
        with pytest.raises(DataError, match="must be a picture"):
            Row({"image": cell}, "here").picture("image")


def test_parquet_is_read_in_batches(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [
        {"image": copies.in_parquet(n % 3), "choices": ["a", "b"], "answer": n, "hint": None}
        for n in range(150)
    ]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = list(read_rows(tmp_path / "a.parquet"))
    assert [row.number("answer") for row in found] == list(range(150))
    assert found[149].texts("choices") == ["a", "b"]
    assert found[0].picture("image") == copies.picture_bytes(0)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="can't be read as Parquet"):
        list(read_rows(tmp_path / "b.parquet"))


def test_parquet_columns_of_one_name_are_refused(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = [pyarrow.array(["x"]), pyarrow.array(["y"])]
    parquet.write_table(pyarrow.Table.from_arrays(columns, ["a", "a"]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="2 columns named 'a'"):
        list(read_rows(tmp_path / "a.parquet"))


def test_parquet_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'care-vlm\[parquet\]'"):
        rows_of(tmp_path / "a.parquet", b"PAR1")
