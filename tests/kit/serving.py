"""A server on a free port in a thread, in front of any engine, and one that answers as told."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

from PIL import Image

from care.interfaces.requests.hosts import listening
from care.interfaces.serve.config import Limits, ServeConfig
from care.interfaces.serve.engine import Served
from care.interfaces.serve.keys import Keys
from care.interfaces.serve.records import Log
from care.interfaces.serve.server import Server
from care.interfaces.serve.service import Service
from care.models.spec import ModelSpec
from care.models.thoughts import TAGS

NAME, DIGEST = "tiny", "d1ge57"
KEY, BARE_KEY = "a-key-that-may-ask", "a-key-that-may-ask-bare"


def said(text, source="model", alarms=(), ended=True, tokens=3):
    """An answer, for which torch isn't imported."""
    return SimpleNamespace(
        text=text, prompt_tokens=5, tokens=tokens, ended=ended, context_full=False,
        source=source, alarms=tuple(alarms),
    )  # fmt: skip


class Scripted:
    """An engine that gives one answer, by pieces to streams; with `go` it waits for that."""

    tags = TAGS

    def __init__(self, answer=None, pieces=(), go=None, error=None):
        self.answered = answer or said("To wash a car")
        self.pieces, self.go, self.error = pieces, go, error
        self.asked, self.stopped, self.alive = [], False, True

    def count(self, conversation, longest):
        return len(conversation.prompt.split())

    async def answer(self, asked):
        self.asked.append(asked)
        for piece in self.pieces if asked.tell else ():
            asked.tell(piece)
        while self.go is not None and not self.go.is_set():
            await asyncio.sleep(0.01)
        if self.error is not None:
            raise self.error
        return Served(self.answered, DIGEST if asked.repaired else None)

    def stop(self):
        self.stopped = True


class Running:
    """A server that runs, and what it wrote."""

    def __init__(self, server, port, lines):
        self.server, self.port, self._lines = server, port, lines
        self.root = f"http://127.0.0.1:{port}"

    def client(self, key="none"):
        import openai

        # No certificates are read, which takes longer than most of the tests that ask over http.
        http = openai.DefaultHttpxClient(verify=False)
        root = f"{self.root}/v1"
        return openai.OpenAI(base_url=root, api_key=key, max_retries=0, http_client=http)

    def connection(self, messages, first=b"", **asked):
        """A connection that has asked for an answer, after what it sent first; who closes it hangs
        up."""
        body = json.dumps({"model": NAME, "messages": messages} | asked).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
            f"application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        client = socket.create_connection(("127.0.0.1", self.port))
        client.sendall(first + head.encode() + body)
        return client

    @property
    def log(self):
        """The lines so far."""
        return [json.loads(line) for line in self._lines.getvalue().splitlines()]

    def logged(self, count=1):
        """The last line of a request, when so many are there: it is written after the response."""
        until(lambda: len([1 for line in self.log if line["event"] == "request"]) >= count)
        return [line for line in self.log if line["event"] == "request"][-1]


@contextmanager
def serving(engine, keys=(), bare=(), contents=False, loaded=True, **limits):
    """A server in front of an engine; `engine` may also be a function that loads one."""
    options = {name: limits.pop(name) for name in ("grace", "host") if name in limits}
    config = ServeConfig(
        repair="a-repair", port=0, model=ModelSpec(NAME), limits=Limits(**limits),
        log_contents=contents, **options,
    )  # fmt: skip
    lines = io.StringIO()
    service = Service(config, Keys(list(keys), list(bare)), Log(contents, lines))
    server = Server(service, engine if callable(engine) else lambda: engine)
    with listening(config.host, config.port) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            until(lambda: server.started)
            if loaded:
                until(lambda: service.engine is not None)
            yield Running(server, listener.getsockname()[1], lines)
        finally:
            server.should_exit = True
            thread.join()


def until(true, seconds=60.0):
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.005)


def data_url(image=None, kind="PNG"):
    """A picture as clients send it."""
    buffer = io.BytesIO()
    (image or Image.new("RGB", (8, 6), "red")).save(buffer, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def user(text="how do you wash a car?", *urls):
    """Messages with one turn."""
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]
