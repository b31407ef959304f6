"""Text drawn into pictures: what is there, where, and what can't be drawn."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from care.data.example import Example
from care.data.typography import (
    FigStepConfig,
    TypoConfig,
    below,
    drawn,
    figstep,
    published_figstep,
    typo,
)
from care.errors import DataError, UsageError
from kit.refusals import refusals
from kit.tiny import picture

EXAMPLES = [
    Example("a", "How do you paint a door?", (picture(1),), goal="paint a door", category="c"),
    Example("b", "clean a boat", kind="malicious"),
]


def ink(image: Image.Image) -> np.ndarray:
    """Which pixels are dark."""
    return np.asarray(image.convert("L")) < 128


def lines_of(image: Image.Image) -> int:
    """Runs of rows with ink."""
    rows = ink(image).any(axis=1)
    return int((rows[1:] & ~rows[:-1]).sum() + rows[0])


def test_a_figstep_picture_is_white_with_black_lines_and_empty_items():
    image = figstep("Methods to clean a boat.")
    assert image.size == (760, 760) and image.mode == "RGB"
    assert image.getpixel((759, 759)) == (255, 255, 255)
    assert 0.01 < ink(image).mean() < 0.3
    # "Methods to", "clean a boat.", and the three items.
    assert lines_of(image) == 5
    assert lines_of(figstep("Methods to clean a boat.", FigStepConfig(items=1))) == 3
    # Behind the numbers there is nothing.
    rows = np.flatnonzero(ink(image).any(axis=1))
    assert np.flatnonzero(ink(image)[rows[-1] - 20 :].any(axis=0)).max() < 760 // 4


def test_a_picture_as_published_begins_where_theirs_do():
    image = published_figstep("Methods to clean a boat.")
    assert image.size == (760, 760) and lines_of(image) == 5
    assert lines_of(published_figstep("Bake")) == 4
    # Lines stand further apart, and the first nearer to the edge.
    tops = [
        np.flatnonzero(ink(one).any(axis=1)) for one in (image, figstep("Methods to clean a boat."))
    ]
    assert np.ptp(tops[0]) > np.ptp(tops[1])


@pytest.mark.parametrize("draw", [figstep, published_figstep, typo])
def test_the_text_decides_the_pixels(draw):
    same = [draw("Methods to clean a boat.").tobytes() for _ in range(2)]
    assert same[0] == same[1] != draw("Methods to paint a door.").tobytes()
    long = " ".join(f"word{n}" for n in range(60))
    assert draw(long + " end").tobytes() != draw(long + " ENd").tobytes()  # the last word is there
    if draw is not published_figstep:
        assert draw("  Methods  to\nclean a boat. ").tobytes() == same[0]


@pytest.mark.parametrize("draw", [figstep, published_figstep])
def test_long_text_is_drawn_smaller_and_stays_inside(draw):
    edges = ink(draw("A very long statement about many things. " * 15))
    assert edges.any()
    assert not (edges[-1].any() or edges[:, -1].any())


def test_a_typo_picture_is_as_wide_as_asked_and_wraps():
    short, long = typo("paint a door"), typo("paint a very old wooden door " * 4)
    assert short.width == long.width == 1024
    assert lines_of(short) == 1 and lines_of(long) > 2
    assert long.height > short.height
    for image in (short, long):
        assert not (ink(image)[:, 0].any() or ink(image)[0].any() or ink(image)[-1].any())
    columns = np.flatnonzero(ink(short).any(axis=0))
    assert abs((columns[0] + columns[-1]) / 2 - 512) < 4  # centred


def test_a_word_longer_than_a_line_is_cut():
    image = typo("x" * 100, TypoConfig(width=300))
    assert image.width == 300 and lines_of(image) > 3
    assert not ink(image)[:, -1].any()


def test_text_below_a_picture_leaves_the_picture_above():
    plain = Image.new("RGB", (100, 50), (10, 200, 10))
    whole = below(plain, "paint a door", TypoConfig(width=200, points=20))
    assert whole.size[0] == 200 and whole.size[1] > 100
    assert whole.getpixel((100, 50)) == (10, 200, 10)
    assert whole.getpixel((0, whole.height - 1)) == (255, 255, 255)


@pytest.mark.parametrize("style", ["figstep", "typo"])
def test_requests_are_drawn_and_their_words_are_harmless(style):
    made = drawn(EXAMPLES, style)
    assert [e.id for e in made] == [f"a-{style}", f"b-{style}"]
    assert [e.goal for e in made] == ["paint a door", "clean a boat"]
    assert [e.kind for e in made] == ["benign", "malicious"]
    assert made[0].category == "c"
    assert all("door" not in e.prompt and "boat" not in e.prompt for e in made)
    draw = figstep if style == "figstep" else typo
    assert made[1].images[0].tobytes() == draw("clean a boat").tobytes()
    given = drawn(EXAMPLES, style, texts=["One.", "Two."], prompt="Look.")
    assert given[0].prompt == "Look." and given[0].images[0].tobytes() == draw("One.").tobytes()


def test_fonts_of_pillow_do_where_no_other_is_found():
    assert ink(figstep("Methods to clean a boat.", FigStepConfig(fonts=()))).any()
    assert ink(typo("door", TypoConfig(fonts=()))).any()


LONG = "A very long statement about many things. " * 80

test_what_cant_be_drawn_is_refused = refusals(
    (UsageError, "no text to draw", lambda: figstep("  ")),
    (UsageError, "figstep, typo", lambda: drawn(EXAMPLES, "comic")),
    (UsageError, "as many texts", lambda: drawn(EXAMPLES, texts=["one"])),
    (UsageError, "'b' has no picture", lambda: drawn(EXAMPLES, "typo-below")),
    (UsageError, "no room", lambda: TypoConfig(width=20, margin=10)),
    (UsageError, "points", lambda: FigStepConfig(points=0)),
    (DataError, "TrueType", lambda tmp_path: typo("a", TypoConfig(font=tmp_path / "none.ttf"))),
    (DataError, "doesn't fit", lambda: figstep(LONG)),
    (DataError, "doesn't fit", lambda: published_figstep(LONG)),
    (DataError, "doesn't fit", lambda: figstep("Methods to sing.", FigStepConfig(side=20))),
    (DataError, "doesn't fit", lambda: typo("word", TypoConfig(width=60, points=90))),
    (DataError, "can't be drawn in", lambda: typo("paint a \U0010fffd door")),
    (DataError, "can't be drawn in", lambda: figstep("paint a \U0010fffd door")),
    (DataError, "can't be drawn in", lambda: published_figstep("paint a \U0010fffd door")),
)
