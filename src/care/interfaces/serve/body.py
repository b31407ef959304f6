"""The body of a request for a chat completion: from bytes to a conversation and how it is answered.

Every parameter is honoured, or neutral (it changes no answer), or a failure that names it; none is
dropped. What isn't said counts as OpenAI has it, but for the temperature, which is 0. Messages of
a system, a user and an assistant are read as they stand, and a last one of the assistant's begins
the answer. Not here: pictures (`images`), and whether the caller may ask so (`service`).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from care.data.conversation import Conversation
from care.errors import UsageError
from care.interfaces.requests.decoding import Decoding, check_settings
from care.interfaces.serve.config import Limits
from care.interfaces.serve.failures import TOO_LONG, RequestFailure, invalid
from care.interfaces.serve.images import PictureReader
from care.runs.settings import MAX_SEED

MAX_STOPS, MAX_STOP = 16, 500
"""Most texts at which an answer ends, and most characters of one."""

LONGEST_TOKEN = 32
"""Characters that a token is taken to hold at most: longer prompts are refused uncounted."""

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

_HONOURED = frozenset(
    {"model", "messages", "max_tokens", "max_completion_tokens", "temperature", "seed", "stop"}
    | {"stream", "stream_options", "care"}
)
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "top_p": (1,),
    "top_k": (-1, 0),
    "min_p": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "echo": (False,),
}
"""Values that ask for nothing; so does null of any parameter."""
_ABOUT_THE_CLIENT = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key"})
"""Parameters that say who asks, and nothing of the answer."""
_GREEDY_NEUTRAL = frozenset({"top_p", "top_k", "min_p"})
"""Parameters that an answer which isn't drawn doesn't look at."""
_NEUTRAL_OF_MESSAGES = frozenset(
    {"refusal", "annotations", "audio", "function_call", "tool_calls", "name"}
)
"""What messages of a client's library hold besides; neutral where it is null or empty."""
_THOUGHTS = "reasoning_content"
"""What clients send back of an answer's thoughts, of which a model isn't asked."""


@dataclass(frozen=True)
class ChatRequest:
    """A request for a chat completion."""

    conversation: Conversation
    """What is asked."""
    decoding: Decoding
    """How it is answered."""
    stream: bool
    """Whether the answer is sent while it is made."""
    usage: bool
    """Whether a stream ends with its numbers of tokens."""
    repaired: bool
    """Whether the repair is put on; false only where the request says so."""


def read_body(body: bytes, name: str, limits: Limits, longest: int) -> ChatRequest:
    """The request in a body to the model `name`; RequestFailure for what can't be honoured.

    `longest` is the length of an answer where the request doesn't say.
    """
    asked = _object(body)
    if "messages" not in asked:
        raise invalid("The request has no messages; add some.", "messages", "missing")
    check_model(asked.get("model"), name)
    decoding = _decoding(asked, limits, longest)
    conversation = _conversation(asked["messages"], limits)
    if decoding.temperature and asked.get("seed") is None:
        # Drawn anew each time, and yet together with others: by the request, not by the seed.
        conversation = replace(conversation, turn=secrets.randbits(48))
    stream = _flag(asked, "stream")
    options = _within(asked, "stream_options", ("include_usage", "include_obfuscation"))
    if options and not stream:
        raise invalid("stream_options needs stream; leave it out.", "stream_options")
    if options.get("include_obfuscation"):
        raise invalid("A stream isn't obfuscated; leave that out.", "stream_options")
    care = _within(asked, "care", ("repair",))
    return ChatRequest(
        conversation,
        decoding,
        stream,
        usage=_flag(options, "include_usage"),
        repaired=_flag(care, "repair", True),
    )


def check_model(wanted: Any, name: str) -> None:
    """RequestFailure for another model than the one called `name`; None is that one."""
    if wanted not in (None, name):
        raise RequestFailure(
            404,
            "model_not_found",
            f"There is no model {_shown(wanted)} here; this server has {name!r}.",
            "model",
        )


# -- parameters ------------------------------------------------------------------------------------


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise invalid(
            f"The request's body isn't JSON ({why:.120}); check it.", code="invalid_json"
        ) from None
    if not isinstance(found, dict):
        raise invalid(
            f"The request's body is a JSON object, got {_kind(found)}.", code="invalid_json"
        )
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _decoding(asked: Mapping[str, Any], limits: Limits, longest: int) -> Decoding:
    temperature = _number(asked, "temperature", 0, 2, 0.0)
    wrong: list[str] = []

    def told(name: str, value: Any) -> str:
        wrong.append(_named(name))
        return (
            f"{_named(name)}={_shown(value)} can't be honoured; leave it out. Honoured are "
            f"{', '.join(sorted(_HONOURED))}."
        )

    try:
        check_settings(
            asked,
            _HONOURED,
            lambda name, value: _is_neutral(name, value, greedy=temperature == 0),
            told,
        )
    except UsageError as error:
        raise invalid(str(error), wrong[0], "unsupported_parameter") from None
    lengths = {
        _whole(asked, name, 1, limits.max_answer_tokens)
        for name in ("max_tokens", "max_completion_tokens")
    } - {None}
    if len(lengths) > 1:
        raise invalid("max_tokens and max_completion_tokens differ; pass one.", "max_tokens")
    return Decoding(
        max_new_tokens=next(iter(lengths), None) or longest,
        temperature=temperature,
        until=_stops(asked.get("stop")),
        seed=_whole(asked, "seed", 0, MAX_SEED) or 0,
    )


def _is_neutral(name: str, value: Any, greedy: bool) -> bool:
    if value is None or name in _ABOUT_THE_CLIENT or (greedy and name in _GREEDY_NEUTRAL):
        return True
    # By type too: to Python true is 1, but logprobs=0 and n=true are mistakes.
    return any(
        value == known and isinstance(value, bool) == isinstance(known, bool)
        for known in _NEUTRAL.get(name, ())
    )


def _number(asked: Mapping[str, Any], name: str, low: float, high: float, default: float) -> float:
    value = asked.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise invalid(f"{name} is a number from {low} to {high}, got {value!r:.40}.", name)
    return float(value)


def _whole(asked: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
    value = asked.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise invalid(f"{name} is a whole number from {low} to {high}, got {_shown(value)}.", name)
    return value


def _flag(asked: Mapping[str, Any], name: str, default: bool = False) -> bool:
    value = asked.get(name)
    if value is not None and not isinstance(value, bool):
        raise invalid(f"{name} is true or false, got {_shown(value)}.", name)
    return default if value is None else value


def _within(asked: Mapping[str, Any], name: str, known: Sequence[str]) -> Mapping[str, Any]:
    """An object within the request, of which nothing but `known` may be said."""
    value = asked.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise invalid(f"{name} is an object, got {_kind(value)}.", name)
    if unknown := next((key for key in value if key not in known), None):
        raise invalid(f"{name} takes {', '.join(known)}, got {_shown(unknown)}.", name)
    return value


def _stops(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else [] if value is None else value
    good = isinstance(texts, list) and len(texts) <= MAX_STOPS
    if not good or not all(isinstance(t, str) and 0 < len(t) <= MAX_STOP for t in texts):
        raise invalid(
            f"stop is a text or a list of at most {MAX_STOPS}, each of 1 to {MAX_STOP} "
            f"characters, got {_shown(value)}.",
            "stop",
        )
    return tuple(_unicode(text, "stop") for text in texts)


# -- messages --------------------------------------------------------------------------------------


def _conversation(messages: Any, limits: Limits) -> Conversation:
    if not isinstance(messages, list):
        raise invalid(f"messages is a list, got {_kind(messages)}.", "messages")
    turns = [_turn(message, place) for place, message in enumerate(messages)]
    texts = [part for _, parts in turns for part in parts if isinstance(part, str)]
    count, size = sum(len(parts) + 1 for _, parts in turns), sum(map(len, texts))
    if size > LONGEST_TOKEN * limits.max_prompt_tokens or count > 4 + limits.max_prompt_tokens:
        raise too_long(f"{size:,} characters in {count:,} messages and parts", limits)
    pictures = PictureReader(limits)
    return Conversation.made(turns, lambda part, what: pictures.load(part.url, what))


def too_long(what: str, limits: Limits) -> RequestFailure:
    """A prompt that is longer than prompts may be."""
    return invalid(
        f"The prompt has {what}, more than its {limits.max_prompt_tokens:,} tokens may hold; "
        "shorten it.",
        "messages",
        TOO_LONG,
    )


@dataclass(frozen=True)
class _Picture:
    url: str


def _turn(message: Any, place: int) -> tuple[str, list[Any]]:
    where = f"messages[{place}]"
    if not isinstance(message, dict):
        raise invalid(f"{where} is an object, got {_kind(message)}.", "messages")
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise invalid(
            f"{where}.role is {', '.join(_ROLES)}, got {_shown(role)}; no tools are called here.",
            "messages",
        )
    for name, value in message.items():
        if name == _THOUGHTS and role == "assistant" and isinstance(value, str | None):
            continue
        empty = value is None or value in ("", [], {})
        if name not in ("role", "content") and not (name in _NEUTRAL_OF_MESSAGES and empty):
            raise invalid(
                f"{where}.{_named(name)} can't be honoured; leave it out.",
                "messages",
                "unsupported_parameter",
            )
    content = message.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise invalid(
            f"{where}.content is a text or a list of parts, got {_kind(content)}.", "messages"
        )
    parts = [_part(part, f"{where}.content[{n}]") for n, part in enumerate(content)]
    if _ROLES[role] != "user" and any(isinstance(part, _Picture) for part in parts):
        raise invalid(f"{where} holds an image, which only a user's may.", "messages")
    return _ROLES[role], [part for part in parts if part != ""]


def _part(part: Any, where: str) -> str | _Picture:
    known = part if isinstance(part, dict) else {}
    kind, image = known.get("type"), known.get("image_url")
    if kind == "text" and set(known) == {"type", "text"} and isinstance(known["text"], str):
        return _unicode(known["text"], where)
    if kind == "image_url" and set(known) == {"type", "image_url"} and isinstance(image, dict):
        url, detail = image.get("url"), image.get("detail")
        if set(image) <= {"url", "detail"} and isinstance(url, str):
            if detail not in (None, "auto"):
                raise invalid(
                    f"{where} asks for detail {_shown(detail)}, but the model's processor decides "
                    "how fine an image is read; leave it at auto.",
                    "messages",
                )
            return _Picture(url)
    raise invalid(
        f'{where} is {{"type": "text", "text": …}} or {{"type": "image_url", "image_url": '
        f'{{"url": "data:image/…"}}}}, got {_shown(part)}.',
        "messages",
    )


def _unicode(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise invalid(
            f"{where} holds half a character (a lone surrogate); send whole ones.", "messages"
        ) from None
    return text


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")


def _named(name: str) -> str:
    """A name as it is, or quoted where it could break the sentence that it stands in."""
    return name if name.isidentifier() and name.isascii() and len(name) <= 60 else ascii(name[:60])


def _shown(value: Any) -> str:
    """A short value as it is, a long one or a structure by its kind."""
    if isinstance(value, (dict, list)) or (isinstance(value, str) and len(value) > 40):
        return _kind(value)
    try:
        return f"{value!a:.60}"
    except ValueError:  # a whole number of thousands of digits isn't written
        return _kind(value)
