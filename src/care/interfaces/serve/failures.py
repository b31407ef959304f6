"""What a request that isn't answered is told: a status and one sentence, as OpenAI's errors are.

    {"error": {"message": "…", "type": "invalid_request_error", "param": null, "code": "…"}}

Errors of `care` that are about the request are told as they are; others, and what nobody foresaw,
are this server's fault, and no more than that is said. Not here: what was asked wrongly (`body`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from care.errors import CareError, DataError, NotFiniteError, UsageError

CLIENT_GONE = 499
"""Status in logs of a request whose client hung up; nobody is told it."""

TOO_LONG = "context_length_exceeded"
"""OpenAI's code for a prompt that is too long."""


class RequestFailure(CareError, RuntimeError):
    """A request that isn't answered, and what its client is told."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.retry_after = None if retry_after is None else max(1, math.ceil(retry_after))

    @property
    def kind(self) -> str:
        """OpenAI's name for errors of this status."""
        named = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        return named.get(
            self.status, "server_error" if self.status >= 500 else "invalid_request_error"
        )

    @property
    def body(self) -> dict[str, Any]:
        """What is sent."""
        told = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return {"error": told}

    @property
    def headers(self) -> Mapping[str, str]:
        """What is sent before it."""
        found = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return found | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> RequestFailure:
    """A request that asks for what there isn't."""
    return RequestFailure(400, code, message, param)


class ModelStopped(CareError, RuntimeError):
    """The model was stopped in the middle: the server ends, or nobody waits for the answer."""


def failure_of(error: BaseException) -> RequestFailure:
    """What the client of a request that ended in an error is told."""
    if isinstance(error, RequestFailure):
        return error
    if isinstance(error, ModelStopped):
        return RequestFailure(
            503, "shutting_down", "The server ends before the answer was there; ask again.",
            retry_after=5,
        )  # fmt: skip
    if isinstance(error, NotFiniteError):
        return RequestFailure(500, "model_error", str(error))
    if isinstance(error, (UsageError, DataError)):
        return invalid(str(error))
    return RequestFailure(
        500, "internal_error", "The server failed at this request; its log says more."
    )
