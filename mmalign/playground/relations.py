"""Pictures of two coloured shapes beside one another: prompts, drawings and an exact checker.

A prompt says how two things lie, "a red circle left of a blue square"; their sizes, and in which
row or column of the picture they lie, are left open, so that one prompt has many good pictures.
Careless annotators mix up the colours, or which thing is on which side.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, replace
from functools import cache
from itertools import permutations, product
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mmalign.playground.scenes import BACKGROUND, COLOURS, OUTLINES
from mmalign.records import Message, Text

PALETTE = ("red", "green", "blue", "yellow", "purple")
SHAPES = ("circle", "square", "triangle", "cross")
RELATIONS = {"left of": (0, 1), "above": (0, 2)}
"""Cells of the first and the second thing; in the other row or column, further on."""
CELL = 12
"""Pixels of a cell's side; a picture has two rows of two cells, counted in reading order."""
SIDE = 2 * CELL
SIZES = (8, 10)
"""Pixels of a thing's side; it lies in the middle of its cell."""
LIKENESS = 0.015
"""Mean squared error, of values from 0 to 1, up to which a cell shows what it resembles most: any
two different things, in any size, differ by more, and from an empty cell by 0.05."""
HALF_LIKENESS = 2 * LIKENESS
"""For the upper half of a picture, which decoders distort as long as they do not know the rest."""
HELD_OUT = 3
"""One in so many combinations of two colours and two shapes is held out."""
TUNING = 3
"""One in so many of those is for the choice of settings, and kept from what is reported."""

Split = Literal["train", "tuning", "held_out"]

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, order=True)
class Thing:
    """A coloured shape."""

    colour: str
    shape: str


@dataclass(frozen=True)
class Asked:
    """What a prompt asks for: two things and how the first lies to the second."""

    first: Thing
    second: Thing
    relation: str

    @property
    def text(self) -> str:
        first, second = (f"a {thing.colour} {thing.shape}" for thing in (self.first, self.second))
        return f"{first} {self.relation} {second}"

    @property
    def prompt(self) -> tuple[Message, ...]:
        return (Message("user", (Text(self.text),)),)

    @property
    def split(self) -> Split:
        """Where these two colours with these two shapes belong, however combined."""
        things = (self.first, self.second)
        words = " ".join([*sorted(t.colour for t in things), *sorted(t.shape for t in things)])
        first, second, *_ = hashlib.sha256(words.encode()).digest()
        if first % HELD_OUT:
            return "train"
        return "held_out" if second % TUNING else "tuning"


def prompts(split: Split, *, seed: int = 0) -> list[Asked]:
    """All prompts of a split, in random order. The splits share words, but no combination."""
    things = [Thing(colour, shape) for colour, shape in product(PALETTE, SHAPES)]
    made = [
        Asked(first, second, relation)
        for first, second in permutations(things, 2)
        for relation in RELATIONS
        if first.colour != second.colour and first.shape != second.shape
    ]
    chosen = [asked for asked in made if asked.split == split]
    random.Random(f"relations {split} {seed}").shuffle(chosen)
    return chosen


def careless_caption(asked: Asked, annotator: random.Random, *, carelessness: float) -> Asked:
    """What an annotator writes who, with this probability, mixes up the colours or the sides."""
    if annotator.random() >= carelessness:
        return asked
    if annotator.random() < 0.5:
        return replace(asked, first=asked.second, second=asked.first)
    return replace(
        asked,
        first=replace(asked.first, colour=asked.second.colour),
        second=replace(asked.second, colour=asked.first.colour),
    )


def draw(asked: Asked, look: random.Random) -> Pixels:
    """(side, side, 3) a picture of it; `look` chooses what the prompt leaves open."""
    cells = _places(asked, look.randint(0, 1))
    canvas = np.empty((SIDE, SIDE, 3), np.uint8)
    canvas[:] = BACKGROUND
    for cell, thing in zip(cells, (asked.first, asked.second), strict=True):
        row, column = (CELL * place for place in divmod(cell, 2))
        canvas[row : row + CELL, column : column + CELL] = look.choice(_drawings(thing))
    return canvas


def score(pixels: Pixels, asked: Asked) -> float:
    """Share of what was asked for that the picture shows: each of the two things, how they lie, and
    nothing else. 1 is a picture that satisfies its prompt."""
    found = seen(pixels)
    facts = [
        asked.first in found,
        asked.second in found,
        any(
            (found[a], found[b]) == (asked.first, asked.second)
            for a, b in (_places(asked, 0), _places(asked, 1))
        ),
        found.count("empty") == 2,
    ]
    return sum(facts) / len(facts)


def promise(upper: Pixels, asked: Asked) -> float:
    """How promising the upper half of a picture is: 0 where it cannot become what was asked for any
    more, else a third, and a third for each of the two things that it shows where it belongs.

    upper: (side / 2, side, 3), or more rows, which are not looked at.
    """
    found = seen(upper[:CELL], HALF_LIKENESS)
    best = 0
    for further in (0, 1):
        wanted: list[Thing | Literal["empty", "unclear"]] = ["empty", "empty"]
        shown = 0
        for cell, thing in zip(_places(asked, further), (asked.first, asked.second), strict=True):
            if cell < len(wanted):
                wanted[cell] = thing
                shown += 1
        if found == wanted:
            best = max(best, 1 + shown)
    return best / 3


def foreground(pixels: Pixels) -> NDArray[np.bool_]:
    """(h, w) where something is drawn."""
    difference = np.abs(pixels.astype(np.int64) - np.array(BACKGROUND)).max(-1)
    return np.asarray(difference > 64)


def seen(pixels: Pixels, likeness: float = LIKENESS) -> list[Thing | Literal["empty", "unclear"]]:
    """What each cell shows, in reading order: the thing, among all there are in all their sizes,
    that it resembles most, if it does resemble it.

    pixels: (side, side, 3), or whole rows of cells. likeness: the error up to which it does.
    """
    things, drawings = _all_drawings()
    apart = pixels.reshape(-1, CELL, 2, CELL, 3).transpose(0, 2, 1, 3, 4)
    cells = apart.reshape(-1, CELL * CELL * 3) / 255
    products = cells @ drawings.T  # (cells, drawings)
    errors = (cells**2).mean(-1)[:, None] + (drawings**2).mean(-1) - 2 * products / cells.shape[1]
    best = errors.argmin(-1)
    return [
        things[choice] if errors[cell, choice] < likeness else "unclear"
        for cell, choice in enumerate(best)
    ]


def _places(asked: Asked, further: int) -> tuple[int, int]:
    first, second = RELATIONS[asked.relation]
    step = (2 if abs(first - second) == 1 else 1) * further
    return first + step, second + step


@cache
def _drawings(thing: Thing) -> list[Pixels]:
    """A cell with the thing in every size; drawn eight times as large and scaled down,
    for smooth edges."""
    scale = 8
    drawings = []
    for size in SIZES:
        image = Image.new("RGB", (CELL * scale, CELL * scale), BACKGROUND)
        corner, side = (CELL - size) // 2 * scale, size * scale - 1
        OUTLINES[thing.shape](ImageDraw.Draw(image), corner, corner, side, COLOURS[thing.colour])
        drawings.append(np.asarray(image.resize((CELL, CELL), Image.Resampling.BOX)))
    return drawings


@cache
def _all_drawings() -> tuple[list[Thing | Literal["empty", "unclear"]], NDArray[np.float64]]:
    """What there is to see in a cell, and how it looks: (drawings, values from 0 to 1)."""
    empty = np.full((CELL, CELL, 3), BACKGROUND, np.uint8)
    things: list[Thing | Literal["empty", "unclear"]] = ["empty"]
    looks: list[Pixels] = [empty]
    for colour, shape in product(PALETTE, SHAPES):
        thing = Thing(colour, shape)
        things += [thing] * len(_drawings(thing))
        looks += _drawings(thing)
    return things, np.stack(looks).reshape(len(looks), -1) / 255
