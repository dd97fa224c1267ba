"""Draws scenes of coloured shapes, whose content is known exactly, and writes texts about them.

In "together" scenes things come in company: a red circle mostly has a red star beside it. Whoever
learns from such scenes, and from annotators who name the companion without looking, learns to say
what is not there. In "apart" scenes every thing is drawn by itself, which brings that to light.
"""

from __future__ import annotations

import io
import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw

from mmalign.records import Media, Message, Text

Kind = Literal["together", "apart"]

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 160, 40),
    "blue": (40, 70, 220),
    "yellow": (240, 200, 20),
    "purple": (150, 40, 170),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
COMPANIONS = {"circle": "star", "square": "triangle", "cross": "heart"}
COMPANY = 0.8  # how often, in "together" scenes, the companion is there too
GRID = 3  # cells in a row and in a column
MOST = 4  # things in a scene
SIZE = 96  # pixels in a row and in a column
BACKGROUND = (245, 245, 245)
DESCRIBE = ("Describe the image.", "What is in the image?", "What do you see in the image?")


@dataclass(frozen=True)
class Thing:
    """A coloured shape in a cell of the grid; cells are counted in reading order."""

    colour: str
    shape: str
    cell: int

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    def companion(self) -> Thing | None:
        """What mostly comes with it."""
        shape = COMPANIONS.get(self.shape)
        return Thing(self.colour, shape, self.cell) if shape else None


@dataclass(frozen=True)
class Scene:
    """Things in reading order, no two alike. `look` seeds their sizes, places and hues."""

    things: tuple[Thing, ...]
    look: int

    @property
    def present(self) -> tuple[str, ...]:
        """What is there, in reading order."""
        return tuple(thing.name for thing in self.things)

    def image(self) -> Media:
        """The drawing, as a PNG."""
        buffer = io.BytesIO()
        draw_scene(self).save(buffer, "PNG", compress_level=1)
        return Media("image", data=buffer.getvalue())


def scenes(kind: Kind, count: int, *, seed: int | str, most: int = MOST) -> list[Scene]:
    """`count` scenes of one kind, with `most` things at most; equal seeds give equal scenes.
    Repetitions happen by chance."""
    draw = random.Random(f"scenes {kind} {seed}")
    return [_scene(kind, draw, most) for _ in range(count)]


def _scene(kind: Kind, draw: random.Random, most: int) -> Scene:
    count = draw.randint(1, most)
    names: list[tuple[str, str]] = []
    while len(names) < count:
        colour, shape = draw.choice(list(COLOURS)), draw.choice(SHAPES)
        if (colour, shape) in names:
            continue
        names.append((colour, shape))
        company = kind == "together" and shape in COMPANIONS and draw.random() < COMPANY
        if company and len(names) < most and (colour, COMPANIONS[shape]) not in names:
            names.append((colour, COMPANIONS[shape]))
    draw.shuffle(names)
    cells = sorted(draw.sample(range(GRID * GRID), len(names)))
    things = tuple(Thing(*name, cell) for name, cell in zip(names, cells, strict=True))
    return Scene(things, draw.getrandbits(32))


def draw_scene(scene: Scene, size: int = SIZE) -> Image.Image:
    """The picture, `size` pixels square; drawn twice as large and scaled down, for smooth edges."""
    look = random.Random(scene.look)
    image = Image.new("RGB", (2 * size, 2 * size), BACKGROUND)
    canvas = ImageDraw.Draw(image)
    cell = 2 * size / GRID
    for thing in scene.things:
        side = cell * look.uniform(0.72, 0.88)
        x = thing.cell % GRID * cell + look.uniform(0.05, 0.95) * (cell - side)
        y = thing.cell // GRID * cell + look.uniform(0.05, 0.95) * (cell - side)
        hue = tuple(min(255, max(0, c + look.randint(-12, 12))) for c in COLOURS[thing.colour])
        OUTLINES[thing.shape](canvas, x, y, side, hue)
    return image.resize((size, size), Image.Resampling.BOX)


def _circle(
    canvas: ImageDraw.ImageDraw, x: float, y: float, s: float, hue: tuple[int, ...]
) -> None:
    canvas.ellipse((x, y, x + s, y + s), fill=hue)


def _square(
    canvas: ImageDraw.ImageDraw, x: float, y: float, s: float, hue: tuple[int, ...]
) -> None:
    canvas.rectangle((x, y, x + s, y + s), fill=hue)


def _cross(canvas: ImageDraw.ImageDraw, x: float, y: float, s: float, hue: tuple[int, ...]) -> None:
    canvas.rectangle((x + 0.35 * s, y, x + 0.65 * s, y + s), fill=hue)
    canvas.rectangle((x, y + 0.35 * s, x + s, y + 0.65 * s), fill=hue)


def _heart(canvas: ImageDraw.ImageDraw, x: float, y: float, s: float, hue: tuple[int, ...]) -> None:
    canvas.ellipse((x, y, x + 0.55 * s, y + 0.55 * s), fill=hue)
    canvas.ellipse((x + 0.45 * s, y, x + s, y + 0.55 * s), fill=hue)
    _polygon(canvas, x, y, s, hue, [(0.04, 0.42), (0.96, 0.42), (0.5, 1)])


def _triangle(
    canvas: ImageDraw.ImageDraw, x: float, y: float, s: float, hue: tuple[int, ...]
) -> None:
    _polygon(canvas, x, y, s, hue, [(0.5, 0), (1, 1), (0, 1)])


def _star(canvas: ImageDraw.ImageDraw, x: float, y: float, s: float, hue: tuple[int, ...]) -> None:
    turns = [(0.5 if k % 2 == 0 else 0.2, math.pi * (k / 5 - 0.5)) for k in range(10)]
    corners = [(0.5 + r * math.cos(turn), 0.5 + r * math.sin(turn)) for r, turn in turns]
    _polygon(canvas, x, y, s, hue, corners)


def _polygon(
    canvas: ImageDraw.ImageDraw,
    x: float,
    y: float,
    s: float,
    hue: tuple[int, ...],
    corners: Sequence[tuple[float, float]],
) -> None:
    canvas.polygon([(x + a * s, y + b * s) for a, b in corners], fill=hue)


Outline = Callable[[ImageDraw.ImageDraw, float, float, float, tuple[int, ...]], None]
OUTLINES: dict[str, Outline] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "heart": _heart,
}


def caption(names: Sequence[str]) -> str:
    """A sentence that names these things, as in "There is a red star and a blue cross."."""
    words = [f"a {name}" for name in names]
    listed = f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]
    return f"There is {listed}."


def careless_caption(scene: Scene, draw: random.Random, *, carelessness: float) -> str:
    """What an annotator writes who, with this probability each, also names companions that are
    mostly there, but not here."""
    named: list[str] = []
    for thing in scene.things:
        named.append(thing.name)
        expected = thing.companion()
        if (
            expected
            and expected.name not in (*scene.present, *named)
            and len(scene.things) < MOST
            and draw.random() < carelessness
        ):
            named.append(expected.name)
    return caption(named)


def yes_no(scene: Scene, draw: random.Random, *, hard: bool = True) -> tuple[str, bool]:
    """A question about one thing and whether it is there: both answers are equally likely.

    hard: what is not there is often the companion of something that is.
    """
    if draw.random() < 0.5:
        return _is_there(draw.choice(scene.present)), True
    expected = [c.name for thing in scene.things if (c := thing.companion())]
    missing = [name for name in expected if name not in scene.present]
    if hard and missing and draw.random() < 0.5:
        return _is_there(draw.choice(missing)), False
    absent = [n for c in COLOURS for s in SHAPES if (n := f"{c} {s}") not in scene.present]
    return _is_there(draw.choice(absent)), False


def _is_there(name: str) -> str:
    return f"Is there a {name} in the image?"


def mentioned(text: str) -> list[str]:
    """The things that a text names, repetitions included, in its order."""
    return re.findall(rf"\b(?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})\b", text.lower())


def ask(scene: Scene, question: str = DESCRIBE[0]) -> tuple[Message, ...]:
    """A prompt with the scene's picture."""
    return (Message("user", (scene.image(), Text(question))),)


def ask_among(
    several: Sequence[Scene], target: int, question: str = DESCRIBE[0]
) -> tuple[Message, ...]:
    """A prompt with several pictures, numbered from 1, and a question about one of them.

    target: its place, counted from 0.
    """
    parts: list[Media | Text] = []
    for number, scene in enumerate(several, 1):
        parts += [Text(f"Image{number}:"), scene.image(), Text("\n")]
    rest = question[0].lower() + question[1:]
    return (Message("user", (*parts, Text(f"In Image{target + 1}, {rest}"))),)
