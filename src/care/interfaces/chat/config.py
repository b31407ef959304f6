"""What is shown, to whom, and how much of it: the options of `care chat`.

Plain data: neither torch nor gradio is imported here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from care.errors import DataError, UsageError
from care.interfaces.requests.hosts import LOCAL
from care.interfaces.requests.limits import RequestLimits
from care.models.spec import ModelSpec
from care.runs.reading import check_regular
from care.runs.settings import FILE, MAX_BATCH, MAX_SEED, Between, check_bounds

LOGIN_FROM = "CARE_CHAT_LOGIN"
"""Environment variable that holds a user and a password, USER:PASSWORD."""

LEAST = 12
"""Fewest characters of a password; a shorter one can be guessed."""

_MAX_LOGINS = 1 << 20
"""Most bytes of a file of users and passwords."""


@dataclass(frozen=True, kw_only=True)
class ChatLimits(RequestLimits):
    """What one request of the page may hold, and how many there may be."""

    max_waiting: Annotated[int, Between(1, MAX_BATCH)] = 16
    """Requests that wait for the model; one more is told to come again later."""


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """A model, the repair that it is shown with, and who may look."""

    repair: str
    """Folder of a repair (or its name on the Hub), or another defense; it answers beside the bare
    model."""
    hold: Annotated[int | None, Between(0, MAX_BATCH)] = None
    """Tokens of the repaired answer that are kept back until a monitor has read them; none: until
    the first reading."""
    system: str | None = None
    """System message of every conversation, if any."""
    max_new_tokens: Annotated[int | None, Between(1, MAX_BATCH)] = None
    """Length of an answer; none: 24 for the embedded model, 512 for others."""
    temperature: Annotated[float, Between(0, 100)] = 0.0
    """0 is greedy; more draws the answers."""
    seed: Annotated[int, Between(0, MAX_SEED)] = 0
    """Seed of answers that are drawn."""
    host: str = "127.0.0.1"
    """Address to listen at; any but this machine's own needs --login or CARE_CHAT_LOGIN."""
    port: Annotated[int, Between(0, 65535)] = 7860
    """Port to listen at; 0: any that is free."""
    login: Annotated[Path | None, FILE] = None
    """File of USER:PASSWORD, one a line, one of which the page asks for; one more in
    CARE_CHAT_LOGIN."""
    limits: ChatLimits = ChatLimits()
    """What one request may hold, and how many there may be."""
    model: ModelSpec = ModelSpec()
    """What is asked."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if not self.repair:
            raise UsageError("--repair is empty; pass the folder of a repair.")

    @property
    def how(self) -> dict[str, Any]:
        """How requests are answered, as `VLM.answers` takes it."""
        return {
            "max_new_tokens": self.model.answer_length(self.max_new_tokens),
            "temperature": self.temperature,
            "seed": self.seed,
        }

    def logins(self) -> list[tuple[str, str]]:
        """Users and their passwords; UsageError for an address that others reach, without any."""
        lines = [*_lines(self.login), *filter(None, [os.environ.get(LOGIN_FROM, "").strip()])]
        found = [_login(line, place) for place, line in enumerate(lines, start=1)]
        if self.host not in LOCAL and not found:
            raise UsageError(
                f"--host {self.host} can be reached by others, but nobody has a password; pass "
                f"--login FILE or set {LOGIN_FROM}, or leave --host out."
            )
        return found


def _lines(file: Path | None) -> list[str]:
    if file is None:
        return []
    check_regular(file, "file of users", _MAX_LOGINS)
    try:
        lines = [line.strip() for line in file.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The users in {file} can't be read ({type(error).__name__}).") from error
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise UsageError(f"There is no user in {file}; write USER:PASSWORD, or leave it out.")
    return found


def _login(line: str, place: int) -> tuple[str, str]:
    user, _, password = line.partition(":")
    if not user or len(password) < LEAST:
        # Not repeated: what is said ends up in logs.
        raise UsageError(
            f"Login number {place} isn't USER:PASSWORD with a password of {LEAST} characters or "
            "more; make one with `python -c 'import secrets; print(secrets.token_urlsafe())'`."
        )
    return user, password
