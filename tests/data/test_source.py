"""Tables and where they come from: formats, damage, fetching, digests, the cache."""

import hashlib
import io
import json
import urllib.request
import zipfile

import pytest

from care import load_suite
from care.data.registry import REGISTRY
from care.data.source import Files, Source, cache_folder
from care.data.tables import Row, read_rows
from care.errors import DataError, DownloadError, MissingDependencyError
from kit import suite_copies as copies

SOURCE = Source("made-up", "https://example.org/page", "MIT", "github", "some/where", "abc123")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("CARE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


@pytest.fixture
def web(monkeypatch):
    """Addresses that can be fetched and what was asked for."""
    served, asked = {}, []

    def urlopen(address, timeout):
        asked.append(address)
        if address not in served:
            raise urllib.error.URLError("offline")
        return io.BytesIO(served[address])

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return served, asked


# -- tables ------------------------------------------------------------------------------------


def rows_of(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_rows(path))


def test_csv_cells_may_hold_anything(tmp_path):
    text = '\ufeffgoal,note\n"a, ""b""\nc\u2028d",\n' + f'"{"x" * 200_000}",y\n'
    first, second = rows_of(tmp_path / "a.csv", text)
    assert first.text("goal") == 'a, "b"\nc\u2028d'
    assert first.where == f"{tmp_path / 'a.csv'}, row 1"
    assert len(second.text("goal")) == 200_000


def test_a_quote_within_a_cell_is_forgiven_but_not_an_endless_one(tmp_path):
    (row,) = rows_of(tmp_path / "a.csv", 'goal,note\n"a"b,c\n')
    assert row.text("note") == "c"
    with pytest.raises(DataError, match="isn't whole CSV"):
        rows_of(tmp_path / "a.csv", 'goal,note\n"a,c\nd,e\n')


def test_rows_of_another_length(tmp_path):
    with pytest.raises(DataError, match="row 1 has more cells"):
        rows_of(tmp_path / "a.csv", "goal\na,b\n")
    (short,) = rows_of(tmp_path / "a.csv", "goal,note\na\n")
    with pytest.raises(DataError, match="column 'note' must be text"):
        short.text("note")


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
    ],
)
def test_damaged_tables(name, content, message, tmp_path):
    with pytest.raises(DataError, match=message):
        rows_of(tmp_path / name, content)


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="can't be read"):
        list(read_rows(tmp_path / "none.csv"))


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
    files = Files(SOURCE)
    row = Row({"image": "bm8gcGljdHVyZQ=="}, "here")
    with pytest.raises(DataError, match="here: column 'image' must be a picture"):
        files.stored(row.picture("image"), row, "image")
    for cell in ("not base64", b"", {"bytes": None}, 3):
        with pytest.raises(DataError, match="must be a picture"):
            Row({"image": cell}, "here").picture("image")


def test_a_picture_of_a_cell_is_kept_once():
    files, row = Files(SOURCE), Row({}, "here")
    first = files.stored(copies.picture_bytes(1), row, "image")
    assert first == files.stored(copies.picture_bytes(1), row, "image")
    assert first.is_relative_to(cache_folder()) and first.suffix == ".png"
    assert first.read_bytes() == copies.picture_bytes(1)
    assert first != files.stored(copies.picture_bytes(2), row, "image")


def test_parquet_is_read_in_batches(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [
        {"image": copies.pictured(n % 3), "choices": ["a", "b"], "answer": n, "hint": None}
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


@pytest.mark.parametrize("name", ["scienceqa", "mme"])
def test_parquet_suites_in_their_real_format(name, tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    found = copies.make(name)
    for relative, rows in found.tables.items():
        (tmp_path / relative).parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / relative)
    suite = load_suite(name, path=tmp_path)
    assert len(suite) == found.n
    assert all(e.load_images()[0].size == (8, 6) for e in suite)


def test_parquet_names_the_extra(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'care-vlm\[parquet\]'"):
        rows_of(tmp_path / "a.parquet", b"PAR1")


# -- where they come from ----------------------------------------------------------------------


def raw(source, relative):
    return f"https://raw.githubusercontent.com/{source.at}/{source.revision}/{relative}"


def test_a_suite_is_fetched_once_at_its_commit(web):
    served, asked = web
    benchmark, found = REGISTRY["strongreject"], copies.make("strongreject")
    content = "category,source,forbidden_prompt\nBaking,made up,Bake a cake\n"
    served[raw(benchmark.source, found.first)] = content.encode()
    suite = load_suite("strongreject")
    assert (suite.source, suite.revision) == (benchmark.source.page, benchmark.source.revision)
    assert load_suite("strongreject") == suite
    assert asked == [raw(benchmark.source, found.first)]


def test_pictures_are_fetched_where_that_is_allowed(web):
    served, _ = web
    source, found = REGISTRY["mossbench"].source, copies.make("mossbench")
    served[raw(source, found.first)] = json.dumps(found.tables[found.first]).encode()
    for number, picture in enumerate(found.pictures):
        served[raw(source, picture)] = copies.picture_bytes(number)
    assert len(load_suite("mossbench")) == 3
    del served[raw(source, found.pictures[0])]
    assert len(load_suite("mossbench")) == 3  # they are kept


def test_offline_says_what_to_do(web):
    with pytest.raises(DownloadError, match=r"can't be fetched .*offline.*pass a copy with path"):
        load_suite("xstest")


def test_another_file_than_the_published_one_is_refused(web):
    served, _ = web
    served[f"{REGISTRY['mmbench'].source.at}/MMBench_DEV_EN.tsv"] = b"index\n1\n"
    with pytest.raises(DownloadError, match=r"has SHA-256 .* was published"):
        load_suite("mmbench")
    assert not list(cache_folder().rglob("*.tsv"))


def test_the_hub_is_asked_for_the_pinned_revision(monkeypatch, tmp_path):
    import huggingface_hub

    asked = []

    def download(repo, filename, *, repo_type, revision):
        asked.append((repo, filename, repo_type, revision))
        copies.make("jbb-benign").write(tmp_path / "hub")
        return str(tmp_path / "hub" / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    suite, source = load_suite("jbb-benign"), REGISTRY["jbb-benign"].source
    assert asked == [(source.at, "data/benign-behaviors.csv", "dataset", source.revision)]
    assert (suite.source, suite.revision) == (source.page, source.revision)


def test_errors_of_the_hub_are_one_sentence(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*_, **__):
        raise LocalEntryNotFoundError("no connection\nmany more lines")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(DownloadError, match=r"\(no connection\); go online, or pass a local copy"):
        load_suite("or-bench-hard")
    with pytest.raises(DownloadError, match=r"accept the terms at https\S+VLGuard and log in"):
        load_suite("vlguard-safe")


def test_a_release_is_unpacked_and_its_digest_recorded(web, tmp_path):
    served, asked = web
    found = copies.make("mm-vet").write(tmp_path / "copy")
    with zipfile.ZipFile(tmp_path / "mm-vet.zip", "w") as archive:
        for path in sorted(found.rglob("*.*")):
            archive.write(path, f"mm-vet/{path.relative_to(found)}")
    content = (tmp_path / "mm-vet.zip").read_bytes()
    served[f"{REGISTRY['mm-vet'].source.at}/v1/mm-vet.zip"] = content
    suite = load_suite("mm-vet")
    digest = hashlib.sha256(content).hexdigest()
    assert (len(suite), suite.revision) == (2, f"release v1, sha256:{digest}")
    assert load_suite("mm-vet") == suite and len(asked) == 1
    own = load_suite("mm-vet", path=tmp_path / "mm-vet.zip")
    assert own.examples == suite.examples and own.revision == f"sha256:{digest}"


@pytest.mark.parametrize("name", REGISTRY)
def test_every_source_is_pinned_and_has_a_licence(name):
    source = REGISTRY[name].source
    assert source.page.startswith("https://") and source.licence
    if source.host == "web":
        assert source.revision.startswith(("sha256:", "release "))
    else:
        assert len(source.revision) == 40 and int(source.revision, 16)
    assert str(source.place()) in source.instructions() or not source.by_hand


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
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
def test_what_is_there_twice_or_nested_without_end_is_refused(name, content, message, tmp_path):
    with pytest.raises(DataError, match=message):
        rows_of(tmp_path / name, content)


def test_columns_without_a_name_hide_no_other(tmp_path):
    (row,) = rows_of(tmp_path / "a.csv", "goal,,\na,b,c\n")
    assert row.text("goal") == "a" and len(row.fields) == 3


def test_half_an_emoji_in_a_table_is_replaced_with_one_warning(tmp_path):
    with pytest.warns(UserWarning, match="row 1 and maybe others") as said:
        rows = rows_of(tmp_path / "a.jsonl", '{"a": "\\ud83d"}\n{"a": "\\ud83d"}\n')
    assert len(said) == 1 and [row.text("a") for row in rows] == ["\ufffd"] * 2


def test_parquet_columns_of_one_name_are_refused(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = [pyarrow.array(["x"]), pyarrow.array(["y"])]
    parquet.write_table(pyarrow.Table.from_arrays(columns, ["a", "a"]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="2 columns named 'a'"):
        list(read_rows(tmp_path / "a.parquet"))


@pytest.mark.parametrize("damage", ["no archive", "cut", "a changed byte"])
def test_a_damaged_archive_is_one_sentence_and_leaves_nothing(damage, tmp_path, monkeypatch):
    monkeypatch.setenv("CARE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "mm-vet.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("mm-vet/mm-vet.json", "{}" * 500)
    whole = path.read_bytes()
    spoilt = {
        "no archive": b"nothing",
        "cut": whole[: len(whole) // 2],
        "a changed byte": whole[:200] + b"!" + whole[201:],
    }
    path.write_bytes(spoilt[damage])
    with pytest.raises(DataError, match="isn't a whole zip archive"):
        load_suite("mm-vet", path=path)
    kept = tmp_path / "cache" / "suites" / "unpacked"
    assert not kept.exists() or list(kept.iterdir()) == []
