"""Any chat model behind an OpenAI-compatible API as a judge.

The prompt is our own (`data/api_prompt.txt`; another may be named) and its SHA-256 is recorded. The
reply must be the word yes or no, alone in its first or last line (`care.judges.replies`).

A call is tried again when the server is busy or out of reach (408, 409, 425, 429, 5xx, no
connection, no reply in time), after 1, 2, 4, … seconds or as long as the server asks for. What
fails for good is a finding with an error: the answer is then not judged, which is not "safe". The
first call is made alone: where it refuses the key (401, 403) or the request's form (400, 404, 422:
a setting the model doesn't take), nothing more is sent. What is asked can be adjusted by
`temperature`, `max_tokens` or `max_completion_tokens`, and further fields `body.NAME`.

The key is read from an environment variable when a call is made and is recorded nowhere: it is
taken out of whatever a server or a model says, and an address may not hold one.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

from care.errors import UsageError
from care.judges.base import Judge
from care.judges.config import FIXED, JudgeConfig
from care.judges.model_judge import Finding, ModelJudge, Pictures
from care.judges.prompts import Template, read_template
from care.judges.replies import read_reply
from care.judges.rules import RulesJudge
from care.runs.reading import parse_json
from care.runs.secrets import without_key
from care.runs.settings import MANY, require

BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Replies after which a call is tried again."""
REFUSED = frozenset({401, 403})
"""Replies after which no further call is made."""
MALFORMED = frozenset({400, 404, 405, 415, 422})
"""Replies to the first call after which none is made: the request's form is refused."""
LONGEST_WAIT = 60.0
"""Most seconds between two tries, whatever the server asks for."""
MAX_REPLY = 1 << 24
"""Most bytes that are read of a reply."""
MAX_SAID = 2000
"""Most bytes that are read of what a server says when it fails."""

MAX_TEMPERATURE = 100
"""Greatest temperature; servers take at most 2."""
_MOST = {"timeout": 86_400, "tries": 1000, "wait": 3600, "parallel": 256}
"""Greatest values of options; a wait beyond `LONGEST_WAIT` is cut to that."""

_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_SECRET = re.compile(
    r"api.?key|secret|passw|pwd|credential|authori[sz]|bearer|(?:access|auth|id).?token",
    re.IGNORECASE,
)
_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")
_ABOUT_ONE = re.compile(
    r"content.{0,3}(?:filter|polic|management)|moderat|safety|context.{0,3}length"
    r"|too (?:long|many|large)|maximum (?:context|length)|token limit",
    re.IGNORECASE,
)
_OWN_FIELDS = ("model", "messages", "stream", "n", "temperature", "max_tokens")


@dataclass(frozen=True, kw_only=True)
class ApiConfig(JudgeConfig):
    """Which model behind which address, and how patiently it is asked."""

    model: str
    """Name of the model as the server knows it."""
    url: str = "http://localhost:8000/v1"
    """Address up to, and without, `/chat/completions`."""
    name: str = field(default="api", metadata=FIXED)
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
    temperature: float | None = 0.0
    """Temperature that is asked for; None leaves it out, for models that take no other than 1."""
    max_tokens: int | None = None
    """Most tokens of a reply; None leaves it out."""
    max_completion_tokens: int | None = None
    """The same, as reasoning models call it."""
    body: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of every request, such as {"reasoning_effort": "low"}."""

    def __post_init__(self) -> None:
        if not self.model:
            raise UsageError("an API judge needs the name of a model; pass model=NAME")
        check_address(self.url)
        if not _VARIABLE.fullmatch(self.key_variable):
            raise UsageError(
                "key_variable is the name of an environment variable that holds the key (capital "
                "letters, digits and _), not the key itself"
            )
        for name in ("max_tokens", "max_completion_tokens"):
            if (value := getattr(self, name)) is not None and not 1 <= value <= MANY:
                raise UsageError(f"{name} must be from 1 to {MANY}, got {value}")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise UsageError("pass max_tokens or max_completion_tokens, as the server knows it")
        if self.temperature is not None and not 0 <= self.temperature <= MAX_TEMPERATURE:
            raise UsageError(
                f"temperature must be none or from 0 to {MAX_TEMPERATURE}, got {self.temperature}"
            )
        if secret := [name for name in _names(self.body) if _SECRET.search(name)]:
            raise UsageError(
                f"body.{secret[0]} sounds like a secret, and what is sent is recorded; put the key "
                "into the environment variable that key_variable names"
            )
        if taken := sorted(set(self.body) & set(_OWN_FIELDS)):
            raise UsageError(f"body.{taken[0]} can't be set; see the options of the judge api")
        require(self, dict.fromkeys(_MOST, -math.inf), _MOST)
        if self.tries < 1 or self.parallel < 1 or not self.timeout > 0 or self.wait < 0:
            raise UsageError(
                "tries and parallel must be at least 1, timeout positive and wait not negative, "
                f"got {self.tries}, {self.parallel}, {self.timeout} and {self.wait}"
            )

    def check(self) -> None:
        if self.template is not None:
            read_template(self.template)

    def judge(self, rules: RulesJudge) -> Judge:
        return ApiJudge(self, rules)


def _names(fields: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """Names of fields at any depth, as body.NAME has them."""
    for name, value in fields.items():
        yield before + name
        if isinstance(value, Mapping):
            yield from _names(value, f"{before}{name}.")


class _Failed(Exception):
    """A call without a reply that can be read; no key is in its words."""

    def __init__(self, said: str, again: bool = False, wait: float = 0.0) -> None:
        super().__init__(said)
        self.again, self.wait = again, wait


class ApiJudge(ModelJudge):
    """A chat model behind an API; see the module's header."""

    def __init__(self, config: ApiConfig, rules: RulesJudge | None = None) -> None:
        super().__init__(config.name, rules)
        self.config = config
        self.template = read_template(config.template) if config.template else _own_prompt()
        self._refused: str | None = None
        self._accepted = False

    def identity(self) -> dict[str, Any]:
        """Model, address, settings of a request and digest of the prompt."""
        return {
            "judge": self.name,
            "model": self.config.model,
            "url": self.config.url,
            "request": self._settings(),
            "template_sha256": self.template.digest,
            "template_source": self.template.source,
        }

    def find(
        self, goals: Sequence[str], responses: Sequence[str], images: Pictures
    ) -> list[Finding]:
        key = self._key()  # one that can't be sent is wrong use, and shows before the first call
        prompts = [self.template.fill(*pair) for pair in zip(goals, responses, strict=True)]
        found: list[Finding] = []
        with (
            httpx.Client(timeout=self.config.timeout) as client,
            ThreadPoolExecutor(self.config.parallel) as pool,
        ):
            ask = partial(self._ask, client, key)
            # Until the server has taken one request, it may refuse them all.
            while len(found) < len(prompts) and not self._accepted:
                found.append(ask(prompts[len(found)]))
            return found + list(pool.map(ask, prompts[len(found) :]))

    def _key(self) -> str:
        """The key, or nothing; never part of a message, since messages are stored."""
        key = os.environ.get(self.config.key_variable, "").strip()
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise UsageError(
                f"The key in the environment variable {self.config.key_variable} holds characters "
                "that can't be sent; set it anew."
            )
        return key

    def _ask(self, client: httpx.Client, key: str, prompt: str) -> Finding:
        """One answer, judged; any failure is a finding with an error. No key is in either."""
        tries = Retrying(
            stop=stop_after_attempt(self.config.tries),
            wait=self._wait,
            retry=retry_if_exception(lambda error: isinstance(error, _Failed) and error.again),
            sleep=time.sleep,
            reraise=True,
        )
        try:
            reply = tries(self._call, client, key, prompt)
        except _Failed as failure:
            return Finding(None, error=self._refused or str(failure))
        found = read_reply(reply)
        return replace(found, error=without_key(found.error, key))

    def _wait(self, state: RetryCallState) -> float:
        """Seconds before the next try."""
        failure = state.outcome.exception() if state.outcome else None
        asked = failure.wait if isinstance(failure, _Failed) else 0.0
        return min(max(self.config.wait * 2 ** (state.attempt_number - 1), asked), LONGEST_WAIT)

    def _call(self, client: httpx.Client, key: str, prompt: str) -> dict[str, Any]:
        """What the server replies to one request, without the key."""
        if self._refused is not None:
            raise _Failed(self._refused)
        try:
            with client.stream("POST", **self._request(key, prompt)) as reply:
                data = _read(reply, MAX_REPLY if reply.is_success else MAX_SAID)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as failure:
            said = f"no reply ({type(failure).__name__}: {failure})"
            raise _Failed(without_key(said, key), again=True) from None
        if not reply.is_success:
            error = f"the server replied {reply.status_code}: {_said(reply, data, key)}"
            self._give_up(reply.status_code, error)
            raise _Failed(error, reply.status_code in BUSY, _asked_wait(reply))
        try:
            # Servers write NaN and infinity where they give log-probabilities.
            found = parse_json(data, "it", otherwise="try again", finite=False)
            if not isinstance(found, dict):
                raise ValueError(f"it is {type(found).__name__}, not an object")
        except ValueError as failure:
            said = f"the reply can't be read ({failure})"
            raise _Failed(without_key(said, key), again=True) from None
        self._accepted = True
        return without_key(found, key)

    def _request(self, key: str, prompt: str) -> dict[str, Any]:
        body = {
            "model": self.config.model,
            "messages": [{"role": "user", "content": prompt}],
            **self._settings(),
        }
        headers = {"Content-Type": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        return {
            "url": self.config.url.rstrip("/") + "/chat/completions",
            "content": json.dumps(body).encode(),
            "headers": headers,
        }

    def _give_up(self, code: int, error: str) -> None:
        """Ask nothing more where the key is refused, or the form of the first request."""
        if code in REFUSED:
            self._refused = error
        elif code in MALFORMED and not self._accepted and not _ABOUT_ONE.search(error):
            self._refused = (
                f"{error}; nothing more was asked, since every request looks like this one "
                "(settings that a model may not take: temperature=none, max_completion_tokens=N, "
                "body.NAME=VALUE)"
            )

    def _settings(self) -> dict[str, Any]:
        """The fields of a request besides the model and the prompt."""
        named = {
            name: getattr(self.config, name)
            for name in ("temperature", "max_tokens", "max_completion_tokens")
        }
        return {k: v for k, v in named.items() if v is not None} | dict(self.config.body)


def check_address(url: str) -> None:
    """UsageError unless `url` is a plain HTTP address; it isn't repeated, as it may hold a key."""
    try:
        parts = urlsplit(url)
        found = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        found = False
    if not found or not url.isprintable() or any(c.isspace() for c in url):
        raise UsageError("url must be an address that begins with http:// or https://")
    if "@" in parts.netloc or parts.query or parts.fragment or "?" in url or "#" in url:
        raise UsageError(
            "url may hold no name and password, no query and no fragment, since it is recorded; "
            "put the key into the environment variable that key_variable names"
        )


def _own_prompt() -> Template:
    text = resources.files("care.judges").joinpath("data", "api_prompt.txt").read_text("utf-8")
    return Template(text, "care")


def _read(reply: httpx.Response, most: int) -> bytes:
    """The first bytes of a reply."""
    found = bytearray()
    for part in reply.iter_bytes():
        found += part
        if len(found) >= most:
            break
    return bytes(found[:most])


def _said(reply: httpx.Response, data: bytes, key: str) -> str:
    """The server's own words, in one short line without the key."""
    text = data.decode("utf-8", "replace")
    # The key is looked for in all of it, so that none is cut in two, and in what JSON escapes.
    text = _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text.replace("\\/", "/"))
    text = without_key(text, key)
    return " ".join(text.split())[:200] or without_key(reply.reason_phrase, key)


def _asked_wait(reply: httpx.Response) -> float:
    """Seconds of a Retry-After header; 0 without one, or where it is a date."""
    try:
        return float(reply.headers.get("Retry-After", 0))
    except ValueError:
        return 0.0
