"""Any chat model behind an OpenAI-compatible API as a judge, with the standard library alone.

The prompt is our own (`data/api_prompt.txt`; another may be named) and its SHA-256 is recorded. The
reply's last line must hold the word yes or no, and not both.

A call is tried again when the server is busy or out of reach (408, 409, 425, 429, 5xx, no
connection, no reply in time), after 1, 2, 4, … seconds or as long as the server asks for. What
fails for good is a finding with an error: the answer is then not judged, which is not "safe". After
a refusal of the key (401, 403) nothing more is sent, so that a wrong key costs one call.

The key is read from an environment variable when a call is made and is recorded nowhere.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from typing import Any

from care.checks import require
from care.errors import UsageError
from care.judges import Judge
from care.judges.models import Finding, ModelJudge, Pictures
from care.judges.templates import Template, read_template

BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Replies after which a call is tried again."""
REFUSED = frozenset({401, 403})
"""Replies after which no further call is made."""
LONGEST_WAIT = 60.0
"""Most seconds between two tries, whatever the server asks for."""

_MOST = {"timeout": 86_400, "tries": 1000, "wait": 3600, "parallel": 256}
"""Greatest values of options; a wait beyond `LONGEST_WAIT` is cut to that."""

_WORD = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


@dataclass(frozen=True)
class ApiConfig:
    """Which model behind which address, and how patiently it is asked."""

    model: str
    """Name of the model as the server knows it."""
    url: str = "http://localhost:8000/v1"
    """Address up to, and without, `/chat/completions`."""
    name: str = "api"
    """Name in verdicts and tables."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the key; one that isn't set sends none."""
    template: str | None = None
    """Text file with another prompt; None: ours."""
    timeout: float = 60.0
    """Seconds to wait for a reply."""
    tries: int = 5
    """Most calls for one answer."""
    wait: float = 1.0
    """Seconds before the second try; each further wait is twice as long."""
    parallel: int = 4
    """Calls under way at once."""

    def __post_init__(self) -> None:
        if not self.model:
            raise UsageError("an API judge needs the name of a model; pass model=NAME")
        if not self.url.startswith(("http://", "https://")):
            raise UsageError(f"url must begin with http:// or https://, got {self.url!r}")
        require(self, dict.fromkeys(_MOST, -math.inf), _MOST)
        if self.tries < 1 or self.parallel < 1 or not self.timeout > 0 or self.wait < 0:
            raise UsageError(
                "tries and parallel must be at least 1, timeout positive and wait not negative, "
                f"got {self.tries}, {self.parallel}, {self.timeout} and {self.wait}"
            )


class ApiJudge(ModelJudge):
    """A chat model behind an API; see the module's header."""

    def __init__(self, config: ApiConfig, rules: Judge | None = None) -> None:
        super().__init__(config.name, rules)
        self.config = config
        self.template = read_template(config.template) if config.template else _own_prompt()
        self._refused: str | None = None

    def identity(self) -> dict[str, Any]:
        """Model, address and digest of the prompt."""
        return {
            "judge": self.name,
            "model": self.config.model,
            "url": self.config.url,
            "template_sha256": self.template.digest,
            "template_source": self.template.source,
        }

    def find(
        self, goals: Sequence[str], responses: Sequence[str], images: Pictures
    ) -> list[Finding]:
        self._key()  # one that can't be sent is wrong use, and shows before the first call
        prompts = [self.template.fill(*pair) for pair in zip(goals, responses, strict=True)]
        with ThreadPoolExecutor(self.config.parallel) as pool:
            return list(pool.map(self._ask, prompts))

    def _key(self) -> str:
        """The key, or nothing; never part of a message, since messages are stored."""
        key = os.environ.get(self.config.key_variable, "").strip()
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise UsageError(
                f"The key in the environment variable {self.config.key_variable} holds characters "
                "that can't be sent; set it anew."
            )
        return key

    def _ask(self, prompt: str) -> Finding:
        """One answer, judged; any failure is a finding with an error."""
        error, asked = "", 0.0
        for attempt in range(self.config.tries):
            if self._refused is not None:
                return Finding(None, error=self._refused)
            if attempt:
                wait = self.config.wait * 2 ** (attempt - 1)
                time.sleep(min(max(wait, asked), LONGEST_WAIT))
            try:
                return read_reply(self._call(prompt))
            except urllib.error.HTTPError as reply:
                with reply:
                    error = f"the server replied {reply.code}: {_said(reply)}"
                    asked = _asked_wait(reply)
                if reply.code in REFUSED:
                    self._refused = error
                if reply.code not in BUSY:
                    break
            except (OSError, http.client.HTTPException) as failure:
                reason = getattr(failure, "reason", failure)
                error = f"no reply ({type(failure).__name__}: {reason})"
            except ValueError as failure:
                error = f"the reply can't be read ({failure})"
        return Finding(None, error=error)

    def _call(self, prompt: str) -> dict[str, Any]:
        body = {
            "model": self.config.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
        }
        headers = {"Content-Type": "application/json"}
        if key := self._key():
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(
            self.config.url.rstrip("/") + "/chat/completions",
            data=json.dumps(body).encode(),
            headers=headers,
        )
        with _OPENER.open(request, timeout=self.config.timeout) as reply:
            found = json.loads(reply.read())
        if not isinstance(found, dict):
            raise ValueError(f"it is {type(found).__name__}, not an object")
        return found


def read_reply(reply: dict[str, Any]) -> Finding:
    """The decision in a chat completion; a finding with an error where there is none."""
    try:
        text = reply["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return Finding(None, error=f"the reply holds no message: {json.dumps(reply)[:120]}")
    lines = [line for line in str(text or "").splitlines() if line.strip()]
    words = {word.lower() for word in _WORD.findall(lines[-1])} if lines else set()
    if len(words) != 1:
        return Finding(None, error=f"the model said {str(text)!r:.80}, not yes or no")
    word = words.pop()
    return Finding(word == "yes", label=word)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A key must not be sent on to wherever a server points."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def _own_prompt() -> Template:
    text = resources.files("care.judges").joinpath("data", "api_prompt.txt").read_text("utf-8")
    return Template(text, "care")


def _said(reply: urllib.error.HTTPError) -> str:
    """The server's own words, in one short line."""
    try:
        text = reply.read(500).decode("utf-8", "replace")
    except OSError:
        return str(reply.reason)
    return " ".join(text.split())[:200] or str(reply.reason)


def _asked_wait(reply: urllib.error.HTTPError) -> float:
    """Seconds of a Retry-After header; 0 without one, or where it is a date."""
    try:
        return float(reply.headers.get("Retry-After", 0))
    except (TypeError, ValueError):
        return 0.0
