"""Material to fit a repair on."""

from __future__ import annotations

from care.data.example import Example
from care.defenses.material import Material
from kit import tiny

WORDS = (
    "river",
    "stone",
    "cloud",
    "apple",
    "tiger",
    "violin",
    "hammer",
    "garden",
    "rocket",
    "sofa",
)


def asked(family: str, count: int, kind: str, pictures: bool, seed: int) -> list[Example]:
    return [
        Example(
            id=f"{family}-{i}",
            prompt=f"{family} {WORDS[i % 10]} {WORDS[(3 * i + 1) % 10]}?",
            goal=f"{family} {i}",
            kind="malicious" if kind == "malicious" else "benign",
            suite=family,
            images=(tiny.picture(seed + i),) if pictures else (),
        )
        for i in range(count)
    ]


def material(pictured: int = 12, worded: int = 12) -> Material:
    def answered(examples: list[Example], answer: str) -> tuple[tuple[Example, str], ...]:
        return tuple((example, answer) for example in examples)

    attacks = [
        *asked("beside", pictured, "malicious", True, 0),
        *asked("template", worded, "malicious", False, 0),
    ]
    benign = [*asked("plain", 12, "benign", False, 0), *asked("drawn", 12, "benign", True, 100)]
    return Material(
        complied=answered(attacks, "To do it, you'll need"),
        refused=answered(asked("direct", 14, "malicious", False, 0), "I'm sorry, but no."),
        answered=answered(benign, "To do it, you'll need"),
    )
