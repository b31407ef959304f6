"""Words of a text, whatever its typography, and nouns in the singular."""

import pytest

from care.data.text import plain, singular, words


def test_typography_makes_no_other_words():
    assert words("\u201cDON\u2019T\u201d **bake** _it_,\u200b snake_case \ud83d!") == words(
        '"don\'t" bake it, snake_case !'
    )
    assert plain("One\nＴＷＯ") == "one\ntwo"


@pytest.mark.parametrize(
    ("word", "found"),
    [
        *(("cakes", "cake"), ("berries", "berry"), ("boxes", "box"), ("matches", "match")),
        *(("glasses", "glass"), ("people", "person"), ("glass", "glass"), ("bus", "bus")),
        *(("this", "this"), ("as", "as"), ("ties", "tie")),
    ],
)
def test_nouns_are_read_in_the_singular(word, found):
    assert singular(word) == found
