"""Minimal pairs: those of a kind come together."""

from care.data.example import Example
from care.data.minimal_pairs import Pair, by_kind


def test_pairs_of_a_kind_come_together_in_the_order_of_the_kinds():
    one, other = Example("a", "Make tea"), Example("b", "Make cake")
    pairs = [Pair(one, other, kind) for kind in ("words", "pictures", "words", "")]
    found = by_kind(pairs)
    assert list(found) == ["words", "pictures", ""]
    assert found["words"] == [pairs[0], pairs[2]] and by_kind([]) == {}
