"""Attacks in words as part of an evaluation: who asks what of whom.

An attack in words (`care.attacks.word_attacks`) asks the held-out requests in all of its variants,
as a suite by its name; what is searched on a defense is a suite for each, "gcg on care", as with
pictures. The requests are those of `suite=`, pictures included, or else the ones that image attacks
take. What n tries of a request come to is in `tries`. Not here: the attacks themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from care.attacks.words import Search, asked
from care.data.example import Suite
from care.data.registry import load_suite
from care.defenses.loading import load_defense
from care.errors import UsageError
from care.evaluation.adaptive import (
    Made,
    counting,
    folders,
    held_out,
    made_on,
    owners,
    share,
    suite_name,
    threats_of,
)
from care.evaluation.config import AskedWords
from care.evaluation.leak_check import refuse_leaks
from care.evaluation.scores import SuiteScores, Threat
from care.models.spec import ModelSpec
from care.models.vlm import VLM
from care.runs.progress import Bar, silent
from care.runs.run import Run


def word_requests(
    words: Sequence[AskedWords], suites: Sequence[str], limit: int | None, seed: int
) -> list[Suite]:
    """The held-out requests of each attack in words.

    `suites` are the evaluation's own by name. Raises UsageError for a named suite without malicious
    requests.
    """
    return [_requests(one, suites, limit, seed) for one in words]


def check_word_goals(
    words: Sequence[AskedWords], model: ModelSpec, seed: int, requests: Sequence[Suite]
) -> None:
    """UsageError if an attack searches on a goal of its held-out `requests`."""
    for one, held in zip(words, requests, strict=True):
        of = Search(Path(), model, seed)
        optimised = tuple(
            replace(e, id=f"{place}", suite="requests of the attack")
            for place, e in enumerate(one.attack.optimised_on(of))
        )
        if optimised:
            refuse_leaks([Suite(one.name, "attack", optimised)], [held])


def plain_suites(words: Sequence[AskedWords], requests: Sequence[Suite]) -> list[Suite]:
    """The held-out requests in all variants of each attack that asks every defense the same."""
    return [
        asked(one.attack, held, one.name, one.attack.variants())
        for one, held in zip(words, requests, strict=True)
        if not one.attack.through
    ]


def search_words(
    words: Sequence[AskedWords],
    requests: Sequence[Suite],
    defenses: Mapping[str, Path | None],
    run: Run,
    spec: ModelSpec,
    seed: int,
    vlm: VLM,
    progress: Bar | None = None,
) -> None:
    """Search what isn't there yet of every attack that searches, on every defense."""
    for one, held in zip(words, requests, strict=True):
        if one.attack.joins or not one.attack.through:
            continue
        places = folders(run.path, one, defenses)
        made: dict[str | None, str] = {}
        for (name, path), folder in zip(defenses.items(), places, strict=True):
            defense = None if path is None else load_defense(path, vlm)
            seen = one.attack.sees(defense)
            if (owner := made.setdefault(seen, name)) != name:
                if seen is not None:
                    run.inside(*folder.parent.relative_to(run.path).parts)
                    share(folder, owner)
                continue
            run.inside(*folder.relative_to(run.path).parts).mkdir(parents=True, exist_ok=True)
            label, many = suite_name(one, name), one.attack.search_steps(held)
            of = Search(folder, spec, seed, run.manifest["pinned"]["model"])
            with run.stage(f"attack {label}"), (progress or silent)(label, many) as bar:
                advance = counting(bar)
                one.attack.search(
                    vlm,
                    defense,
                    held,
                    of,
                    lambda before, step, loss, advance=advance: advance(before + step, loss),
                )


def found_suites(
    words: Sequence[AskedWords], path: Path, defenses: Sequence[str], requests: Sequence[Suite]
) -> list[Suite]:
    """The held-out requests as each search in the run's folder `path` asks them."""
    return [
        asked(one.attack, held, suite_name(one, name), one.attack.found(folder))
        for one, held in zip(words, requests, strict=True)
        if one.attack.through and not one.attack.joins
        for name, folder in made_on(path, one, defenses).items()
    ]


def suites_of(words: Sequence[AskedWords], defenses: Sequence[str]) -> dict[str, AskedWords]:
    """The attacks by the names of their suites."""
    return {
        name: one
        for one in words
        for name in (
            [suite_name(one, defense) for defense in defenses] if one.attack.through else [one.name]
        )
    }


def word_threats(
    words: Sequence[AskedWords],
    path: Path,
    defenses: Sequence[str],
    suites: Sequence[SuiteScores],
) -> list[Threat]:
    """Transfer and adaptive figures of what was searched, from the `suites` of a scorecard."""
    cells = {suite.name: suite.defenses for suite in suites}
    found: list[Threat] = []
    for one in words:
        if one.attack.joins or not one.attack.through:
            continue
        steps = getattr(one.attack, "steps", 0)
        made = {
            name: Made(one.attack.loss_in(folder), steps, None)
            for name, folder in made_on(path, one, defenses).items()
        }
        found += threats_of(one, made, owners(path, one, defenses), defenses, cells)
    return found


def _requests(one: AskedWords, suites: Sequence[str], limit: int | None, seed: int) -> Suite:
    name = one.suite or one.attack.held_out
    if name is None:
        return one.attack.shown(held_out([one], suites, limit, seed)[0])
    named = load_suite(name, limit=limit, seed=seed)
    found = tuple(example for example in named if example.kind == "malicious")
    if not found:
        raise UsageError(
            f"The suite {name} has no malicious request for the attack {one.name}; name "
            "another with suite=NAME."
        )
    return one.attack.shown(replace(named, examples=found))
