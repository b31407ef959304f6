"""vLLM as a child of `care serve`: what it is told, what comes of it, and that it ends. The child
here is a stand-in (`kit/fake_vllm.py`); vLLM itself is asked in `test_vllm_engine`."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import torch

import kit
from care.data.conversation import Conversation
from care.errors import CareError, MissingDependencyError, StorageError, UsageError
from care.interfaces.cli import app as cli
from care.interfaces.requests.decoding import Decoding
from care.interfaces.serve import local_vllm
from care.interfaces.serve.child import Child, reason
from care.interfaces.serve.config import ServeConfig
from care.interfaces.serve.engine import Pending
from care.interfaces.serve.loading import load
from care.interfaces.serve.records import Log
from care.interfaces.vllm.settings import hashed
from care.models.responses import REFUSAL
from care.models.sites import Site
from care.models.spec import ModelSpec
from care.models.vlm import VLM
from kit import repairs, tiny
from kit.serving import until, user
from kit.watched import ALWAYS, repaired

FAKE = str(Path(kit.__file__).with_name("fake_vllm.py"))
IN_VLLM = (Site(1, "layer_out"), Site(2, "ffn_out"))


def a_repair(monitors=True, sites=IN_VLLM, **alarms):
    """One that the plugin takes."""
    found = repaired(**alarms).monitors if monitors else ()
    return replace(repairs.repair(sites=sites), monitors=found)


@pytest.fixture
def fake(monkeypatch, tmp_path, tmp_path_factory):
    """The stand-in in vLLM's place; `fake.told()` is what it was started with."""
    told = tmp_path / "told"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("t")))
    monkeypatch.setattr(local_vllm, "find_spec", lambda name: object())
    monkeypatch.setattr(local_vllm, "PROGRAM", (sys.executable, FAKE))
    monkeypatch.setattr(VLM, "embedded", classmethod(lambda cls, dtype="auto": tiny.tiny_vlm()))
    monkeypatch.setenv("FAKE_VLLM_TOLD", str(told))
    monkeypatch.setenv("CARE_API_KEY", "a-key-of-this-server-alone")

    def way(name):
        monkeypatch.setenv("FAKE_VLLM", name)

    return SimpleNamespace(told=lambda: json.loads(told.read_text()), file=told, way=way)


@contextmanager
def loaded(tmp_path, repair, **options):
    """An engine, its log and what failed; whatever it started has ended afterwards."""
    folder = repair.save(tmp_path / "repair")
    config = ServeConfig(repair=str(folder), model=ModelSpec(), **options)
    lines, failed = io.StringIO(), []
    with ExitStack() as held:
        engine = load(config, Log(stream=lines), held, failed.append)
        log = [json.loads(line) for line in lines.getvalue().splitlines()]
        yield SimpleNamespace(engine=engine, log=log, failed=failed)


def ask(engine, repaired=True, tell=None):
    asked = Conversation.of(user())
    waits = Pending(asked, Decoding(max_new_tokens=4), repaired, tell)
    return asyncio.run(_answer(engine, waits)).answer


async def _answer(engine, waits):
    return await engine.answer(waits)


def gone(*pids):
    """Whether none of these processes runs."""
    return not any(running(pid) for pid in pids)


def running(pid):
    try:
        said = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # it ended before, or while that was read
        return False
    return said.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("gpu", [False, True])
def test_what_reads_leaves_cores_to_a_vllm_that_has_no_gpu(fake, tmp_path, monkeypatch, gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with loaded(tmp_path, a_repair(answer=ALWAYS), engine="vllm"):
            assert torch.get_num_threads() == (4 if gpu else 2)
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def test_what_it_is_told_and_that_nobody_else_learns_it(fake, tmp_path):
    repair = a_repair(answer=ALWAYS)
    more = {"engine": "vllm", "vllm_args": "--max-num-seqs 7 --max-model-len=99"}
    with loaded(tmp_path, repair, **more) as found:
        told = fake.told()
        words, environment = told["words"], told["environment"]
        scratch = Path(words[-1]).parent
        assert stat.S_IMODE(scratch.stat().st_mode) == 0o700 and words[-2] == "--uds"
        settings = json.loads(words[words.index("--additional-config") + 1])["care"]
        assert settings["digest"] == repair.digest() and settings["parts"] == "opened"
        (log,) = (Path(line["log"]) for line in found.log if line["event"] == "vllm")
        assert stat.S_IMODE(log.stat().st_mode) == 0o600
        upstream = found.engine._vlm.upstream
        assert settings["switch"] == hashed(upstream.off) and len(upstream.off) > 40
        key = environment["VLLM_API_KEY"]
        assert len(key) > 40 and "CARE_API_KEY" not in environment
        for secret in (upstream.off, key):
            assert secret not in " ".join(words) + log.read_text() + json.dumps(found.log)
        assert words.count("--override-generation-config") == 1
        assert words.index("7") < words.index("--uds")  # what is said there is said last
        assert words.index("--max-model-len") < words.index("--max-model-len=99")
        assert (scratch / "model" / "config.json").exists()
        with httpx.Client(transport=httpx.HTTPTransport(uds=words[-1])) as other:
            assert other.get("http://vllm/v1/models").status_code == 401
        answer = ask(found.engine)
        assert (answer.text, answer.source) == (REFUSAL, "refusal")
        assert ask(found.engine, repaired=False).text == "bare words"
        assert found.engine.alive and not gone(*told["pids"])
    assert gone(*told["pids"]) and not scratch.exists() and not log.exists()
    assert not found.engine.alive and found.failed == []


def test_a_repair_without_monitors_is_its_edits(fake, tmp_path):
    repair = a_repair(monitors=False)
    fake.way("alike")  # gates may leave a request alone, so this isn't asked
    with loaded(tmp_path, repair, engine="vllm") as found:
        assert found.log[-1]["engine"] == "vllm"
        assert "parts" not in json.dumps(fake.told()["words"])
    fake.way("")
    with loaded(tmp_path, repair) as found:
        assert ask(found.engine).text == "other words"
        assert ask(found.engine, repaired=False).text == "bare words"


@pytest.mark.parametrize(
    ("way", "repair", "said"),
    [
        ("refuses", a_repair(), "ended before it served embedded (vLLM can't serve m with r: it"),
        pytest.param("silent", a_repair(), "doesn't say that the repair", marks=pytest.mark.slow),
        pytest.param(
            "alike", a_repair(), "answers alike with the channels", marks=pytest.mark.slow
        ),
        ("", a_repair(sites=repairs.SITES), "edits 2.mhsa_out, and in vLLM only"),
        ("", a_repair().monitors_only(), "has no channel that edits anything in vLLM"),
    ],
    ids=["refused", "silent", "alike", "sites", "no channel"],
)
def test_what_cant_be_served_falls_back_and_says_why(fake, tmp_path, way, repair, said):
    fake.way(way)
    with loaded(tmp_path, repair) as found:
        line = found.log[-1]
        assert line["event"] == "engine" and line["engine"] == "transformers"
        assert said in line["why"]
        assert ask(found.engine).text and found.engine.alive
        if fake.file.exists():
            assert gone(*fake.told()["pids"])
    with pytest.raises(CareError) as failed, loaded(tmp_path, repair, engine="vllm"):
        pass
    told = str(failed.value)
    assert said in told and told.endswith(".") and "\n" not in told
    if way == "refuses":  # its log is there to be read
        log = Path(told.partition("its log is ")[2].partition(")")[0])
        assert "Engine core initialization failed" in log.read_text()


def test_another_defense_and_no_vllm(fake, tmp_path, monkeypatch):
    lines = io.StringIO()
    with ExitStack() as held:
        config = ServeConfig(repair="self-reminder")
        load(config, Log(stream=lines), held, lambda error: None)
        assert "can be given repairs alone" in lines.getvalue()
    monkeypatch.setattr(local_vllm, "find_spec", lambda name: None)
    with loaded(tmp_path, a_repair()) as found:
        assert found.log[-1]["why"].startswith("vLLM isn't installed here")
    missing = pytest.raises(MissingDependencyError, match="pip install vllm")
    with missing, loaded(tmp_path, a_repair(), engine="vllm"):
        pass
    with loaded(tmp_path, a_repair(), engine="transformers") as found:
        assert found.log[-1] == {**found.log[-1], "engine": "transformers", "why": "as asked"}


def test_one_that_dies_ends_the_server_in_one_sentence(fake, tmp_path, capsys):
    folder = a_repair().save(tmp_path / "repair")
    statuses = []

    def kill():
        until(fake.file.exists)
        until(lambda: '"ready"' in seen.getvalue())
        pid, keeper, worker = fake.told()["pids"]
        os.kill(pid, signal.SIGKILL)
        until(lambda: gone(pid, keeper, worker))
        statuses.append("ended")

    seen = io.StringIO()
    stream, sys.stderr = sys.stderr, seen
    thread = threading.Thread(target=kill)
    thread.start()
    try:
        asked = ["embedded", "--repair", str(folder), "--port", "0", "--engine", "vllm"]
        code = cli.main(["serve", *asked])
    finally:
        sys.stderr = stream
    thread.join()
    *lines, last = seen.getvalue().splitlines()
    assert code == 2 and statuses == ["ended"]
    assert last.startswith("Error: vLLM, which makes the answers, ended (exit code 137; its log is")
    assert last.endswith("so start it again.")
    events = [json.loads(line)["event"] for line in lines]
    assert events == ["listening", "vllm", "engine", "ready", "ending"]
    assert json.loads(lines[2])["engine"] == "vllm"


PARENT = """
import sys, time
from pathlib import Path
from care.interfaces.serve.child import Child
scratch, log, *words = sys.argv[1:]
import os, signal
# What a shell starts in the background ignores it, and so would this.
signal.signal(signal.SIGINT, signal.default_int_handler)
child = Child(words, os.environ, Path(scratch), Path(log))
way = os.environ["WAY"]
print("started", flush=True)
sys.stdin.readline()
if way == "error":
    raise SystemExit("a crash")
if way == "os._exit":
    os._exit(3)
time.sleep(60)
"""
WORDS = (sys.executable, FAKE, "--model", "m", "--additional-config",
         json.dumps({"care": {"switch": "", "digest": "0" * 12}}), "--uds")  # fmt: skip


ENDS = ("SIGTERM", "SIGINT", "error", "os._exit", "no keeper")


@pytest.mark.parametrize(
    "way", ["kill -9", *(pytest.param(way, marks=pytest.mark.slow) for way in ENDS)]
)
def test_it_ends_with_its_parent_however_that_ends(tmp_path, way):
    scratch, told = tmp_path / "scratch", tmp_path / "told"
    scratch.mkdir()
    environment = {**os.environ, "FAKE_VLLM_TOLD": str(told), "WAY": way}
    words = [str(scratch), str(tmp_path / "log"), *WORDS, str(scratch / "socket")]
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, *words],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as parent:  # fmt: skip
        until(told.exists)
        pid, keeper, worker = json.loads(told.read_text())["pids"]
        assert not gone(pid) and not gone(keeper) and not gone(worker)
        if way == "no keeper":
            os.kill(keeper, signal.SIGKILL)
            until(lambda: gone(pid, keeper))
            os.kill(worker, signal.SIGKILL)  # vLLM ends its own; this stand-in doesn't
            parent.kill()
        elif way in ("error", "os._exit"):
            parent.communicate(b"\n")
        else:
            numbers = {"kill -9": signal.SIGKILL, "SIGTERM": signal.SIGTERM}
            parent.send_signal(numbers.get(way, signal.SIGINT))
        parent.wait(60)
        until(lambda: gone(pid, keeper, worker), 20)
    assert way == "no keeper" or not scratch.exists()


@pytest.mark.slow
def test_one_that_doesnt_listen_is_killed(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_VLLM", "stubborn")
    monkeypatch.setenv("FAKE_VLLM_TOLD", str(tmp_path / "told"))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    child = Child([*WORDS, str(scratch / "socket")], os.environ, scratch, None)
    until((tmp_path / "told").exists)
    child.finish()
    assert gone(*json.loads((tmp_path / "told").read_text())["pids"]) and not child.alive


def test_why_it_ended_is_found_in_its_log():
    said = (
        "(EngineCore pid=1) ERROR 11-29 12:00:00 [core.py:9] ValueError: No memory for blocks.\n"
        "RuntimeError: Engine core initialization failed. See root cause above. Failed: {}\n"
    )
    assert reason(said) == "ValueError: No memory for blocks"
    assert reason(f"care.errors.SiteError: It is gone.\n{said}") == "It is gone"
    assert reason("api_server.py: error: unrecognized arguments: --x\n") == (
        "error: unrecognized arguments: --x")  # fmt: skip
    assert reason("all is well\n") is None


def test_a_log_that_cant_be_written_is_told(tmp_path):
    with pytest.raises(StorageError, match="--vllm-log"):
        Child(["true"], os.environ, tmp_path / "none", tmp_path / "no" / "log")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"upstream": "http://x/v1", "engine": "vllm"}, "--engine vllm and --upstream both say"),
        ({"engine": "transformers", "vllm_args": "-O0"}, "--vllm-args is for a vLLM that is"),
        ({"upstream": "http://x/v1", "vllm_log": Path("l")}, "--vllm-log is for a vLLM that is"),
        ({"vllm_args": "--api_key=secret"}, "--vllm-args holds --api-key, which"),
        ({"vllm_args": "--seed 1 --uds x"}, "--vllm-args holds --uds, which"),
        ({"vllm_args": "--enable-log-req"}, "may take for --enable-log-requests, and that"),
        ({"vllm_args": "--additional_config.care.parts=edits"}, "for --additional-config, and"),
        ({"vllm_args": "--addit.a.b 1"}, "for --additional-config, and"),
        ({"vllm_args": "--max-num-seqs 7 --"}, "--vllm-args holds --, which"),
        ({"vllm_args": "--x 'y"}, "--vllm-args can't be read (No closing quotation)"),
    ],
)
def test_options_that_contradict_each_other(options, said):
    with pytest.raises(UsageError) as failed:
        ServeConfig(repair="r", **options)
    assert said in str(failed.value)


def test_the_share_of_a_gpu_that_is_left():
    assert local_vllm.share_left(80, 80) == 0.9
    assert local_vllm.share_left(60, 80) == 0.65
    with pytest.raises(UsageError, match="12% are free"):
        local_vllm.share_left(10, 80)


def test_a_long_folder_for_temporary_files_leaves_room_for_a_socket(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    scratch = local_vllm.new_scratch()
    with socket.socket(socket.AF_UNIX) as own:
        own.bind(str(local_vllm.socket_in(scratch)))
    assert scratch.parent == Path("/tmp")
    shutil.rmtree(scratch)


def test_other_options_that_begin_alike_may_be_said():
    words = "--model-impl transformers -O.mode=3 --compilation-config.mode 3 --port-range=1"
    assert ServeConfig(repair="r", vllm_args=words).vllm_words == words.split()


def test_words_that_a_user_says_keep_their_quotes():
    config = ServeConfig(repair="r", vllm_args=f"--x {shlex.quote(json.dumps({'a': 1}))}")
    assert config.vllm_words == ["--x", '{"a": 1}']
