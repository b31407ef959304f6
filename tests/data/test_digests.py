"""Digests: which answers belong to which examples, readable or not, of old rows and new ones."""

from dataclasses import replace

import pytest

from care.data.digests import digest_of, example_digest, is_same, suite_digest, warn_of_old
from care.data.example import Example, Suite
from kit.tiny import picture

EXAMPLE = Example("a", "What?", (picture(),), goal="name it", kind="malicious", category="c")
GONE = replace(EXAMPLE, images=("nowhere.png",))
OTHERS = [replace(EXAMPLE, **change) for change in (
    {"prompt": "Who?"}, {"goal": "other"}, {"kind": "benign"}, {"category": "d"},
)]  # fmt: skip


def test_an_example_is_told_by_its_fields_and_pictures():
    empty = replace(GONE, prompt="")
    every = [EXAMPLE, GONE, empty, replace(GONE, prompt="?"), *OTHERS]
    every += [replace(EXAMPLE, images=(picture(1),)), replace(GONE, images=GONE.images * 2)]
    assert len({example_digest(example) for example in every}) == len(every)
    assert example_digest(EXAMPLE) == EXAMPLE.digest()
    assert example_digest(GONE) == example_digest(replace(GONE, images=("elsewhere.png",)))


def test_a_row_belongs_to_the_example_that_it_was_made_of():
    row = {"digest": example_digest(EXAMPLE)}
    old = {name: getattr(EXAMPLE, name) for name in ("prompt", "goal", "kind", "category")}
    for other in OTHERS:
        assert not is_same(row, other) and not is_same(old, other)
    assert is_same(row, EXAMPLE) and is_same(old, EXAMPLE) and is_same({}, EXAMPLE)
    assert is_same(old, GONE) and not is_same(row, GONE)  # an old row says nothing of pictures
    with pytest.warns(UserWarning, match="hold no digest"):
        warn_of_old([row, old])
    warn_of_old([row])


def test_suites_and_defenses_are_told_too():
    suite = Suite("s", "attack", (EXAMPLE, replace(GONE, id="b")))
    others = [replace(suite, **change) for change in ({"name": "t"}, {"version": "2"})]
    others.append(replace(suite, examples=suite.examples[:1]))
    assert len({suite_digest(one) for one in (suite, *others)}) == 4
    assert digest_of(object()) is None
    assert digest_of(EXAMPLE) == EXAMPLE.digest()
