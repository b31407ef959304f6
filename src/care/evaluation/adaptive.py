"""Image attacks as part of an evaluation: one image against each defense, shown to all of them.

For each attack an image is optimised on the bare model and, knowing it, through every repair. Each
image becomes a suite, "pgd-32 on care" for one made against care, of the same held-out requests,
so that the table holds the whole matrix of whom an image was made against and who is shown it:

    transfer    a defense beside the image made on the bare model
    adaptive    a defense beside the image made through it
    certified   the most that any image achieves beside these requests (`certificate`)

A defense with monitors gives the bare model's answers until one raises an alarm, so the image made
on the bare model is the one made through it: both figures are the same then.

A defense is as good as its adaptive figure, and that only as far as the attack was tried. Images
are kept in the run's folder (attacks/NAME/K/image.png, K = 0 the bare model's); one that is being
made goes on from its checkpoint. Not here: how an image is optimised (`care.attacks`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from care.attacks.config import AttackConfig
from care.attacks.facts import AttackFacts
from care.attacks.job import made_of, requests_of, run_attempts
from care.attacks.job import run as make_image
from care.attacks.watched import of_pictures
from care.data.example import Example, Suite
from care.data.registry import load_suite
from care.defenses.base import Defense
from care.defenses.loading import load_defense
from care.errors import DataError, StorageError, UsageError
from care.evaluation.asked_attacks import (
    AskedAttack,
    ImageAttack,
)
from care.evaluation.attack_scores import Threat
from care.evaluation.certificate import Certificate
from care.evaluation.config import UNDEFENDED
from care.evaluation.leak_check import refuse_leaks
from care.evaluation.suite_scores import DefenseScores, SuiteScores
from care.models.spec import ModelSpec
from care.models.vlm import VLM
from care.runs.files import to_json, write_whole
from care.runs.progress import Bar, Progress, silent
from care.runs.reading import file_digest, read_json
from care.runs.run import Run
from care.runs.shards import ShardTurns
from care.typed import from_tree, to_tree

NUMBERS = "numbers.json"
"""Holds the numbers of defenses in a run that others may join."""

HELD_OUT = "direct"
"""The small world's suite of requests without pictures."""


def check_goals(
    attacks: Sequence[ImageAttack], model: ModelSpec, seed: int, requests: Sequence[Suite]
) -> None:
    """UsageError if an attack is optimised on a goal of the held-out `requests`, one suite each."""
    for attack, held in zip(attacks, requests, strict=True):
        asked, _ = requests_of(attack.against(model, seed, Path()))
        optimised = tuple(replace(e, suite="requests of the attack") for e in asked)
        refuse_leaks([Suite(name=attack.name, role="attack", examples=optimised)], [held])


def make_images(
    attacks: Sequence[ImageAttack],
    defenses: Mapping[str, Path | None],
    run: Run,
    spec: ModelSpec,
    seed: int,
    vlm: VLM,
    progress: Bar | None = None,
    turns: ShardTurns | None = None,
) -> None:
    """Optimise the images that aren't there yet, of every attack on every defense.

    `vlm` is the model of `spec`. Where `turns` deal out the attempts, only this process's are made,
    as far as their checkpoints. Raises what `care.attacks.job.run` raises.
    """
    identity = run.manifest["pinned"]["model"]
    for attack in attacks:
        places = folders(run.path, attack, defenses)
        for (name, repair), folder in zip(defenses.items(), places, strict=True):
            label = suite_name(attack, name)
            job = attack.against(spec, seed, folder, repair)
            if repair is not None and not made_for(load_defense(repair, vlm)):
                continue  # the bare model decides, and its image is there
            config = job.pgd()
            mine = None if turns is None else turns.next(config.restarts)
            if (folder / "attack.json").exists():
                _check_made_of(folder, job, identity, label)
                continue
            run.inside(*folder.relative_to(run.path).parts)
            if mine is not None:
                if mine:
                    with run.stage(f"attack {label}"):
                        run_attempts(job, mine, vlm=vlm)
                continue
            many = config.steps * config.restarts
            with run.stage(f"attack {label}"), (progress or silent)(label, many) as bar:
                make_image(job, counting(bar), vlm, identity)


def image_suites(
    attacks: Sequence[ImageAttack],
    path: Path,
    defenses: Sequence[str],
    requests: Sequence[Suite],
) -> list[Suite]:
    """The held-out requests beside each image that was made, in the run's folder `path`."""
    return [
        _beside(folder / "image.png", suite_name(attack, name), held_out)
        for attack, held_out in zip(attacks, requests, strict=True)
        for name, folder in made_on(path, attack, defenses).items()
    ]


def held_out(
    attacks: Sequence[AskedAttack], suites: Sequence[str], limit: int | None, seed: int
) -> list[Suite]:
    """The held-out requests of each attack: malicious ones that bring no picture of their own.

    `suites` are the evaluation's own by name; the first with such requests is taken where an attack
    names none, and that of the small world where there is none at all.
    """
    return [_held_out(attack, suites, limit, seed) for attack in attacks]


def suite_name(attack: AskedAttack, defense: str) -> str:
    """Name of the suite of requests with what was made against `defense`."""
    return f"{attack.name} on {defense}"


def threats(
    attacks: Sequence[ImageAttack],
    path: Path,
    defenses: Sequence[str],
    suites: Sequence[SuiteScores],
) -> list[Threat]:
    """Transfer and adaptive figures of each defense, from the `suites` of a scorecard."""
    cells = {suite.name: suite.defenses for suite in suites}
    found: list[Threat] = []
    for attack in attacks:
        facts = {name: _facts(folder) for name, folder in made_on(path, attack, defenses).items()}
        made = {
            name: Made(each.images["image"].loss, each.config.steps, each.config.epsilon)
            for name, each in facts.items()
        }
        found += threats_of(attack, made, owners(path, attack, defenses), defenses, cells)
    return found


def made_for(defense: Defense | None) -> bool:
    """Whether an image is made on a defense: on what decides, or on what sees the image."""
    return defense is None or not defense.revises or bool(of_pictures(defense))


@dataclass(frozen=True)
class Made:
    """What was made on one defense."""

    loss: float
    """What its search has come to."""
    steps: int
    """Steps of the search."""
    epsilon: float | None
    """Radius of an image; None for an unconstrained one, and for words."""


def threats_of(
    attack: AskedAttack,
    made: Mapping[str, Made],
    owners: Mapping[str, str],
    defenses: Sequence[str],
    cells: Mapping[str, Mapping[str, DefenseScores]],
) -> list[Threat]:
    """Transfer and adaptive figures of one attack, given what was `made` on which defense.

    `owners` are the defenses on which what each is attacked with was made, `cells` the scores by
    suite and defense.
    """
    bare = cells.get(suite_name(attack, UNDEFENDED), {})
    found: list[Threat] = []
    for name in defenses:
        if name == UNDEFENDED:
            continue
        owner = owners[name]
        own = cells.get(suite_name(attack, owner), {})
        found.append(
            Threat(
                attack=attack.name,
                defense=name,
                steps=made[owner].steps,
                epsilon=made[owner].epsilon,
                loss_undefended=made[UNDEFENDED].loss,
                loss_adaptive=made[owner].loss,
                undefended=bare.get(UNDEFENDED),
                transfer=bare.get(name),
                adaptive=own.get(name),
                certified=certified(own.get(name) or bare.get(name)),
            )
        )
    return found


def certified(cell: DefenseScores | None) -> Certificate | None:
    """What is certified of the requests of a cell."""
    return None if cell is None else cell.certified


def folders(
    path: Path, attack: AskedAttack, defenses: Sequence[str] | Mapping[str, Any]
) -> list[Path]:
    """Where what is made on each defense goes; by number, for a defense may be named by a path.

    The number is that of its place, or the one that it was given (`number`).
    """
    numbers = _numbers(path)
    return [
        path / "attacks" / attack.name / str(numbers.get(name, place))
        for place, name in enumerate(defenses)
    ]


def number(run: Run, defenses: Sequence[str] | Mapping[str, Any]) -> None:
    """Give each defense a number that it keeps, whatever others are attacked beside it later."""
    numbers = dict(_numbers(run.path))
    for name in defenses:
        numbers.setdefault(name, len(numbers))
    run.inside("attacks")
    write_whole(run.path / "attacks" / NUMBERS, to_json(numbers, indent=1) + "\n")


def _numbers(path: Path) -> Mapping[str, int]:
    kept = path / "attacks" / NUMBERS
    if not kept.exists():
        return {}
    return from_tree(dict[str, int], read_json(kept, "numbers of defenses"), what=str(kept))


def made_on(
    path: Path, attack: AskedAttack, defenses: Sequence[str] | Mapping[str, Any]
) -> dict[str, Path]:
    """The folders of those defenses on which something of its own is made.

    Where the bare model decides (`Defense.revises`), what is made on it is all there is to make.
    """
    places = zip(defenses, folders(path, attack, defenses), strict=True)
    return {name: folder for name, folder in places if name == UNDEFENDED or folder.exists()}


def owners(
    path: Path, attack: AskedAttack, defenses: Sequence[str] | Mapping[str, Any]
) -> dict[str, str]:
    """The defense on which that was made which each is attacked with: itself or one alike in all
    that the attack sees (`share`), and without either the bare model."""
    own, found = made_on(path, attack, defenses), {}
    for name, folder in zip(defenses, folders(path, attack, defenses), strict=True):
        shared = _shared(folder)
        if name in own or not shared.exists():
            found[name] = name if name in own else UNDEFENDED
            continue
        todo = "delete it and resume to write it again"
        tree = read_json(shared, "name of a defense", otherwise=todo)
        found[name] = from_tree(Shared, tree, what=str(shared), todo=todo).made_on
        if found[name] not in own:
            raise DataError(
                f"{shared} names {found[name]!r:.40}, on which nothing is made; {todo}."
            )
    return found


def share(folder: Path, made_on: str) -> None:
    """Write down that the defense of this folder is attacked with what is made on another."""
    if not _shared(folder).exists():
        write_whole(_shared(folder), to_json(to_tree(Shared(made_on)), indent=1) + "\n")


@dataclass(frozen=True)
class Shared:
    """What K.json beside the folders of an attack holds."""

    made_on: str
    """Name of the defense on which that was made which defense number K is attacked with."""


def _shared(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def counting(bar: Progress) -> Callable[[int, float], None]:
    """What a descent calls with its steps done and its loss, to move a bar."""
    done = 0

    def advance(step: int, loss: float) -> None:
        nonlocal done
        bar.advance(step - done, note=f"loss {loss:.2f}")
        done = step

    return advance


# -- inside ----------------------------------------------------------------------------------------


def _held_out(attack: AskedAttack, suites: Sequence[str], limit: int | None, seed: int) -> Suite:
    if attack.suite is not None:
        named = load_suite(attack.suite, limit=limit, seed=seed)
        if found := _plain(named):
            return replace(named, examples=found)
        raise UsageError(
            f"The suite {attack.suite} has no malicious request without a picture, and the attack "
            f"{attack.name} brings its own; name another with suite=NAME."
        )
    for name in suites:
        named = load_suite(name, limit=limit, seed=seed)
        if found := _plain(named):
            return replace(named, examples=found)
    if suites:
        raise UsageError(
            f"None of the suites {', '.join(suites)} has malicious requests without pictures for "
            f"the attack {attack.name}; name one with {attack.preset},suite=NAME."
        )
    return load_suite(HELD_OUT, limit=limit, seed=seed)


def _plain(suite: Suite) -> tuple[Example, ...]:
    return tuple(e for e in suite if e.kind == "malicious" and not e.images)


def _beside(image: Path, name: str, held_out: Suite) -> Suite:
    examples = tuple(replace(e, images=(image,), suite=name) for e in held_out)
    return replace(held_out, name=name, role="attack", examples=examples)


def _facts(folder: Path) -> AttackFacts:
    path, todo = folder / "attack.json", "delete it and resume to make the image again"
    facts = read_json(path, "facts of an attack", otherwise=todo)
    return from_tree(AttackFacts, facts, strict=False, what=str(path), todo=todo)


def _check_made_of(
    folder: Path, job: AttackConfig, identity: Mapping[str, Any], label: str
) -> None:
    """UsageError if an image that is there was made of something else than is asked for now."""
    repair = None if job.repair is None else load_defense(job.repair)
    wanted = json.loads(to_json(made_of(job, repair, identity)))
    found = _facts(folder)
    differing = [key for key in wanted if found.made_of.get(key) != wanted[key]]
    image = file_digest(folder / "image.png", "image of the attack", error=StorageError)
    if image != found.images["image"].sha256:
        differing.append("picture")
    if differing:
        raise UsageError(
            f"The image of the attack {label} in {folder} was made of something else (another "
            f"{', '.join(differing)}); choose another folder, or delete this one and resume to "
            "make it again."
        )
