"""Rows: a file cut anywhere keeps every whole one, each under its own key."""

from hypothesis import given, settings
from hypothesis import strategies as st

from care.runs.reading import valid_text
from care.runs.rows import Rows

ANY_TEXT = st.text(st.characters(exclude_categories=()))


@given(texts=st.lists(st.text(max_size=6), min_size=1, max_size=4), cut=st.integers(0, 150))
@settings(max_examples=80, deadline=None)
def test_a_file_cut_anywhere_keeps_every_whole_row(tmp_path_factory, texts, cut):
    path = tmp_path_factory.mktemp("cut") / "rows.jsonl"
    rows = Rows(path)
    for number, text in enumerate(texts):
        rows.add({"key": str(number), "text": text})
    rows.close()
    data = path.read_bytes()
    path.write_bytes(data[:cut])
    whole = data[:cut].count(b"\n")
    again = Rows(path)
    assert [row["text"] for row in again.all()] == texts[:whole]
    for number in range(whole, len(texts)):
        again.add({"key": str(number), "text": texts[number]})
    again.close()
    assert path.read_bytes() == data


@settings(max_examples=20)
@given(ANY_TEXT.filter(bool))
def test_a_row_is_found_again_under_its_own_key(tmp_path_factory, key):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = Rows(path)
    rows.add({"key": key, "answer": key})
    rows.close()
    again = Rows(path)
    again.close()
    for one in (rows, again):
        assert key in one
        assert one.get(key) == {"key": valid_text(key), "answer": valid_text(key)}
