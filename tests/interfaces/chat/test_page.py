"""The page itself, with gradio (marker `chat`): asked by its client, and used in Chromium."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from care.interfaces.requests.hosts import listening
from kit import repairs, tiny
from kit.chats import ASKED, answerer, asked
from kit.chromium import Browser
from kit.serving import until
from kit.watched import ALWAYS, repaired

pytestmark = [
    pytest.mark.chat,
    pytest.mark.skipif(
        importlib.util.find_spec("gradio") is None,
        reason="gradio isn't installed; make test-chat has its own environment for these",
    ),
]

LOGIN = ("ada", "a-password-to-look")
EVIL = "<img src=x onerror='document.title=1'> ${1+1} {{value}}"


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "one.png"
    tiny.picture(1).save(path)
    return path


@contextmanager
def shown(answerer, logins=()):
    """The page of an answerer: its address."""
    from care.interfaces.chat.page import launch, page

    with listening("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    blocks = page(answerer)
    launch(blocks, answerer.config, port, list(logins))
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        blocks.close(verbose=False)


@pytest.fixture(scope="module")
def watched(vlm):
    """One whose answers are always withdrawn, after they were shown."""
    return answerer(vlm, repaired(answer=ALWAYS), {"max_image_bytes": 10_000}, hold=0)


@pytest.fixture(scope="module")
def url(watched):
    with shown(watched) as url:
        yield url


def client(url, **options):
    from gradio_client import Client

    return Client(url, verbose=False, analytics_enabled=False, **options)


def test_a_request_with_a_picture_is_answered_on_both_sides(url, watched, picture):
    from gradio_client import handle_file

    job = client(url).submit({"text": ASKED, "files": [handle_file(picture)]}, api_name="/ask")
    bare, under, told, *_ = job.result()
    sides, _ = asked(watched, ASKED, files=[str(picture)])
    assert sides.bare[0].told.text in bare and "data:image/png;base64," in bare
    assert "a refusal was given" in under and "An answer was withdrawn; what was shown" in under
    assert told == "" and len(job.outputs()) > 5  # piece by piece


def test_a_conversation_goes_on_until_a_new_one_begins(url):
    page = client(url)
    assert page.predict({"text": ASKED, "files": []}, api_name="/ask")[0].count("care-asked") == 1
    again = page.predict({"text": "and a house?", "files": []}, api_name="/ask")
    assert again[0].count("care-asked") == again[1].count("care-asked") == 2
    assert "Nothing was asked yet." in page.predict(api_name="/clear")[0]
    assert page.predict({"text": ASKED, "files": []}, api_name="/ask")[0].count("care-asked") == 1


def test_what_cant_be_read_is_one_sentence_on_the_page(url, tmp_path):
    from gradio_client import handle_file

    assert "is empty" in client(url).predict({"text": " ", "files": []}, api_name="/ask")[2]
    (tmp_path / "words.png").write_text("no picture")
    asked = {"text": ASKED, "files": [handle_file(tmp_path / "words.png")]}
    told = client(url).predict(asked, api_name="/ask")[2]
    assert "words.png can&#x27;t be read as PNG" in told and told.count(".") < 4


def test_no_file_of_the_machine_is_read_but_those_that_were_uploaded(url, picture):
    for more in ({"meta": {"_type": "gradio.FileData"}}, {}):
        asked = {"text": ASKED, "files": [{"path": str(picture), **more}]}
        started = httpx.post(f"{url}/gradio_api/call/ask", json={"data": [asked]}, timeout=600)
        event = started.json()["event_id"]
        said = httpx.get(f"{url}/gradio_api/call/ask/{event}", timeout=600).text
        assert "event: error" in said and "data:image" not in said
    large = picture.with_name("large.png")
    large.write_bytes(b"0" * 10_001)
    sent = httpx.post(f"{url}/gradio_api/upload", files={"files": large.open("rb")}, timeout=600)
    assert sent.status_code == 413


def test_a_page_with_a_login_asks_for_it(watched):
    with shown(watched, [LOGIN]) as url:
        assert httpx.get(f"{url}/config", timeout=600).status_code == 401
        wrong = {"username": "ada", "password": "no"}
        assert httpx.post(f"{url}/login", data=wrong, timeout=600).status_code == 400
        sent = httpx.post(f"{url}/gradio_api/call/ask", json={"data": [None]}, timeout=600)
        assert sent.status_code == 401
        answer = client(url, auth=LOGIN).predict({"text": ASKED, "files": []}, api_name="/ask")
        assert "a refusal was given" in answer[1]


def test_two_people_at_once_have_their_own_conversations(url):
    pages, found = [client(url) for _ in range(2)], {}

    def ask(place):
        words = {"text": f"{ASKED} {place}", "files": []}
        found[place] = pages[place].predict(words, api_name="/ask")

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place, (bare, under, *_) in found.items():
        assert f"{ASKED} {place}" in bare and bare.count("care-asked") == 1
        assert "a refusal was given" in under


def test_the_page_in_a_browser(url, picture, chromium, tmp_path):
    with Browser(chromium, tmp_path / "profile") as browser:
        browser.open(url)
        browser.until("!!document.querySelector('#care-box textarea')")
        browser.choose_files("#care-box input[type=file]", picture)
        browser.until("!!document.querySelector('#care-box img')")
        browser.type("#care-box textarea", EVIL)
        browser.press_enter()
        browser.until("!!document.querySelector('#care-repaired .care-why')")
        browser.until("document.querySelector('#care-box textarea').value == ''")
        said = browser.text()
        assert said.count(EVIL) == 2 and browser.run("document.title") == "care chat"
        assert "An answer was withdrawn; what was shown" in said and "edited at" in said
        assert browser.run("document.querySelectorAll('.care-asked img').length") == 2
        browser.press_enter()  # of nothing
        browser.until("document.querySelector('.care-failure')?.innerText.includes('is empty')")
        assert browser.run("document.querySelectorAll('#care-bare .care-asked').length") == 1
        assert {asked.split("/")[2] for asked in browser.requests if asked.startswith("http")} == {
            url.split("/")[2]
        }
        assert not browser.console
        browser.screenshot(tmp_path / "page.png")
        from PIL import Image

        with Image.open(tmp_path / "page.png") as page:
            assert page.width == 1200


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command(tmp_path, number):
    repairs.repair().save(tmp_path / "repair")
    script = (
        "import sys; from care.models.vlm import VLM; from kit import tiny; "
        "VLM.embedded = classmethod(lambda cls, dtype='auto': tiny.tiny_vlm()); "
        "from care.interfaces.cli.app import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["chat", "embedded", "--repair", str(tmp_path / "repair"), "--port", "0"]
    root = Path(__file__).parents[3]
    paths = os.pathsep.join([str(root / "src"), str(root / "tests"), str(root)])
    started = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    try:
        assert started.stdout is not None
        told = started.stdout.readline()
        url = told.split()[4]
        assert "until Ctrl-C" in told and httpx.get(url, timeout=600).status_code == 200
        started.send_signal(number)
        assert started.wait(300) == 0
    finally:
        started.kill()


def test_a_port_that_is_taken_is_told_before_a_model_is_loaded(capsys):
    from care.interfaces.cli.app import main

    with listening("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["chat", "embedded", "--repair", "none", "--port", str(port)]) == 2
    assert f"Port {port} of 127.0.0.1 can't be had" in capsys.readouterr().err


def test_who_closes_the_page_frees_the_model(vlm):
    slow = answerer(vlm, repairs.repair(scopes=("decision", "response")), max_new_tokens=300)
    with shown(slow) as url:
        asked = {"data": [{"text": ASKED, "files": []}]}
        event = httpx.post(f"{url}/gradio_api/call/ask", json=asked, timeout=600).json()["event_id"]
        address = f"{url}/gradio_api/call/ask/{event}"
        with httpx.stream("GET", address, timeout=600) as stream:
            lines = (line for line in stream.iter_lines() if line.startswith("data:"))
            next(lines)
        assert "care-why" in client(url).predict(asked["data"][0], api_name="/ask")[1]
        until(lambda: slow._lock.acquire(blocking=False), 600)
        assert vlm.edit_counts is None
