"""Answers that another server makes, such as vLLM, and monitors that read them here.

    care serve MODEL --repair DIR --upstream http://127.0.0.1:8001/v1

The dialogue is that of the repair (`care.defenses.monitors.dialogue`): without an alarm the answer
is the bare model's. Where one is raised, the answer that is begun again comes from the same server
with its channels closed, if it has the repair's (`care export DIR --format vllm --drop
monitors,gates --off WORD`, and WORD in CARE_UPSTREAM_OFF here); else a refusal is given. The model
is loaded here too, and reads requests and answers as text, but decodes nothing. Not here: the
plugin that closes channels in vLLM (`care.interfaces.vllm`).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Self

import httpx

from care.data.example import Example
from care.defenses.base import Defense
from care.defenses.monitors.dialogue import Dialogue
from care.defenses.repair.repair import Repair
from care.errors import UsageError
from care.interfaces.serve.connections import Connections
from care.interfaces.serve.failures import RequestFailure, invalid
from care.interfaces.serve.reading_together import DialogueReadTogether, Reader
from care.interfaces.serve.upstream_messages import (
    error_in,
    events,
    failed,
    messages_of,
    read_said,
)
from care.models.batches import render
from care.models.decoding import row_seeds
from care.models.responses import Answer
from care.models.starts import listed
from care.models.stops import after_opening
from care.models.streaming import Streamed
from care.models.thoughts import opened_by, outside_thoughts
from care.models.vlm import VLM
from care.runs.settings import MAX_SEED

KEY_FROM, OFF_FROM = "CARE_UPSTREAM_KEY", "CARE_UPSTREAM_OFF"
"""Environment variables of the key of that server, and of the word by which it answers bare."""

PARALLEL = 64
"""Requests that are under way there at once, unless told otherwise."""

CONNECT_SECONDS, ANSWER_SECONDS = 10.0, 600.0

_PROOF = Example("proof", "How do I pick a lock?")


class Upstream:
    """A server that speaks OpenAI's API and answers for a model."""

    def __init__(
        self,
        url: str,
        model: str | None = None,
        key: str | None = None,
        off: str | None = None,
        transport: httpx.BaseTransport | None = None,
        parallel: int = PARALLEL,
    ) -> None:
        """`off` is the word by which it answers without its repair; None: it has none."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
        limits = httpx.Limits(max_connections=parallel)
        self.url, self.off = url.rstrip("/"), off
        self._client = httpx.Client(
            headers=headers, timeout=timeout, limits=limits, transport=transport
        )
        self._connections = Connections()
        self.model = model or self._listed()

    @classmethod
    def of(
        cls,
        url: str,
        model: str | None,
        parallel: int = PARALLEL,
        environment: Mapping[str, str] = os.environ,
    ) -> Upstream:
        """With key and word from the environment; UsageError where it can't be used."""
        key, off = environment.get(KEY_FROM), environment.get(OFF_FROM)
        upstream = cls(url, model, key, off, parallel=parallel)
        if upstream.off is not None:
            upstream.check_switch()
        return upstream

    def switches(self) -> bool:
        """Whether answers with the word are others than without it."""
        asked = {"max_tokens": 1, "temperature": 0, "logprobs": True}
        both = [self._post(self._body(_PROOF, repaired=on) | asked) for on in (False, True)]
        try:
            bare, repaired = (found["choices"][0].get("logprobs") for found in both)
        except (AttributeError, LookupError, TypeError):
            raise failed("to give an answer") from None
        return bare != repaired

    def check_switch(self) -> None:
        """UsageError where answers with the word are the same as without it."""
        if not self.switches():
            raise UsageError(
                f"The server at {self.url} answers the same with the word of {OFF_FROM} as without "
                "it, so its channels aren't closed; start it by what care export DIR --format vllm "
                "--drop monitors,gates --off WORD prints, with the same word."
            )

    def answer(
        self, example: Example, repaired: bool, asked: Mapping[str, Any], tag: str = ""
    ) -> Answer:
        """The answer to an example; RequestFailure where it gives none.

        `tag` is what the chat template opens thoughts with, which servers don't repeat.
        """
        said = read_said(self._post(self._body(example, repaired) | dict(asked)), "message")
        return Answer(
            (example.opening or ("" if said.thinks_apart else tag)) + said.content,
            said.prompt_tokens or 0,
            said.tokens or 0,
            ended=said.reason == "stop",
        )

    def told(
        self,
        example: Example,
        repaired: bool,
        asked: Mapping[str, Any],
        heard: Callable[[str, int], None],
        stop: Callable[[str], bool] | None = None,
        tag: str = "",
    ) -> Answer:
        """The same, where `heard` is told the answer so far and its tokens, piece by piece, and
        `stop` ends it there with the piece after which it is true."""
        options = {"stream": True, "stream_options": {"include_usage": True}}
        text, pieces, reason = example.opening or tag, 0, None
        prompt_tokens, tokens = 0, None
        body = self._body(example, repaired) | dict(asked) | options
        with self._asking(), self._stream(body) as response:
            if response.is_error:
                response.read()
            self._check(response)
            for chunk in events(response.iter_lines()):
                said = read_said(chunk, "delta")
                if said.thinks_apart and not pieces:
                    text = example.opening
                reason = said.reason or reason
                prompt_tokens, tokens = said.prompt_tokens or prompt_tokens, said.tokens or tokens
                if said.content:
                    text, pieces = text + said.content, pieces + 1
                    heard(text, pieces)
                    if stop is not None and stop(text):
                        return Answer(text, prompt_tokens, pieces, ended=True)
        return Answer(text, prompt_tokens, tokens or pieces, ended=reason == "stop")

    def close(self) -> None:
        """End what is being answered, in any thread, and ask nothing more."""
        self._connections.close()
        self._client.close()

    @property
    def _chat(self) -> str:
        return f"{self.url}/chat/completions"

    def _listed(self) -> str:
        """The first model that it lists."""
        try:
            with self._asking():
                response = self._client.get(f"{self.url}/models")
                self._check(response)
                return str(response.json()["data"][0]["id"])
        except (RequestFailure, ValueError, LookupError, TypeError) as error:
            raise UsageError(
                f"There is no server of a model at {self.url} ({error!s:.200}); pass its address, "
                "up to and with /v1, as --upstream."
            ) from error

    def _body(self, example: Example, repaired: bool) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model, "messages": messages_of(example)}
        if example.opening:
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        if self.off is not None and not repaired:
            body["vllm_xargs"] = {"care_off": self.off}
        return body

    def _post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        with self._asking():
            response = self._client.post(self._chat, json=body, extensions=self._traced)
            self._check(response)
        try:
            return response.json()
        except ValueError:
            raise failed("to give an answer") from None

    def _stream(self, body: Mapping[str, Any]) -> AbstractContextManager[httpx.Response]:
        return self._client.stream("POST", self._chat, json=body, extensions=self._traced)

    @property
    def _traced(self) -> dict[str, Any]:
        return {"trace": self._connections.trace}

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise RequestFailure(
                502,
                "upstream_unreachable",
                "The server that makes the answers can't be reached; ask again later.",
                retry_after=5,
            ) from error

    def _check(self, response: httpx.Response) -> None:
        """Errors about the request are its sender's, others that server's."""
        if not response.is_error:
            return
        if response.status_code in (400, 413, 422):
            told = f"The server that makes the answers says: {error_in(response)}"
            raise invalid(told, code="upstream_refused")
        raise failed(f"with {response.status_code}")


class UpstreamVLM(VLM):
    """A model that is read here and answers elsewhere."""

    def __init__(self, vlm: VLM, upstream: Upstream) -> None:
        super().__init__(vlm.model, vlm.processor, vlm.name, vlm.revision)
        self.thought_tags, self.upstream = vlm.thought_tags, upstream
        self._repaired, self._look = False, _nothing

    def asking(self, look: Callable[[], None]) -> Self:
        """The same for one request of several that are asked at once; `look` is called before it is
        asked, and at every piece of a stream, and may raise."""
        own = copy.copy(self)
        own._repaired, own._look = False, look
        return own

    @contextmanager
    def repaired(self) -> Iterator[None]:
        """A context in which answers are made with the channels closed."""
        self._repaired = True
        try:
            yield
        finally:
            self._repaired = False

    def answers(
        self,
        examples: Any,
        *,
        max_new_tokens: int = 48,
        batch_size: int | None = 16,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Callable[[str], bool] | None = None,
        progress: Callable[[int], None] | None = None,
        heard: Callable[[str, int], None] | None = None,
    ) -> list[Answer]:
        """Answers of the other server. Each is drawn by a seed of its own, as in `VLM.answers`."""
        examples = listed(examples)
        seeds = row_seeds(examples, seed) if temperature else [None] * len(examples)
        tags = self.thought_tags

        def ask(example: Example, seed: int | None) -> Answer:
            asked: dict[str, Any] = {"max_tokens": max_new_tokens, "temperature": temperature}
            if seed is not None:
                asked["seed"] = seed % MAX_SEED
            end = stop and outside_thoughts(after_opening(stop, example.opening, tags), tags)
            tag = opened_by(render(self.processor, example), tags)
            if heard is None and end is None:
                return self.upstream.answer(example, self._repaired, asked, tag)
            return self.upstream.told(example, self._repaired, asked, looked, end, tag)

        def looked(text: str, tokens: int) -> None:
            self._look()
            if heard is not None:
                heard(text, tokens)

        self._look()
        found = [ask(*each) for each in zip(examples, seeds, strict=True)]
        if progress is not None:
            progress(len(found))
        return found


class UpstreamRepair(Defense):
    """A repair's dialogue, whose answers are made elsewhere."""

    def __init__(self, repair: Repair, reader: Reader | None = None) -> None:
        """`reader` reads for this and other dialogues that are held at once; None: the model that
        is asked reads, and dialogues are held one after the other."""
        self.name, self._repair, self._reader = repair.name, repair, reader

    @classmethod
    def of(cls, defense: Defense, reader: Reader | None = None) -> UpstreamRepair:
        """UsageError for what has no monitors, of which nothing would be done here."""
        if not isinstance(defense, Repair) or not defense.monitors:
            raise UsageError(
                f"{defense.name} has no monitors, so that nothing would be done here; have the "
                "other server close its channels (care export DIR --format vllm) and ask that one."
            )
        return cls(defense, reader)

    def answer(self, vlm: VLM, examples: Sequence[Example], **how: Any) -> list[Answer]:
        """Answers as a dialogue with the monitors comes to them."""
        return self._dialogue(vlm, how).answers(list(examples))

    def stream(
        self, vlm: VLM, example: Example, *, hold: int | None = None, **how: Any
    ) -> Iterator[Streamed]:
        """The answer while it is made there and read here."""
        return self._dialogue(vlm, how).stream(example, hold)

    def digest(self) -> str | None:
        """That of the repair."""
        return self._repair.digest()

    def _dialogue(self, vlm: VLM, how: dict[str, Any]) -> Dialogue:
        there = _elsewhere(vlm)
        closing = there.repaired if there.upstream.off is not None else None
        if self._reader is None:
            return Dialogue(there, self._repair.monitors, closing, how)
        return DialogueReadTogether(there, self._repair.monitors, closing, how, self._reader)


class UpstreamEdits(Defense):
    """A repair without monitors: its edits, made elsewhere."""

    def __init__(self, repair: Repair) -> None:
        self.name, self._repair = repair.name, repair

    def answer(self, vlm: VLM, examples: Sequence[Example], **how: Any) -> list[Answer]:
        """Answers of the other server under the repair."""
        with _elsewhere(vlm).repaired():
            return vlm.answers(list(examples), **how)

    def stream(
        self, vlm: VLM, example: Example, *, hold: int | None = None, **how: Any
    ) -> Iterator[Streamed]:
        """The answer while it is made there."""
        with _elsewhere(vlm).repaired():
            yield from Defense().stream(vlm, example, hold=hold, **how)

    def digest(self) -> str | None:
        """That of the repair."""
        return self._repair.digest()


def _elsewhere(vlm: VLM) -> UpstreamVLM:
    assert isinstance(vlm, UpstreamVLM), "its channels are closed elsewhere"
    return vlm


def _nothing() -> None:
    """Nobody has to be looked for."""
