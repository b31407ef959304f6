"""Stages joined as part of an evaluation: what worked alone under a defense, put together.

Once the other attacks are answered and judged, the parts for each request under each defense are
chosen (`care.attacks.joined`) and written into the run's folder (attacks/NAME/K/chosen.json), so
that a resumed or rejudged run asks the same. "joined on care" is asked of every defense, as what is
searched is. Parts are of attacks on the same held-out requests, or on some of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from care.attacks.joined import Joined, TriedVariant, joins_of, strongest
from care.attacks.variants import (
    FixedAttack,
    SearchedAttack,
    Stage,
    Variant,
    asked,
    request_of,
    variant_of,
)
from care.data.example import Example, Suite
from care.evaluation.adaptive import folders, made_on, owners, suite_name
from care.evaluation.asked_attacks import AskedAttack, AskedVariants, ImageAttack
from care.evaluation.results import counts
from care.runs.files import to_json, write_whole
from care.runs.reading import read_json
from care.runs.rows import Row
from care.runs.run import Run
from care.typed import from_tree, to_tree

FILE = "chosen.json"
"""Names of the chosen parts, by request."""


@dataclass(frozen=True)
class Chosen:
    """What chosen.json holds."""

    chosen: dict[str, dict[str, str]]
    """Names of the chosen parts by stage, by the id of the request."""


@dataclass(frozen=True)
class Attacked:
    """All attacks of an evaluation, each with its held-out requests."""

    path: Path
    """Folder of the run."""
    defenses: Sequence[str]
    """The bare model and the defenses, by name."""
    in_variants: Sequence[tuple[AskedVariants, Suite]]
    """Attacks in variants."""
    images: Sequence[tuple[ImageAttack, Suite]]
    """Image attacks."""

    def parts(self, held: Suite, place: int, rows: Iterable[Row]) -> list[TriedVariant]:
        """The variants asked of the defense at `place`, and where they worked in `rows`."""
        defense = self.defenses[place]
        of_suite: dict[str, list[Row]] = {}
        for row in rows:
            if row["defense"] == defense and row["error"] is None:
                of_suite.setdefault(row["suite"], []).append(row)
        found: list[TriedVariant] = []
        for suite, stage, variants in self._suites(held, place):
            for variant in variants:
                wins = {
                    request_of(row["example"]): counts(row)
                    for row in of_suite.get(suite, ())
                    if variant_of(row["example"]) == variant.name
                }
                named = replace(variant, name=f"{suite}/{variant.name}")
                found.append(TriedVariant(stage, named, wins))
        return found

    def joining(self) -> list[tuple[AskedVariants, Suite]]:
        """The attacks that join others."""
        return [pair for pair in self.in_variants if isinstance(pair[0].attack, Joined)]

    def _suites(self, held: Suite, place: int) -> list[tuple[str, Stage, list[Variant]]]:
        """Suites of attacks on requests of `held`, with what they change and their variants."""
        defense, same = self.defenses[place], {example.digest() for example in held}
        found: list[tuple[str, Stage, list[Variant]]] = []
        for one, requests in self.in_variants:
            attack = one.attack
            if not _among(requests, same):
                continue
            if isinstance(attack, SearchedAttack):
                owner, folder = self._made_on(one, defense)
                found.append((suite_name(one, owner), attack.stage, attack.found(folder)))
            elif isinstance(attack, FixedAttack):
                found.append((one.name, attack.stage, attack.variants()))
        for image, requests in self.images:
            if _among(requests, same):
                owner, folder = self._made_on(image, defense)
                shown = Variant("", partial(_beside, folder / "image.png"))
                found.append((suite_name(image, owner), "picture", [shown]))
        return found

    def _made_on(self, attack: AskedAttack, defense: str) -> tuple[str, Path]:
        """Where what is made through a defense lies, and on what it was made."""
        owner = owners(self.path, attack, self.defenses)[defense]
        return owner, made_on(self.path, attack, self.defenses)[owner]


def choose(attacked: Attacked, run: Run) -> None:
    """Choose the parts that aren't chosen yet, from the run's judged rows."""
    rows = run.rows()
    for one, held in attacked.joining():
        for place, folder in enumerate(folders(attacked.path, one, attacked.defenses)):
            if (folder / FILE).exists():
                continue
            run.inside(*folder.relative_to(run.path).parts)
            parts = attacked.parts(held, place, rows)
            chosen: dict[str, dict[str, str]] = {
                request.id: {
                    stage: part.variant.name for stage, part in strongest(parts, request.id).items()
                }
                for request in held
            }
            write_whole(folder / FILE, to_json(to_tree(Chosen(chosen)), indent=1) + "\n")


def joined_suites(attacked: Attacked) -> list[Suite]:
    """The requests of each joining attack, with the parts that were chosen for each defense."""
    found: list[Suite] = []
    for one, held in attacked.joining():
        places = folders(attacked.path, one, attacked.defenses)
        for place, (name, folder) in enumerate(zip(attacked.defenses, places, strict=True)):
            path, todo = folder / FILE, "delete it and resume to choose again"
            tree = read_json(path, "chosen parts", otherwise=todo)
            facts = from_tree(Chosen, tree, what=str(path), todo=todo)
            parts = {part.variant.name: part for part in attacked.parts(held, place, ())}
            examples = [
                example
                for request in held
                for example in asked(
                    one.attack,
                    replace(held, examples=(request,)),
                    suite_name(one, name),
                    joins_of(
                        {
                            parts[each].stage: parts[each].variant
                            for each in facts.chosen[request.id].values()
                        }
                    ),
                )
            ]
            whole = replace(held, name=suite_name(one, name), role="attack")
            found.append(replace(whole, examples=tuple(examples)))
    return found


def _among(requests: Suite, digests: set[str]) -> bool:
    return {example.digest() for example in requests} <= digests


def _beside(file: Path, example: Example) -> Example:
    return replace(example, images=(file,))
