"""`care chat` as a command: wrong use in one sentence before a model is loaded."""

from __future__ import annotations

import sys

import pytest

from care.errors import UsageError
from care.interfaces.chat.config import LOGIN_FROM, ChatConfig
from care.interfaces.cli import app as cli

LOGIN = "ada:a-password-to-look"


@pytest.fixture
def call(monkeypatch, capsys):
    """Run `care chat`: exit code and standard error."""
    monkeypatch.delenv(LOGIN_FROM, raising=False)

    def run(*arguments):
        code = cli.main(["chat", *arguments])
        shown = capsys.readouterr()
        assert shown.out == ""
        return code, shown.err

    return run


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Missing argument"),
        (("embedded",), "Missing option '--repair'"),
        (("embedded", "--repair", ""), "--repair is empty"),
        (("embedded", "--repair", "r", "--host", "0.0.0.0"), "nobody has a password"),
        (("embedded", "--repair", "r", "--login", "nowhere"), "nowhere"),
        (("embedded", "--repair", "r", "--port", "99999"), "--port"),
        (("embedded", "--repair", "r", "--max-images", "-1"), "--max-images"),
    ],
)
def test_wrong_use_is_one_sentence(call, arguments, said):
    code, err = call(*arguments)
    assert code == 2 and err.startswith("Error: ") and said in err and err.count("\n") == 1


def test_without_the_extra_one_sentence_says_what_to_install(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, err = call("embedded", "--repair", "r")
    assert code == 2 and err.count("\n") == 1 and "pip install 'care-vlm[chat]'" in err


def test_users_come_from_a_file_and_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv(LOGIN_FROM, "bob:another:password")
    file = tmp_path / "users"
    file.write_text(f"# who may look\n\n{LOGIN}\n")
    config = ChatConfig(repair="r", host="0.0.0.0", login=file)
    assert config.logins() == [("ada", "a-password-to-look"), ("bob", "another:password")]
    monkeypatch.delenv(LOGIN_FROM)
    assert ChatConfig(repair="r").logins() == []


@pytest.mark.parametrize("line", ["ada", "ada:", ":a-password-to-look", "ada:too-short", "ada:1"])
def test_a_login_that_can_be_guessed_is_refused_and_not_repeated(tmp_path, monkeypatch, line):
    monkeypatch.delenv(LOGIN_FROM, raising=False)
    file = tmp_path / "users"
    file.write_text(f"{LOGIN}\n{line}\n")
    with pytest.raises(UsageError, match="Login number 2") as told:
        ChatConfig(repair="r", login=file).logins()
    assert "too-short" not in str(told.value)
    file.write_text("# nobody\n")
    with pytest.raises(UsageError, match="There is no user"):
        ChatConfig(repair="r", login=file).logins()
