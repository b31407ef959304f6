"""Attacks in words as part of an evaluation: who asks what of whom.

An attack in words (`care.attacks.word_attacks`) asks the held-out requests in all of its variants,
as a suite by its name; what is searched on a defense is a suite for each, "gcg on care", as with
pictures. The requests are those of `suite=`, pictures included, or else the ones that image attacks
take. What n tries of a request come to is in `tries`. Not here: the attacks themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from care.attacks.words import asked
from care.data.example import Suite
from care.data.registry import load_suite
from care.errors import UsageError
from care.evaluation.adaptive import held_out
from care.evaluation.config import AskedWords


def word_requests(
    words: Sequence[AskedWords], suites: Sequence[str], limit: int | None, seed: int
) -> list[Suite]:
    """The held-out requests of each attack in words.

    `suites` are the evaluation's own by name. Raises UsageError for a named suite without malicious
    requests.
    """
    return [_requests(one, suites, limit, seed) for one in words]


def word_suites(words: Sequence[AskedWords], requests: Sequence[Suite]) -> list[Suite]:
    """The held-out requests, one suite for each attack, in all of its variants."""
    return [
        asked(one.attack, held, one.name, one.attack.variants())
        for one, held in zip(words, requests, strict=True)
    ]


def temperature_of(words: Sequence[AskedWords], suite: Suite) -> float:
    """At which the answers to a suite are drawn; 0 is greedy."""
    return next((one.attack.draws for one in words if one.name == suite.name), 0.0)


def _requests(one: AskedWords, suites: Sequence[str], limit: int | None, seed: int) -> Suite:
    if one.suite is None:
        return held_out([one], suites, limit, seed)[0]
    named = load_suite(one.suite, limit=limit, seed=seed)
    found = tuple(example for example in named if example.kind == "malicious")
    if not found:
        raise UsageError(
            f"The suite {one.suite} has no malicious request for the attack {one.name}; name "
            "another with suite=NAME."
        )
    return replace(named, examples=found)
