"""What of the integration with Inspect runs without it: the extra, messages, batches."""

from __future__ import annotations

import base64
import sys
import tomllib
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import anyio
import numpy as np
import pytest

from care.errors import DataError, MissingDependencyError, UsageError
from care.interfaces.cli import app as cli
from care.interfaces.inspect.logs import write_logs
from care.interfaces.requests.batching import Batches
from care.interfaces.requests.chat import conversation, images_of
from kit.inspect_requests import asked
from kit.tiny import picture

# -- the extra -------------------------------------------------------------------------------------


def test_without_the_extra_one_sentence_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'care-vlm\[inspect\]'"):
        write_logs(tmp_path, tmp_path / "logs")
    assert (
        cli.main(["export", str(tmp_path), "--format", "inspect", "--out", str(tmp_path / "logs")])
        == 2
    )
    told = capsys.readouterr().err
    assert told.startswith("Error: ") and told.count("\n") == 1 and "[inspect]" in told
    assert not (tmp_path / "logs").exists()


def test_the_entry_point_names_a_module_that_is_there_and_the_extra_exists():
    root = Path(__file__).parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    module = project["entry-points"]["inspect_ai"]["care"]
    assert (root / "src" / f"{module.replace('.', '/')}.py").is_file()
    assert project["optional-dependencies"]["inspect"][0].startswith("inspect-ai>=")


# -- messages --------------------------------------------------------------------------------------


def user(*parts):
    return SimpleNamespace(role="user", content=list(parts))


def text(said):
    return SimpleNamespace(type="text", text=said)


def image(address, detail="auto"):
    return SimpleNamespace(type="image", image=address, detail=detail)


def data_uri(seed=0):
    buffer = BytesIO()
    picture(seed).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def test_turns_and_places_of_images_are_kept(tmp_path):
    picture(1).save(tmp_path / "one.png")
    chat = [
        SimpleNamespace(role="system", content="Be brief."),
        user(text("Before"), image(data_uri(0)), text("after")),
        SimpleNamespace(role="assistant", content="A car.", tool_calls=None),
        user(image(str(tmp_path / "one.png")), image((tmp_path / "one.png").as_uri())),
    ]
    found = conversation(chat)
    assert [message["role"] for message in found.messages()] == [
        "system", "user", "assistant", "user",
    ]  # fmt: skip
    assert [part["type"] for part in found.messages()[1]["content"]] == ["text", "image", "text"]
    pixels = [np.asarray(shown) for shown in found.load_images()]
    assert np.array_equal(pixels[0], np.asarray(picture(0)))
    assert np.array_equal(pixels[1], np.asarray(picture(1)))
    assert np.array_equal(pixels[1], pixels[2])
    assert len(images_of(chat)) == 3
    assert conversation(chat).id == found.id != conversation(chat[1:]).id


def test_the_model_reads_a_conversation_as_its_template_writes_it(vlm):
    found = conversation(
        [
            user(text("Hi"), image(data_uri())),
            SimpleNamespace(role="assistant", content="Hello."),
            user(text("Why?")),
        ]
    )
    ids = vlm.batch(found).inputs["input_ids"][0]
    shown = vlm.tokenizer.decode(ids)
    assert shown == (
        "<|user|>Hi" + "<image>" * 4 + "<|end|><|assistant|>Hello.<|end|><|user|>Why?<|end|>"
        "<|assistant|>"
    )


def test_a_last_turn_of_the_assistant_s_begins_the_answer(vlm):
    asked = [user(text("Why?"))]
    begun = [*asked, SimpleNamespace(role="assistant", content="Because the")]
    found = conversation(begun)
    assert found.opening == "Because the" and found.prompt == "Why?"
    assert [turn["role"] for turn in found.messages()] == ["user"]
    assert found.id != conversation(asked).id
    shown = vlm.tokenizer.decode(vlm.batch(found).inputs["input_ids"][0])
    assert shown == "<|user|>Why?<|end|><|assistant|>Because the"


@pytest.mark.parametrize(
    ("messages", "error", "said"),
    [
        ([], UsageError, "ends with a user's message, .*got nothing"),
        ([SimpleNamespace(role="assistant", content="x")], UsageError, "message, .*got nothing"),
        ([SimpleNamespace(role="system", content="x")], UsageError, "role 'system'"),
        (
            [user(text("x")), SimpleNamespace(role="assistant", content=[image("x.png")])],
            UsageError,
            "begins holds an image",
        ),
        ([user(SimpleNamespace(type="audio", audio="a.wav"))], UsageError, "type 'audio'"),
        ([user(SimpleNamespace(type="video", video="a.mp4"))], UsageError, "type 'video'"),
        ([SimpleNamespace(role="tool", content="4"), user(text("x"))], UsageError, "tool call"),
        (
            [SimpleNamespace(role="assistant", content="", tool_calls=[1]), user(text("x"))],
            UsageError,
            "tool call",
        ),
        ([user(image("x.png", detail="high"))], UsageError, "detail 'high'"),
        ([user(image("https://example.org/x.png"))], DataError, "download it"),
        ([user(image("/nowhere/x.png"))], DataError, "there is no file"),
        ([user(image("data:image/png;base64,AAAA"))], DataError, "no readable image"),
        ([user(image("data:image/png,AAAA"))], DataError, "isn't base64"),
        ([user()], DataError, "is empty"),
    ],
)
def test_what_cant_be_read_is_an_error(messages, error, said):
    with pytest.raises(error, match=said):
        conversation(messages)


# -- batches ---------------------------------------------------------------------------------------


def test_what_is_asked_at_once_is_worked_off_together_and_in_order():
    seen = []

    def work(settings, items):
        seen.append(list(items))
        return [item * 10 for item in items]

    batches = Batches(4, work)
    assert asked(batches, range(10)) == [item * 10 for item in range(10)]
    assert seen == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert asked(batches, [3]) == [30]  # in another event loop


def test_only_requests_with_the_same_settings_share_a_batch():
    seen = []

    def work(settings, items):
        seen.append((settings, list(items)))
        return items

    asked(Batches(8, work), range(6), settings=lambda item: item % 2)
    assert seen == [(0, [0, 2, 4]), (1, [1, 3, 5])]


def test_one_bad_request_doesnt_take_the_others_along():
    def work(settings, items):
        if 2 in items:
            raise DataError("this one")
        return items

    found = asked(Batches(8, work), range(4))
    assert [*found[:2], found[3]] == [0, 1, 3] and isinstance(found[2], DataError)


def test_an_error_about_all_is_everybodys_and_isnt_tried_again():
    calls = []

    def work(settings, items):
        calls.append(items)
        raise UsageError("wrong")

    found = asked(Batches(8, work), range(4))
    assert all(isinstance(error, UsageError) for error in found) and len(calls) == 1


def test_a_request_that_is_cancelled_leaves_the_others_alone():
    batches = Batches(8, lambda settings, items: items)
    results = []

    async def leave():
        with anyio.move_on_after(0.01):
            await batches.ask(None, "gone")

    async def stay():
        results.append(await batches.ask(None, "here"))

    async def both():
        async with anyio.create_task_group() as group:
            group.start_soon(leave)
            group.start_soon(stay)

    anyio.run(both)
    assert results == ["here"] and batches._waiting == []
