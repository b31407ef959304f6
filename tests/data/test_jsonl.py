"""Files of examples: every field, roles and kinds, every malformed line, and the round trip."""

import json
from dataclasses import replace

import pytest

from care.data.jsonl import read_suite, write_suite
from care.data.registry import load_suite
from care.errors import DataError, UsageError
from kit import tiny


def write(path, *lines):
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def file(tmp_path):
    return tmp_path / "mine.jsonl"


def test_every_field_is_read(file):
    picture = file.parent / "pictures" / "a.png"
    picture.parent.mkdir()
    tiny.picture().save(picture)
    texts = {"id": "a1", "prompt": "What is this?", "goal": "name it", "kind": "malicious"}
    texts |= {"category": "naming", "system": "Be brief.", "opening": "This is"}
    lists = {"images": ["pictures/a.png"], "references": ["two", "2"]}
    suite = read_suite(write(file, texts | lists))
    (example,) = suite
    assert {name: getattr(example, name) for name in texts} == texts
    assert example.references == ("two", "2") and example.images == (picture,)
    assert (suite.name, suite.role, suite.source) == ("mine", "attack", str(file))
    assert example.suite == "mine"


def test_the_least_a_line_needs(file):
    suite = read_suite(write(file, {"prompt": "one"}, "", {"prompt": "two"}), "utility")
    assert [example.id for example in suite] == ["mine-0001", "mine-0003"]
    assert {example.kind for example in suite} == {"benign"}


def test_a_role_says_the_kind(file):
    write(file, {"prompt": "one"})
    assert read_suite(file, "attack").examples[0].kind == "malicious"
    assert read_suite(file, "over_refusal").examples[0].kind == "benign"
    with pytest.raises(DataError, match="line 1 has no kind"):
        read_suite(file)
    write(file, {"prompt": "one", "kind": "benign"})
    assert read_suite(file).role == "utility"
    with pytest.raises(DataError, match=r"line 1: this example is benign, but .* malicious"):
        read_suite(file, "attack")
    with pytest.raises(UsageError, match="role"):
        read_suite(file, "other")  # pyright: ignore[reportArgumentType]


def test_both_kinds_in_one_file_are_refused(file):
    write(file, {"prompt": "a", "kind": "malicious"}, {"prompt": "b", "kind": "benign"})
    with pytest.raises(DataError, match=r"line 2.*two files"):
        read_suite(file)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'prompt': 'a'}", "isn't valid JSON"),
        ("[1]", "isn't a JSON object"),
        ('{"prompt": "a", "prompt": "b"}', "holds the key 'prompt' twice"),
        ({"prompt": "a", "image": "b.png"}, "unknown field 'image'"),
        ({"prompt": 3}, "prompt must be text"),
        ({"prompt": None}, "prompt must be text"),
        ({"prompt": "a", "images": [3]}, "images must be a list of texts"),
        ({"prompt": "a", "images": {"b.png": 1}}, "images must be a list of texts"),
        ({"prompt": "a", "references": None}, "references must be a list of texts"),
        ({"prompt": "a", "kind": "bad"}, "kind 'bad' is unknown"),
        ({"prompt": "a", "id": ""}, "non-empty text id"),
        ({"goal": "a"}, "is empty"),
        ({"prompt": "a", "images": ["nowhere.png"]}, "no file"),
        ({"prompt": "a", "images": ["https://a.b/c.png"]}, "download it"),
        ({"prompt": "a", "id": "first"}, "that of line 1 already"),
    ],
)
def test_a_malformed_line_is_named(file, line, message):
    write(file, {"prompt": "fine", "id": "first"}, "", line)
    with pytest.raises(DataError, match=message) as caught:
        read_suite(file, "utility")
    assert str(caught.value).startswith(f"{file}, line 3")


def test_files_that_are_no_text(file, tmp_path):
    for content in (b"", b"\n \n"):
        file.write_bytes(content)
        with pytest.raises(DataError, match="holds no examples"):
            read_suite(file)
    file.write_bytes(b'{"prompt": "\xff"}')
    with pytest.raises(DataError, match="UTF-8"):
        read_suite(file)
    for path in (tmp_path / "nowhere.jsonl", tmp_path):
        with pytest.raises(DataError, match="can't be read"):
            read_suite(path)


def test_marks_and_line_separators_of_other_systems(file):
    prompt = "a\u2028b"
    text = json.dumps({"prompt": prompt, "kind": "benign"}, ensure_ascii=False)
    file.write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n" + text.encode() + b"\r\n")
    assert [example.prompt for example in read_suite(file)] == [prompt, prompt]


def test_a_suite_comes_back_as_it_was_written(file):
    suite = load_suite("beside-image").head(4)
    begun = (replace(suite.examples[0], opening="Sure, "), *suite.examples[1:])
    suite = replace(suite, examples=begun)
    again = load_suite(write_suite(suite, file), role="attack")
    assert [example.load_images() for example in again] == [e.load_images() for e in suite]
    for name in ("id", "prompt", "goal", "kind", "category", "references", "system", "opening"):
        assert [getattr(e, name) for e in again] == [getattr(e, name) for e in suite]


def test_a_picture_is_written_once(file):
    suite = read_suite(write(file, *({"id": str(i), "prompt": "a"} for i in range(2))), "utility")
    tiny.picture().save(file.parent / "a.png")
    lines = [{"id": e.id, "prompt": "a", "images": "a.png"} for e in suite]
    write_suite(read_suite(write(file, *lines), "utility"), file.parent / "out.jsonl")
    assert len(list((file.parent / "out-images").iterdir())) == 1


def test_half_an_emoji_in_a_file_is_replaced_and_its_line_is_told(file):
    file.write_text('{"prompt": "a", "id": "1"}\n{"prompt": "b \\ud83d", "goal": "\\ude00"}\n')
    with pytest.warns(UserWarning, match=r"line 2\).*U\+FFFD") as said:
        suite = read_suite(file, "utility")
    assert len(said) == 1
    assert [(e.prompt, e.goal) for e in suite] == [("a", ""), ("b \ufffd", "\ufffd")]
    assert read_suite(write_suite(suite, file), "utility").examples[1].prompt == "b \ufffd"
    file.write_text('{"prompt": "a \\ud83d\\ude00"}\n')
    assert read_suite(file, "utility").examples[0].prompt == "a 😀"
