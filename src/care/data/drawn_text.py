"""Text drawn into pictures whole: a font that is there and has every character, lines that fit.

Used by the typographic attacks and by FigStep. What can't be drawn whole is refused, since half a
request in a picture is another request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import ImageFont

from care.errors import DataError
from care.runs.reading import check_regular

Font = ImageFont.FreeTypeFont

SMALLEST = 6
"""Least size of a font in pixels."""

_NOWHERE = "\U0010ffff"
"""A character that no font has: what is drawn for it is drawn for every one that is missing."""


def find_font(path: Path | None, names: Sequence[str], points: int) -> tuple[Font, str]:
    """The font in `path`, else the first of `names` that is installed, else Pillow's; its name.

    Raises DataError for a file that is no font.
    """
    if path is not None:
        try:
            check_regular(path, "font")
            return ImageFont.truetype(path, points), str(path)
        except (OSError, DataError) as error:
            raise DataError(
                f"The font {path} can't be read ({error}); pass a TrueType file."
            ) from error
    for name in names:
        try:
            return ImageFont.truetype(name, points), name.removesuffix(".ttf")
        except OSError:  # not installed
            continue
    found = ImageFont.load_default(points)
    if not isinstance(found, Font):
        raise DataError("Pillow was built without FreeType, so no text can be drawn; reinstall it.")
    return found, "Pillow's own type"


def check_characters(text: str, font: Font, name: str) -> None:
    """DataError for a text with characters that the font doesn't have."""
    nothing = _pixels(font, _NOWHERE)
    characters = (char for char in dict.fromkeys(text) if not char.isspace())
    missing = [char for char in characters if _pixels(font, char) == nothing]
    if missing:
        raise DataError(
            f"{''.join(missing[:5])!r} of {text!r:.60} can't be drawn in {name}; choose or install "
            "a font that has these characters."
        )


def _pixels(font: Font, char: str) -> bytes:
    return bytes(font.getmask(char))  # pyright: ignore[reportArgumentType]


def fitting(
    text: str, room: tuple[int, int], points: int, size_of: Callable[[int], tuple[float, float]]
) -> int:
    """The size of a font, at most `points`, at which a text fits into the room.

    `size_of` gives its width and height at a size. It is made smaller by tenths; DataError where
    it doesn't fit at the smallest either.
    """
    while True:
        width, height = size_of(points)
        if width <= room[0] and height <= room[1]:
            return points
        if points <= SMALLEST:
            raise DataError(
                f"The text {text!r:.60} of {len(text):,} characters doesn't fit into {room[0]} × "
                f"{room[1]} pixels; shorten it or make the picture larger."
            )
        points = max(SMALLEST, int(points * 0.9))
