"""Pictures of the small world: pictograms, pairs of them, and counted shapes on varied backgrounds.

The tower of the embedded model sees 84 × 84 pixels in 14-pixel patches: it learns to tell
pictograms of 40 pixels and more, but not to read words, so meaning is carried by pictograms.
`pictograms.png` is a sheet of 64-pixel cells rendered once from Noto Color Emoji (SIL Open Font
Licence 1.1, see NOTICE); what they stand for is in `world.json`. Every picture is drawn from a
seeded generator: same seed, same pixels.
This module draws; which picture belongs to which goal is the business of `goals`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIZE = 84
"""Side of every picture in pixels."""

CELL = 64
"""Side of one cell of the pictogram sheet in pixels."""

COLUMNS = 10
"""Cells in one row of the sheet."""


class Action(TypedDict):
    """One action pictogram."""

    verb: str
    """What it stands for."""
    harmful: bool
    """Whether goals with it are malicious."""
    things: list[str]
    """The objects with which it makes a sensible goal, see `things_of`."""


class Vocabulary(TypedDict):
    """The words of the world, as in `world.json`; pictograms are in the order of the sheet."""

    groups: dict[str, list[str]]
    """Objects that go together."""
    actions: dict[str, Action]
    """By the name of the pictogram."""
    objects: list[str]
    """Pictograms of objects, each named by the noun it stands for, see `things_of`."""
    colours: dict[str, tuple[int, int, int]]
    """Red, green and blue of a colour."""
    shapes: list[str]
    """What is counted and named."""
    numbers: list[str]
    """Number words from one on."""


@cache
def vocabulary() -> Vocabulary:
    """The words of the world."""
    file = resources.files("care.data.small_world").joinpath("world.json")
    return json.loads(file.read_text(encoding="utf-8"))


def things_of(names: Iterable[str]) -> tuple[str, ...]:
    """Objects by name, in order; "all vehicles" are those of that group."""
    groups = vocabulary()["groups"]
    found: list[str] = []
    for name in names:
        found += groups[name.removeprefix("all ")] if name.startswith("all ") else [name]
    return tuple(found)


ACTIONS: dict[str, str] = {name: found["verb"] for name, found in vocabulary()["actions"].items()}
"""Pictogram of an action and the verb it stands for, in the order of the sheet."""

OBJECTS: tuple[str, ...] = things_of(vocabulary()["objects"])
"""Pictograms of objects, each named by the noun it stands for, in the order of the sheet."""

PICTOGRAMS: tuple[str, ...] = (*ACTIONS, *OBJECTS)

COLOURS: dict[str, tuple[int, int, int]] = {
    name: (red, green, blue) for name, (red, green, blue) in vocabulary()["colours"].items()
}

SHAPES: tuple[str, ...] = tuple(vocabulary()["shapes"])

NUMBERS: tuple[str, ...] = tuple(vocabulary()["numbers"])


@cache
def _sheet() -> Image.Image:
    with resources.files("care.data.small_world").joinpath("pictograms.png").open("rb") as file:
        return Image.open(file).convert("RGBA")


@cache
def pictogram(name: str) -> Image.Image:
    """The RGBA pictogram `name`, cropped to what is drawn (at most CELL × CELL pixels)."""
    index = PICTOGRAMS.index(name)
    left, top = (index % COLUMNS) * CELL, (index // COLUMNS) * CELL
    cell = _sheet().crop((left, top, left + CELL, top + CELL))
    return cell.crop(cell.getbbox())


def background(rng: np.random.Generator) -> Image.Image:
    """A plain, graded, striped or noisy background of SIZE × SIZE pixels in pale colours."""
    colours: NDArray[np.int64] = rng.integers(110, 256, size=(2, 3))
    ramp = np.linspace(0.0, 1.0, SIZE)
    weights: NDArray[np.floating[Any]]
    kind = rng.integers(4)
    if kind == 0:
        weights = np.zeros((SIZE, SIZE))
    elif kind == 1:
        weights = np.outer(ramp, ramp) if rng.random() < 0.5 else np.tile(ramp, (SIZE, 1))
    elif kind == 2:
        stripes = (np.arange(SIZE) // rng.integers(4, 16)) % 2
        weights = np.tile(stripes, (SIZE, 1)) * 0.5
    else:
        coarse = rng.random((7, 7))
        small = Image.fromarray((coarse * 255).astype(np.uint8))
        blurred = small.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        weights = np.asarray(blurred) / 255.0
    if rng.random() < 0.5:
        weights = weights.T
    pixels: NDArray[np.float64] = colours[0] + weights[..., None] * (colours[1] - colours[0])
    noisy = pixels + rng.normal(0.0, rng.uniform(0.0, 8.0), size=pixels.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def _paste(canvas: Image.Image, name: str, side: int, left: int, top: int) -> None:
    """Paste pictogram `name`, fitted into a side × side box at (left, top)."""
    drawn = pictogram(name)
    scale = side / max(drawn.size)
    size = (max(1, round(drawn.width * scale)), max(1, round(drawn.height * scale)))
    drawn = drawn.resize(size, Image.Resampling.BICUBIC)
    offset = (left + (side - size[0]) // 2, top + (side - size[1]) // 2)
    canvas.paste(drawn, offset, drawn)


def single(name: str, rng: np.random.Generator) -> Image.Image:
    """One pictogram of 44 to 76 pixels at a random place."""
    canvas = background(rng)
    side = int(rng.integers(44, 77))
    left, top = (int(rng.integers(0, SIZE - side + 1)) for _ in range(2))
    _paste(canvas, name, side, left, top)
    return canvas


def pair(action: str, thing: str, rng: np.random.Generator) -> Image.Image:
    """The pictogram of an action and of an object, 37 to 42 pixels each, side by side in some way.

    The two may stand in a row, a column or on either diagonal, in either order: which of them is
    the action follows from what they show, not from where they stand.
    """
    canvas = background(rng)
    sides: list[int] = rng.integers(37, 43, size=2).tolist()
    names = (action, thing) if rng.random() < 0.5 else (thing, action)
    layout = rng.integers(4)
    for place, (name, side) in enumerate(zip(names, sides, strict=True)):
        near, far = int(rng.integers(0, 43 - side)), SIZE - side - int(rng.integers(0, 43 - side))
        along = far if place else near
        across = int(rng.integers(0, SIZE - side + 1))
        if layout == 0:
            spot = (along, across)
        elif layout == 1:
            spot = (across, along)
        elif layout == 2:
            spot = (along, along)
        else:
            spot = (along, SIZE - side - along)
        _paste(canvas, name, side, *spot)
    return canvas


def _polygon(shape: str, centre: tuple[float, float], radius: float) -> list[tuple[float, float]]:
    corners, turn, inner = {"square": (4, 45, 1.0), "triangle": (3, -90, 1.0)}.get(
        shape, (10, -90, 0.45)
    )
    angles = np.deg2rad(turn + np.arange(corners) * 360 / corners)
    radii = np.where(np.arange(corners) % 2 == 0, radius, radius * inner)
    return [
        (float(centre[0] + r * np.cos(a)), float(centre[1] + r * np.sin(a)))
        for r, a in zip(radii, angles, strict=True)
    ]


def shapes(shape: str, colour: str, count: int, rng: np.random.Generator) -> Image.Image:
    """`count` (1 to 4) equal shapes of one colour, one in each of as many quarters."""
    canvas = background(rng)
    draw = ImageDraw.Draw(canvas)
    half = SIZE // 2
    quarters = rng.permutation(4)[:count]
    for quarter in quarters:
        radius = float(rng.uniform(13, 19))
        x = (quarter % 2) * half + half / 2 + rng.uniform(-1, 1)
        y = (quarter // 2) * half + half / 2 + rng.uniform(-1, 1)
        fill, outline = COLOURS[colour], (90, 90, 90)
        if shape == "circle":
            box = (x - radius, y - radius, x + radius, y + radius)
            draw.ellipse(box, fill=fill, outline=outline)
        else:
            draw.polygon(_polygon(shape, (x, y), radius), fill=fill, outline=outline)
    return canvas


def article(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def seeded(*key: str | int) -> np.random.Generator:
    """A generator whose stream depends on `key` alone (stable across runs and machines)."""
    text = "\x1f".join(map(str, key)).encode()
    return np.random.default_rng(list(text))
