"""`care serve` as a command: signals, and wrong use in one sentence before a model is loaded."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time

import httpx
import pytest

from care.interfaces.cli import app as cli
from kit.serving import KEY, user


@pytest.fixture
def call(monkeypatch, capsys):
    """Run `care serve` on a tiny model: exit code and lines on standard error."""

    def run(*arguments):
        code = cli.main(["serve", *arguments])
        shown = capsys.readouterr()
        assert shown.out == ""
        return code, shown.err.splitlines()

    return run


@pytest.fixture
def tiny_embedded(monkeypatch):
    from care.models.vlm import VLM
    from kit import tiny

    monkeypatch.setattr(VLM, "embedded", classmethod(lambda cls, dtype="auto": tiny.tiny_vlm()))


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order(call, tiny_embedded, tmp_path, port, number):
    from kit.watched import repaired

    assert threading.current_thread() is threading.main_thread(), "others get no signals"
    repair = repaired()
    repair.save(tmp_path / "repair")
    found = []

    def ask():
        root = f"http://127.0.0.1:{port}"
        try:
            for _ in range(3000):
                try:
                    if httpx.get(f"{root}/ready").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.02)
            body = {"messages": user(), "max_tokens": 4}
            found.append(httpx.post(f"{root}/v1/chat/completions", json=body, timeout=60).json())
        finally:
            os.kill(os.getpid(), number)

    client = threading.Thread(target=ask)
    client.start()
    before = signal.getsignal(number)
    code, lines = call("embedded", "--repair", str(tmp_path / "repair"), "--port", str(port))
    client.join()
    assert code == 0 and signal.getsignal(number) == before
    events = [json.loads(line)["event"] for line in lines]
    assert events == ["listening", "engine", "ready", "request", "ending"]
    assert found[0]["care"]["repair"] == repair.digest() and found[0]["model"] == "embedded"
    assert found[0]["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize("what", ["repair", "vLLM"])
def test_what_isnt_there_ends_it_in_one_sentence_before_a_model_is_loaded(
    call, monkeypatch, tmp_path, what
):
    from care.interfaces.serve import local_vllm
    from care.models.vlm import VLM
    from kit.watched import repaired

    monkeypatch.setattr(VLM, "embedded", lambda *_, **__: pytest.fail("a model was loaded"))
    monkeypatch.setattr(local_vllm, "find_spec", lambda name: None)
    repaired().save(tmp_path / "repair")
    repair = tmp_path / ("none" if what == "repair" else "repair")
    code, lines = call("embedded", "--repair", str(repair), "--port", "0", "--engine", "vllm")
    said = "none" if what == "repair" else "vLLM isn't installed here"
    assert code == 2 and lines[-1].startswith("Error: ") and said in lines[-1]
    assert [json.loads(line)["event"] for line in lines[:-1]] == ["listening", "ending"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Missing argument"),
        (("embedded",), "Missing option '--repair'"),
        (("embedded", "--repair", "r", "--host", "0.0.0.0"), "there are no keys"),
        (("embedded", "--repair", "r", "--host", "no.such.host.invalid"), "there are no keys"),
        (("embedded", "--repair", "r", "--keys", "nowhere"), "nowhere"),
        (("embedded", "--repair", "r", "--port", "99999"), "--port"),
        (("embedded", "--repair", "r", "--max-images", "-1"), "--max-images"),
        (("embedded", "--repair", ""), "--repair is empty"),
    ],
)
def test_wrong_use_is_one_sentence(call, arguments, said):
    code, lines = call(*arguments)
    assert code == 2 and len(lines) == 1 and lines[0].startswith("Error: ") and said in lines[0]


def test_an_address_that_cant_be_had_is_told(call, port, monkeypatch):
    with socket.create_server(("127.0.0.1", port)):
        code, lines = call("embedded", "--repair", "r", "--port", str(port))
    assert code == 2 and f"Port {port} of 127.0.0.1 can't be had" in lines[-1]
    monkeypatch.setenv("CARE_API_KEY", KEY)
    code, lines = call("embedded", "--repair", "r", "--host", "no.such.host.invalid")
    assert code == 2 and "is no address" in lines[-1] and len(lines) == 1


def test_without_the_extra_one_sentence_says_what_to_install(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    code, lines = call("embedded", "--repair", "r")
    assert code == 2 and len(lines) == 1 and "pip install 'care-vlm[serve]'" in lines[0]
