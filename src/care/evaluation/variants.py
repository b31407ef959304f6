"""Attacks in variants as part of an evaluation: who asks what of whom.

An attack in variants (`care.attacks.variants`) asks the held-out requests in all of them, as a
suite by its name; what is searched on a defense is a suite for each, "gcg on care", as with single
images. The requests are those of `suite=`, pictures included, or else the ones that image attacks
take. What n tries of a request come to is in `tries`. Not here: the attacks themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from care.attacks.variants import FixedAttack, Search, SearchedAttack, asked
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
from care.evaluation.asked_attacks import AskedVariants
from care.evaluation.attack_scores import Threat
from care.evaluation.leak_check import refuse_leaks
from care.evaluation.suite_scores import SuiteScores
from care.models.spec import ModelSpec
from care.models.vlm import VLM
from care.runs.progress import Bar, silent
from care.runs.run import Run


def variant_requests(
    in_variants: Sequence[AskedVariants], suites: Sequence[str], limit: int | None, seed: int
) -> list[Suite]:
    """The held-out requests of each attack in variants.

    `suites` are the evaluation's own by name. Raises UsageError for a named suite without malicious
    requests.
    """
    return [_requests(one, suites, limit, seed) for one in in_variants]


def check_variant_goals(
    in_variants: Sequence[AskedVariants], model: ModelSpec, seed: int, requests: Sequence[Suite]
) -> None:
    """UsageError if an attack searches on a goal of its held-out `requests`."""
    for one, held in zip(in_variants, requests, strict=True):
        if not isinstance(one.attack, SearchedAttack):
            continue
        optimised = tuple(
            replace(e, id=f"{place}", suite="requests of the attack")
            for place, e in enumerate(one.attack.optimised_on(Search(Path(), model, seed)))
        )
        if optimised:
            refuse_leaks([Suite(one.name, "attack", optimised)], [held])


def fixed_suites(in_variants: Sequence[AskedVariants], requests: Sequence[Suite]) -> list[Suite]:
    """The held-out requests in all variants of each attack that asks every defense the same."""
    return [
        asked(one.attack, held, one.name, one.attack.variants())
        for one, held in zip(in_variants, requests, strict=True)
        if isinstance(one.attack, FixedAttack)
    ]


def search_variants(
    in_variants: Sequence[AskedVariants],
    requests: Sequence[Suite],
    defenses: Mapping[str, Path | None],
    run: Run,
    of: Search,
    vlm: VLM,
    progress: Bar | None = None,
) -> None:
    """Search what isn't there yet of every attack that searches, on every defense.

    Each search gets a folder of its own below that of `of`, the run's.
    """
    for one, held in zip(in_variants, requests, strict=True):
        attack = one.attack
        if not isinstance(attack, SearchedAttack):
            continue
        places = folders(run.path, one, defenses)
        made: dict[str | None, str] = {}
        for (name, path), folder in zip(defenses.items(), places, strict=True):
            defense = None if path is None else load_defense(path, vlm)
            seen = attack.sees(defense)
            if (owner := made.setdefault(seen, name)) != name:
                if seen is not None:
                    run.inside(*folder.parent.relative_to(run.path).parts)
                    share(folder, owner)
                continue
            run.inside(*folder.relative_to(run.path).parts).mkdir(parents=True, exist_ok=True)
            label, many = suite_name(one, name), attack.search_steps(held)
            with run.stage(f"attack {label}"), (progress or silent)(label, many) as bar:
                advance = counting(bar)
                attack.search(
                    vlm,
                    defense,
                    held,
                    replace(of, folder=folder),
                    lambda before, step, loss, advance=advance: advance(before + step, loss),
                )


def found_suites(
    in_variants: Sequence[AskedVariants],
    path: Path,
    defenses: Sequence[str],
    requests: Sequence[Suite],
) -> list[Suite]:
    """The held-out requests as each search in the run's folder `path` asks them."""
    return [
        asked(one.attack, held, suite_name(one, name), one.attack.found(folder))
        for one, held in zip(in_variants, requests, strict=True)
        if isinstance(one.attack, SearchedAttack)
        for name, folder in made_on(path, one, defenses).items()
    ]


def suites_of(
    in_variants: Sequence[AskedVariants], defenses: Sequence[str]
) -> dict[str, AskedVariants]:
    """The attacks by the names of their suites."""
    return {
        name: one
        for one in in_variants
        for name in (
            [suite_name(one, defense) for defense in defenses] if one.by_defense else [one.name]
        )
    }


def variant_threats(
    in_variants: Sequence[AskedVariants],
    path: Path,
    defenses: Sequence[str],
    suites: Sequence[SuiteScores],
) -> list[Threat]:
    """Transfer and adaptive figures of what was searched, from the `suites` of a scorecard."""
    cells = {suite.name: suite.defenses for suite in suites}
    found: list[Threat] = []
    for one in in_variants:
        attack = one.attack
        if not isinstance(attack, SearchedAttack):
            continue
        made = {
            name: Made(attack.loss_in(folder), attack.steps, None)
            for name, folder in made_on(path, one, defenses).items()
        }
        found += threats_of(one, made, owners(path, one, defenses), defenses, cells)
    return found


def _requests(one: AskedVariants, suites: Sequence[str], limit: int | None, seed: int) -> Suite:
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
