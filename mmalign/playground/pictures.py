"""Pictures of a coloured shape in a corner: prompts for them, drawings, and an exact checker.

A prompt names colour, kind and corner, "red circle at top-left"; how large the shape is and where
in its corner is left open, so that one prompt has many good pictures. Careless annotators get one
word wrong in many captions, and who learns from those often paints something else than was asked
for.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace
from itertools import product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mmalign.records import PLAIN, Message, Text

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 165, 60),
    "blue": (50, 80, 225),
    "yellow": (240, 205, 30),
    "purple": (160, 60, 185),
    "black": (30, 30, 30),
}
KINDS = {"triangle": 0.56, "circle": 0.785, "square": 1.0}
"""How much of its box each kind fills; thin ends of triangles hardly count for its height."""
CORNERS = ("top-left", "top-right", "bottom-left", "bottom-right")
BACKGROUND = (245, 245, 245)
SIDE = 32
"""Pixels of a picture's side."""
LEAST = 30
"""Pixels that a corner must show to hold a shape; the smallest triangle has 45."""
MOST = 8
"""Pixels that a corner may show and still count as empty."""
PURITY = 0.6
"""Share of a shape's pixels that must have its colour; drawn shapes have more than 0.65, because
pixels on an edge are mixtures, which may resemble another colour."""
Split = Literal["train", "tuning", "held_out"]
"""Combinations to train on, to choose a recipe by, and to measure on: those of the last serve for
nothing else."""
SPLITS: tuple[Split, ...] = ("tuning", "held_out", "train", "train", "held_out", "train")
"""The split of every sixth of the combinations."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, order=True)
class Shape:
    """What a prompt asks for."""

    colour: str
    kind: str
    corner: str

    @property
    def text(self) -> str:
        return f"{self.colour} {self.kind} at {self.corner}"

    @property
    def prompt(self) -> tuple[Message, ...]:
        return (Message(PLAIN, (Text(self.text),)),)

    @property
    def split(self) -> Split:
        return SPLITS[hashlib.sha256(self.text.encode()).digest()[0] % len(SPLITS)]


def prompts(split: Split, *, seed: int = 0) -> list[Shape]:
    """All prompts of a split, in random order. The splits share words, but no combination."""
    made = [Shape(*words) for words in product(COLOURS, KINDS, CORNERS)]
    chosen = [shape for shape in made if shape.split == split]
    random.Random(f"pictures {split} {seed}").shuffle(chosen)
    return chosen


def draw(shape: Shape, look: random.Random) -> Pixels:
    """(side, side, 3) a picture of what was asked for; `look` chooses what the prompt leaves open.

    Drawn at four times the size and scaled down, for smooth edges.
    """
    scale = 4
    image = Image.new("RGB", (SIDE * scale, SIDE * scale), BACKGROUND)
    half = SIDE * scale / 2
    row, column = divmod(CORNERS.index(shape.corner), 2)
    size = look.uniform(10.0, 13.5) * scale
    room = half - size - 2 * scale
    x = column * half + scale + look.uniform(0, room)
    y = row * half + scale + look.uniform(0, room)
    box = (x, y, x + size, y + size)
    outline(ImageDraw.Draw(image), shape.kind, box, COLOURS[shape.colour])
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))


def careless_caption(shape: Shape, annotator: random.Random, *, carelessness: float) -> Shape:
    """What an annotator writes who, with this probability, gets one word wrong.

    A caption is always one of those to train on.
    """
    if annotator.random() >= carelessness:
        return shape
    words: dict[str, Iterable[str]] = {"colour": COLOURS, "kind": KINDS, "corner": CORNERS}
    wrong = [
        written
        for name, choices in words.items()
        for written in (replace(shape, **{name: choice}) for choice in choices)
        if written != shape and written.split == "train"
    ]
    return annotator.choice(wrong)


def seen(pixels: Pixels) -> Shape | None:
    """The shape in a picture of any even size, judged at 32 x 32; None where there is not exactly
    one, of one colour, in one corner."""
    nearest = palette(pixels)
    area = SIDE**2 / nearest.size
    corners = _quarters(nearest)
    shown = [np.count_nonzero(corner) * area for corner in corners]
    full = [place for place, count in enumerate(shown) if count > MOST]
    if len(full) != 1 or shown[full[0]] < LEAST:
        return None
    corner = corners[full[0]]
    counts = np.bincount(corner.ravel(), minlength=len(COLOURS) + 1)[1:]
    if counts.max() < PURITY * counts.sum():
        return None
    colour = list(COLOURS)[int(counts.argmax())]
    filled = fill(_quarters(pixels)[full[0]], colour)
    kind = min(KINDS, key=lambda name: abs(KINDS[name] - filled))
    return Shape(colour, kind, CORNERS[full[0]])


def score(pixels: Pixels, asked: Shape) -> float:
    """Share of the prompt's three words that the picture keeps; 1 is a picture that satisfies it, 0
    also one that shows no single shape."""
    found = seen(pixels)
    if found is None:
        return 0.0
    return sum(a == b for a, b in zip(astuple(found), astuple(asked), strict=True)) / 3


def foreground(pixels: Pixels) -> NDArray[np.bool_]:
    """(h, w) where something is painted: what is left of a picture without its colours."""
    return palette(pixels) > 0


def _quarters(picture: NDArray[Any]) -> list[NDArray[Any]]:
    """In the order of CORNERS."""
    return [quarter for half in np.split(picture, 2) for quarter in np.split(half, 2, axis=1)]


def palette(pixels: Pixels) -> NDArray[np.int64]:
    """(h, w) number of the nearest colour; 0 is the background."""
    colours = np.array([BACKGROUND, *COLOURS.values()], dtype=np.float64)
    distance = np.square(pixels.astype(np.float64)[:, :, None] - colours).sum(-1)
    return distance.argmin(-1)


def fill(quarter: Pixels, colour: str) -> float:
    """How much of its box a shape of this colour fills; a pixel on an edge counts in part."""
    full = np.subtract(COLOURS[colour], BACKGROUND, dtype=np.float64)
    there = np.clip((quarter - np.array(BACKGROUND, np.float64)) @ full / (full @ full), 0, 1)
    height, width = there.max(1).sum(), there.max(0).sum()
    return float(there.sum() / (height * width))


def outline(
    canvas: ImageDraw.ImageDraw,
    kind: str,
    box: tuple[float, float, float, float],
    colour: tuple[int, int, int],
) -> None:
    x, y, right, bottom = box
    match kind:
        case "circle":
            canvas.ellipse(box, fill=colour)
        case "square":
            canvas.rectangle(box, fill=colour)
        case _:
            canvas.polygon([((x + right) / 2, y), (right, bottom), (x, bottom)], fill=colour)
