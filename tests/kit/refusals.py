"""What is refused: the class of an error and words of its one sentence, singly or as a table."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

Case = tuple[type[Exception], str, Callable[..., Any]]
"""Class, words (a regular expression), and a call whose parameters are fixtures."""


@contextmanager
def refused(
    error: type[Exception], words: str, end: str = ""
) -> Iterator[pytest.ExceptionInfo[Exception]]:
    """What is done inside raises this, in one sentence."""
    with pytest.raises(error, match=words) as caught:
        yield caught
    said = str(caught.value)
    assert "\n" not in said and said.endswith(end)


def refusals(*cases: Case) -> Callable[..., None]:
    """A test of every case; to be given a name that begins with `test_`."""

    @pytest.mark.parametrize(("error", "words", "call"), cases, ids=[case[1] for case in cases])
    def every(request: pytest.FixtureRequest, error: type, words: str, call: Callable) -> None:
        given = {name: request.getfixturevalue(name) for name in inspect.signature(call).parameters}
        with refused(error, words):
            call(**given)

    return every
