"""A repair inside a real engine of vLLM, on the embedded model: `make test-vllm`.

Answers are greedy and in float32, and have to be those of the transformers path, word for word.
"""

import base64
import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("vllm")

from care.data.images import load_image
from care.data.small_world.suites import load
from care.defenses.monitors.detector import Detector
from care.defenses.monitors.monitor import Monitor
from care.defenses.monitors.reading import Exchange
from care.defenses.repair.channel import Channel
from care.defenses.repair.repair import Repair
from care.defenses.repair.subspace import random_subspace
from care.errors import UsageError
from care.interfaces.serve.upstream import OFF_FROM, Upstream
from care.interfaces.vllm.command import module_command, serve_command, settings_for
from care.interfaces.vllm.limits import REQUESTS
from care.interfaces.vllm.settings import KEY, OFF
from care.models.batches import render
from care.models.identity import model_facts
from care.models.sites import Site
from care.models.spec import ModelSpec
from care.models.vlm import VLM
from care.typed import to_tree
from kit.repairs import a_gate
from kit.vllm_engine import ENVIRONMENT, SMALL

pytestmark = [pytest.mark.vllm, pytest.mark.embedded, pytest.mark.slow]

WORD = "sesame"
KEY_HERE, BARE_KEY_HERE = "a-key-of-this-test", "a-bare-key-of-this-test"
SUITES = ("text-jailbreak", "beside-image", "benign", "vqa")


def channel(site, scopes, rank, seed, **options):
    """Random directions, strong enough to change most answers."""
    drawn = random_subspace(576, rank, np.zeros(576), seed)
    strength = options.pop("strength", 2.0)
    return Channel(Site.parse(site), "text", scopes, drawn, strength=strength, **options)


REPAIRS = {
    "gated": (
        channel(
            "12.layer_out",
            ("decision",),
            150,
            1,
            strength=4.0,
            gate=a_gate(2, 1, 576, (-1e3, 0.0)),
        ),
    ),
    "mixed": (
        channel("12.ffn_out", ("decision", "response"), 60, 1),
        channel("12.ffn_out", ("image",), 100, 2),
        channel("20.layer_out", ("text",), 12, 3, strength=1.0),
    ),
    "everywhere": (channel("12.ffn_out", ("all",), 60, 1),),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The embedded model, repairs and requests in folders, and answers of the transformers path."""
    folder = tmp_path_factory.mktemp("world")
    vlm = VLM.embedded(dtype="float32")
    vlm.model.save_pretrained(folder / "model")
    vlm.processor.save_pretrained(folder / "model")
    examples = [each for name in SUITES for each in list(load(name, "validation", 40))[:2]]
    requests = []
    for place, example in enumerate(examples):
        image = None
        for picture in example.images:
            image = str(folder / f"{place}.png")
            load_image(picture).save(image)
        requests.append({"prompt": render(vlm.processor, example), "image": image})
    bare = [each.text for each in vlm.answers(examples, max_new_tokens=16)]
    answers: dict[str, Any] = {"bare": bare}
    for name, channels in REPAIRS.items():
        repair = Repair(channels, name=name, manifest={"model": model_facts(vlm)})
        repair.save(folder / name)
        found = repair.answer(vlm, examples, max_new_tokens=16)
        answers[name] = [each.text for each in found]
        assert sum(a != b for a, b in zip(answers[name], bare, strict=True)) >= 2
    watched = _watched(vlm, examples, bare)
    watched.save(folder / "watched")
    answers["watched"] = watched.answer(vlm, examples, max_new_tokens=16)
    assert {each.source for each in answers["watched"]} >= {"model", "repaired"}
    return folder, examples, requests, answers


def _watched(vlm, examples, bare):
    """A repair with a random monitor that alarms at half of the answers, but not at all of those
    that are begun again then."""
    found = Repair(REPAIRS["gated"], name="watched", manifest={"model": model_facts(vlm)})
    again = [each.text for each in found.opened().answer(vlm, examples, max_new_tokens=16)]
    for seed in range(20):
        rng = np.random.default_rng(seed)
        detector = Detector(*(rng.standard_normal(576).astype(np.float32) for _ in range(2)))
        monitor = Monitor("answer", 0.0, Site.parse("12.layer_out"), detector)
        first, then = (_highest(monitor, vlm, examples, texts) for texts in (bare, again))
        threshold = float(np.median(first))
        if (then[first > threshold] < threshold).any():
            watching = dataclasses.replace(monitor, threshold=threshold)
            return dataclasses.replace(found, monitors=(watching,))
    raise AssertionError("no monitor alarms at some answers alone")


def _highest(monitor, vlm, examples, texts):
    """The highest score of each answer."""
    said = [Exchange(e, text) for e, text in zip(examples, texts, strict=True)]
    return np.array([max(score for _, score in each) for each in monitor.scores(vlm, said, 8)])


def engine(world, name, word=None, off=(), **options):
    """What an engine answers; requests in `off` hold the word."""
    folder, _, requests, _ = world
    if name != "bare":
        settings = settings_for(folder / name, word=word)
        options["additional_config"] = {KEY: to_tree(settings, "x")}
        options["logits_processors"] = [REQUESTS]
    told = [{**each, "arguments": {OFF: word} if i in off else None}
            for i, each in enumerate(requests)]  # fmt: skip
    file = folder / f"{name}-{len(list(folder.glob('*.json')))}.json"
    asked = {"model": str(folder / "model"), "options": options, "requests": told}
    file.write_text(json.dumps(asked))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(
        [sys.executable, "-m", "kit.vllm_engine", str(file)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    out = Path(f"{file}.out")
    return json.loads(out.read_text()) if out.exists() else None, ran.stdout + ran.stderr


def test_without_a_repair_the_class_is_vllms_own(world):
    found, said = engine(world, "bare", enforce_eager=True)
    assert found is not None, said
    assert found["class"].startswith("vllm.model_executor.models.transformers:")
    assert [text.strip() for text in found["texts"]] == world[3]["bare"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gated", {"enforce_eager": True, "enable_prefix_caching": False}),
        ("gated", {"enable_prefix_caching": False}),
        # prompts in pieces
        (
            "mixed",
            {
                "enforce_eager": True,
                "enable_prefix_caching": False,
                "max_num_batched_tokens": 48,
            },
        ),
        ("everywhere", {"enforce_eager": True, "enable_prefix_caching": True}),
    ],
    ids=["eager", "compiled", "pieces", "cached"],
)
def test_answers_are_those_of_transformers(world, name, options):
    found, said = engine(world, name, **options)
    assert found is not None, said
    assert found["class"].startswith("care.interfaces.vllm.models:")
    assert said.count(f"care: {name} on ") == 1
    assert [text.strip() for text in found["texts"]] == world[3][name]
    if name != "everywhere":
        assert found["state"] == ["RepairedState", "DefaultModelState"]


def test_a_request_that_may_is_answered_without_it(world):
    off = (0, 3, 5)
    how = {"enforce_eager": True, "enable_prefix_caching": False}
    found, said = engine(world, "everywhere", word=WORD, off=off, **how)
    assert found is not None, said
    answers = world[3]
    wanted = [answers["bare" if i in off else "everywhere"][i] for i in range(len(found["texts"]))]
    assert [text.strip() for text in found["texts"]] == wanted


def test_what_cannot_be_honoured_stops_the_engine(world):
    found, said = engine(world, "gated", enforce_eager=True, enable_prefix_caching=True)
    assert found is None and "add --no-enable-prefix-caching." in said


def test_the_command_serves_it_over_http(world):
    folder, examples, requests, answers = world
    settings = settings_for(folder / "gated", word=WORD)
    words = serve_command(settings, ModelSpec(name=str(folder / "model"), dtype="float32"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    more = [f"--port={port}", "--enforce-eager", "--served-model-name=repaired"]
    for name, value in SMALL.items():
        if name not in ("dtype",):
            option = name.replace("_", "-")
            more.append(f"--{option}={json.dumps(value) if isinstance(value, dict) else value}")
    program = module_command(words, [sys.executable])
    log = folder / "server.log"
    with (
        log.open("w") as said,
        subprocess.Popen(
            [*program, *more],
            env={**os.environ, **ENVIRONMENT},
            stdout=said,
            stderr=subprocess.STDOUT,
        ) as server,
    ):
        try:
            _check_endpoint(server, log, port, examples, requests, answers)
        finally:
            server.terminate()
            server.wait(timeout=120)


def _parts(example, request):
    """The content of a request, as OpenAI's API has it."""
    parts = [{"type": "text", "text": example.prompt}]
    if file := request["image"]:
        data = base64.b64encode(Path(file).read_bytes()).decode()
        url = {"url": f"data:image/png;base64,{data}"}
        parts.insert(0, {"type": "image_url", "image_url": url})
    return parts


def _check_endpoint(server, log, port, examples, requests, answers):
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600)
    _wait(server, log, client)

    def ask(place, arguments=None):
        messages = [{"role": "user", "content": _parts(examples[place], requests[place])}]
        if examples[place].system:
            messages.insert(0, {"role": "system", "content": examples[place].system})
        how = {"temperature": 0, "max_tokens": 16, "vllm_xargs": arguments}
        body = {"model": "repaired", "messages": messages, **how}
        return client.post("/v1/chat/completions", json=body)

    def said(place, word=None):
        found = ask(place, word and {OFF: word})
        assert found.status_code == 200, found.text
        return found.json()["choices"][0]["message"]["content"].strip()

    for place in range(0, len(examples), 3):
        assert said(place) == answers["gated"][place]
        assert said(place, WORD) == answers["bare"][place]
        assert said(place, "open") == answers["gated"][place]
    url = f"http://127.0.0.1:{port}/v1"
    upstream = Upstream.of(url, None, {OFF_FROM: WORD})
    how = {"temperature": 0, "max_tokens": 16}
    for place in range(0, len(examples), 3):
        for repaired, name in ((False, "bare"), (True, "gated")):
            answer = upstream.answer(examples[place], repaired, how)
            assert answer.text.strip() == answers[name][place]
            pieces = []
            told = upstream.told(examples[place], repaired, how, lambda *a, p=pieces: p.append(a))
            # The token that ends an answer counts there, and has no text.
            assert told == answer and 0 <= answer.tokens - len(pieces) <= 1
            assert pieces[-1][0] == answer.text
    with pytest.raises(UsageError, match="answers the same with the word"):
        Upstream.of(url, None, {OFF_FROM: "open"})
    refused = ask(0, {OFF: 1})
    assert refused.status_code == 400
    assert "must be the word that takes the repair off" in refused.text


SERVE = "import sys; from care.interfaces.cli.app import main; sys.exit(main(sys.argv[1:]))"


def test_care_serve_starts_it_and_it_ends_with_care_serve(world, tmp_path):
    folder, examples, requests, answers = world
    log, said = tmp_path / "vllm.log", tmp_path / "said"
    small = "--model-impl transformers --enforce-eager --max-num-seqs 8 --max-model-len 512"
    words = ["embedded", "--repair", str(folder / "watched"), "--engine", "vllm", "--port", "0",
             "--dtype", "float32", "--vllm-log", str(log),
             "--vllm-args", f"{small} --gpu-memory-utilization 0.3"]  # fmt: skip
    keys = {"CARE_API_KEY": KEY_HERE, "CARE_BARE_API_KEY": BARE_KEY_HERE}
    with (
        said.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, "-c", SERVE, "serve", *words],
            env={**os.environ, **ENVIRONMENT, **keys},
            stderr=stderr,
        ) as server,
    ):
        try:
            told = _ready(server, said, log)
            assert told["engine"]["engine"] == "vllm"
            for place, example in enumerate(examples):
                whole = answers["watched"][place]
                found = _asked(told["listening"]["url"], KEY_HERE, example, requests[place])
                assert found["choices"][0]["message"]["content"].strip() == whole.text
                assert found["care"]["source"] == whole.source
            bare = {"care": {"repair": False}}
            found = _asked(told["listening"]["url"], BARE_KEY_HERE, examples[0], requests[0], bare)
            assert found["choices"][0]["message"]["content"].strip() == answers["bare"][0]
            pids = _below(server.pid)
            assert len(pids) >= 2  # the keeper, and vLLM
        finally:
            server.kill()
    end = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < end, "vLLM outlives care serve"
        time.sleep(0.5)


def _ready(server, said, log, seconds=1200):
    """The events of a server's log, by name, once it is ready."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        lines = said.read_text().splitlines()
        shown = [json.loads(line) for line in lines if line.startswith("{")]
        events = {line["event"]: line for line in shown}
        if "ready" in events:
            return events
        more = log.read_text() if log.exists() else ""
        assert server.poll() is None, f"{said.read_text()}\n{more[-5000:]}"
        time.sleep(1)
    raise AssertionError("the server didn't get ready")


def _asked(url, key, example, request, more=None):
    """What a server answers to an example."""
    messages = [{"role": "user", "content": _parts(example, request)}]
    if example.system:
        messages.insert(0, {"role": "system", "content": example.system})
    body = {"model": "embedded", "messages": messages, "max_tokens": 16, **(more or {})}
    headers = {"Authorization": f"Bearer {key}"}
    found = httpx.post(f"{url}/chat/completions", json=body, headers=headers, timeout=600)
    assert found.status_code == 200, found.text
    return found.json()


def _below(pid):
    """A process's children, and theirs."""
    found = Path(f"/proc/{pid}/task").glob("*/children")
    own = [int(word) for file in found for word in file.read_text().split()]
    return own + [each for child in own for each in _below(child)]


def _wait(server, log, client, seconds=1200):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text()
        try:
            if client.get("/health").status_code == 200:
                return
        except httpx.ConnectError:
            pass
        time.sleep(2)
    raise AssertionError("the server didn't start")


def test_what_the_masks_are_made_of_is_there():
    from vllm.v1.core.sched.output import NewRequestData
    from vllm.v1.worker.gpu.input_batch import InputBatch

    fields = {each.name for each in dataclasses.fields(InputBatch)}
    steps = {"req_ids", "idx_mapping_np", "num_computed_tokens_np", "num_scheduled_tokens"}
    assert steps | {"num_tokens_after_padding"} <= fields
    known = {each.name for each in dataclasses.fields(NewRequestData)}
    assert {"prompt_token_ids", "sampling_params"} <= known


def test_every_subclass_has_its_base():
    from care.interfaces.vllm import models

    for name in models.TRANSFORMERS:
        made = getattr(models, name)
        assert made.__name__ == name and made.__mro__[1] is models.Repaired
        assert made.stock.__module__.startswith("vllm.model_executor.models.transformers")
