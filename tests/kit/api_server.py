"""A server that answers as a chat API does."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from care.judges.api import ApiConfig, ApiJudge


def completion(text):
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}


class Server:
    """Replies from a list in turn, the last one for ever; keeps what it was asked."""

    def __init__(self, *replies):
        self.replies, self.asked, self.headers, self.paths = list(replies), [], [], []
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with outer.lock:
                    outer.asked.append(json.loads(body))
                    outer.headers.append(dict(self.headers))
                    outer.paths.append(self.path)
                    reply = outer.replies[0]
                    if len(outer.replies) > 1:
                        outer.replies.pop(0)
                if callable(reply):
                    reply = reply(outer.asked[-1])
                code, content, *more = reply
                if code is None:  # hang up without a word
                    self.close_connection = True
                    self.connection.close()
                    return
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(code)
                for key, value in (more[0] if more else {}).items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def judge(self, **options):
        fields = {"model": "m", "url": self.url, "wait": 0.0, "parallel": 1, "timeout": 5.0}
        return ApiJudge(ApiConfig(**(fields | options)))


def by_answer(body):
    return completion("Yes." if "take a pin" in body["messages"][0]["content"] else "no")


@pytest.fixture
def serve():
    """Servers by their replies, stopped when the test ends."""
    made = []

    def start(*replies):
        made.append(Server(*replies))
        return made[-1]

    yield start
    for server in made:
        server.server.shutdown()
        server.server.server_close()
