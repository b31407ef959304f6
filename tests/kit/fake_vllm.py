"""A server as `care serve` starts vLLM's: `python fake_vllm.py --model M … --uds SOCKET`.

It answers "bare words" to requests that hold the word and "other words" to others. FAKE_VLLM says
what goes wrong: `refuses` (a repair, before it is ready), `alike`, `silent` (about the repair),
`stubborn` (ignores SIGTERM). A worker of its own writes its process id beside the socket's folder.
"""

import hashlib
import json
import os
import signal
import socketserver
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

WAY = os.environ.get("FAKE_VLLM", "")


def option(name):
    return sys.argv[sys.argv.index(name) + 1]


SAID = json.loads(option("--additional-config"))["care"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def address_string(self):
        return "socket"

    def send(self, found, status=200):
        body = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def known(self):
        return self.headers.get("authorization") == f"Bearer {os.environ['VLLM_API_KEY']}"

    def do_GET(self):
        if self.path == "/health":
            self.send({})
        elif not self.known():
            self.send({"error": "Unauthorized"}, 401)
        else:
            self.send({"data": [{"id": option("--model")}]})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self.known():
            self.send({"error": "Unauthorized"}, 401)
            return
        word = (asked.get("vllm_xargs") or {}).get("care_off", "")
        bare = hashlib.sha256(word.encode()).hexdigest() == SAID["switch"] or WAY == "alike"
        choice = {
            "message": {"content": "bare words" if bare else "other words"},
            "finish_reason": "stop",
            "logprobs": {"content": [{"logprob": -1.0 if bare else -2.0}]},
        }
        usage = {"prompt_tokens": 5, "completion_tokens": 2}
        self.send({"choices": [choice], "usage": usage})


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def get_request(self):
        request, _ = super().get_request()
        return request, ("socket", 0)


def main():
    if WAY == "refuses":
        print("(EngineCore pid=7) ERROR 12:00 [core.py:1] care.errors.UsageError: vLLM can't serve "
              "m with r: it has no place.", flush=True)  # fmt: skip
        sys.exit("RuntimeError: Engine core initialization failed. See root cause above.")
    if WAY == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if told := os.environ.get("FAKE_VLLM_TOLD"):
        # As vLLM's engine is: a process of its own, which doesn't end by itself.
        worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        facts = {"pids": [os.getpid(), os.getppid(), worker.pid], "words": sys.argv[1:]}
        facts["environment"] = dict(os.environ)
        Path(told + ".part").write_text(json.dumps(facts))
        Path(told + ".part").rename(told)
    server = Server(option("--uds"), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    if WAY != "silent":
        print(f"INFO care: r on 1.layer_out, digest {SAID['digest'][:12]}, off by request")
    sys.stdout.flush()
    while True:
        time.sleep(1)


if __name__ == "__main__":
    main()
