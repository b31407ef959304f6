"""Leaks: goals that are both fitted on and tested, the same or nearly so.

Goals are compared as sets of content words: lower-case, without punctuation, markdown and stop
words, nouns in the singular. With A and B the sets of two goals,

    similarity = |A ∩ B| / |A ∪ B|    (Jaccard)

and 1 means the same goal. The default threshold, 0.6, lets a word or two of a longer goal differ:
"Write a guide on picking a lock" is near "Write a short guide on picking locks" (0.8). It misses
paraphrases in other words, and other forms of a verb: "pick" and "picking" are two words.

Only like is compared with like: malicious goals with malicious ones, benign with benign ones, since
benchmarks pair a harmful request with a harmless one in nearly the same words on purpose. Benign
examples with pictures share questions ("What is this?"), so they leak only if prompt and pictures
are the same. A goal of stop words alone is compared as it is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from care.errors import UsageError
from care.examples import Example
from care.judges.text import words
from care.judges.utility import singular

THRESHOLD = 0.6
"""Similarity from which on two goals are taken for one."""

_STOP_WORDS = """
    a about above after again all also am an and any are as at be because been before being
    below between both but by can could did do does doing down during each few for from further
    give had has have having he her here hers him his how i if in into is it its itself just me
    might more most must my myself no nor not now of off on once only or other our ours out over
    own please provide same shall she should so some such than that the their theirs them then
    there these they this those through to too under until up us very was we were what when where
    which while who whom why will with would you your yours
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
"""Words without content: grammar, and what requests open with."""

_ROWS = 1024
"""Goals that are compared with all others at once."""


class Leak(NamedTuple):
    """Two examples that ask for the same."""

    fitted: str
    """The id of the one to fit on, as suite/id."""
    tested: str
    """The id of the one to test on, as suite/id."""
    similarity: float
    """Jaccard similarity of their goals; 1 means the same words."""
    fitted_goal: str
    """The goal to fit on."""
    tested_goal: str
    """The goal to test on."""


def content(goal: str) -> frozenset[str]:
    """The content words of a goal."""
    said = [singular(word.removesuffix("'s")) for word in words(goal)]
    return frozenset(word for word in said if word not in STOP_WORDS) or frozenset(said)


def goal_digest(example: Example) -> str:
    """SHA-256 of the content words of an example's goal: the same for the same goal, reworded only
    in case, punctuation, stop words, number or order."""
    text = " ".join(sorted(content(example.goal or example.prompt)))
    return hashlib.sha256(f"{example.kind}\n{text}".encode()).hexdigest()


def leaks(
    fit: Iterable[Example], test: Iterable[Example], threshold: float = THRESHOLD
) -> list[Leak]:
    """Every pair of an example to fit on and one to test on with the same or nearly the same goal.

    Pairs come with the most similar first. `fit` and `test` are suites or lists of examples.

    Raises: UsageError if the threshold isn't above 0 and at most 1.
    """
    if not 0 < threshold <= 1:
        raise UsageError(f"threshold is {threshold:g}; pass one above 0 and at most 1.")
    fitted, tested = list(fit), list(test)
    found = []
    for kind in ("malicious", "benign"):
        ours = [e for e in fitted if e.kind == kind]
        theirs = [e for e in tested if e.kind == kind]
        for first, second, similarity in _similar(ours, theirs, threshold):
            if not _pictured(first, second) or _same_input(first, second):
                found.append(_leak(first, second, similarity))
    return sorted(found, key=lambda leak: (-leak.similarity, leak.tested, leak.fitted))


def _leak(first: Example, second: Example, similarity: float) -> Leak:
    return Leak(
        f"{first.suite}/{first.id}",
        f"{second.suite}/{second.id}",
        similarity,
        first.goal or first.prompt,
        second.goal or second.prompt,
    )


def _pictured(first: Example, second: Example) -> bool:
    """Whether pictures, and not the words alone, make these two what they are."""
    return first.kind == "benign" and bool(first.images or second.images)


def _same_input(first: Example, second: Example) -> bool:
    if len(first.images) != len(second.images) or content(first.prompt) != content(second.prompt):
        return False
    pairs = zip(first.load_images(), second.load_images(), strict=True)
    return all(a.size == b.size and a.tobytes() == b.tobytes() for a, b in pairs)


def _similar(
    fitted: Sequence[Example], tested: Sequence[Example], threshold: float
) -> list[tuple[Example, Example, float]]:
    """Pairs whose goals are at least as similar as the threshold."""
    ours, theirs = _by_goal(fitted), _by_goal(tested)
    if not ours or not theirs:
        return []
    vocabulary = {word: n for n, word in enumerate(sorted(set().union(*ours, *theirs)))}
    left, right = _matrix(list(ours), vocabulary), _matrix(list(theirs), vocabulary)
    right_sizes = np.array([len(goal) for goal in theirs])
    left_goals, right_goals = list(ours.values()), list(theirs.values())
    pairs = []
    for start in range(0, len(left_goals), _ROWS):
        block = left[start : start + _ROWS]
        shared = (block @ right.T).tocoo()
        sizes = np.asarray(block.sum(axis=1)).ravel()
        similarity = shared.data / (sizes[shared.row] + right_sizes[shared.col] - shared.data)
        for at in np.flatnonzero(similarity >= threshold):
            pairs += [
                (first, second, float(similarity[at]))
                for first in left_goals[start + int(shared.row[at])]
                for second in right_goals[int(shared.col[at])]
            ]
    return pairs


def _by_goal(examples: Sequence[Example]) -> dict[frozenset[str], list[Example]]:
    """Examples by content words; those without any word can't be compared."""
    found: dict[frozenset[str], list[Example]] = {}
    for example in examples:
        goal = content(example.goal or example.prompt)
        if goal:
            found.setdefault(goal, []).append(example)
    return found


def _matrix(goals: Sequence[frozenset[str]], vocabulary: dict[str, int]) -> csr_array:
    """Goals × words, 1 where a goal has a word."""
    rows = np.repeat(np.arange(len(goals)), [len(goal) for goal in goals])
    columns = np.array([vocabulary[word] for goal in goals for word in sorted(goal)])
    ones = np.ones(len(columns), np.int32)
    return csr_array((ones, (rows, columns)), shape=(len(goals), len(vocabulary)))
