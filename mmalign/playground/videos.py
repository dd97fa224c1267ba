"""Videos of a coloured shape that moves: prompts for them, drawings, and an exact checker.

A prompt names colour, kind and direction, "red circle moving left"; how large the shape is and
where it starts is left open.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import astuple, dataclass
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mmalign.playground.pictures import BACKGROUND, COLOURS, KINDS, PURITY, fill, outline, palette
from mmalign.records import PLAIN, Message, Text

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SHADES = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "triangle")
SIDE, FRAMES = 32, 5
STEP = 2.8
"""Pixels from frame to frame."""
LEAST = 30
"""Pixels that every frame must show to hold a shape; the smallest triangle has 45."""
MOVED = 5.0
"""Pixels between the middles of first and last frame that count as a movement; drawn ones are 11
apart."""
Split = Literal["train", "tuning", "held_out"]
"""Combinations to train on, to choose a recipe by, and to measure on: those of the last serve for
nothing else."""
SPLITS: tuple[Split, ...] = (
    "held_out", "train", "train", "train", "train", "tuning", "held_out",
)  # fmt: skip
"""The split of every seventh of the combinations."""

Frames = NDArray[np.uint8]
"""(frames, side, side, 3)"""


@dataclass(frozen=True, order=True)
class Motion:
    """What a prompt asks for."""

    colour: str
    kind: str
    direction: str

    @property
    def text(self) -> str:
        return f"{self.colour} {self.kind} moving {self.direction}"

    @property
    def prompt(self) -> tuple[Message, ...]:
        return (Message(PLAIN, (Text(self.text),)),)

    @property
    def split(self) -> Split:
        return SPLITS[hashlib.sha256(self.text.encode()).digest()[0] % len(SPLITS)]


def motions(split: Split, *, seed: int = 0) -> list[Motion]:
    """All prompts of a split, in random order. The splits share words, but no combination."""
    made = [Motion(*words) for words in product(SHADES, SHAPES, DIRECTIONS)]
    chosen = [motion for motion in made if motion.split == split]
    random.Random(f"videos {split} {seed}").shuffle(chosen)
    return chosen


def film(motion: Motion, look: random.Random) -> Frames:
    """A video of what was asked for; `look` chooses what the prompt leaves open.

    Drawn at four times the size and scaled down, for smooth edges.
    """
    scale = 4
    size = look.uniform(10.0, 13.5)
    towards = np.array(DIRECTIONS[motion.direction])
    path = STEP * (FRAMES - 1)
    start = [look.uniform(max(0, -d) * path, SIDE - size - max(0, d) * path) for d in towards]
    frames = []
    for number in range(FRAMES):
        x, y = (np.array(start) + STEP * number * towards) * scale
        image = Image.new("RGB", (SIDE * scale, SIDE * scale), BACKGROUND)
        box = (x, y, x + size * scale, y + size * scale)
        outline(ImageDraw.Draw(image), motion.kind, box, COLOURS[motion.colour])
        frames.append(np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX)))
    return np.stack(frames)


def seen(frames: Frames) -> Motion | None:
    """What a video shows; None where some frame has no shape, or nothing moves."""
    nearest = [palette(frame) for frame in frames]
    if min(np.count_nonzero(each) for each in nearest) < LEAST:
        return None
    counts = np.bincount(np.concatenate([n.ravel() for n in nearest]), minlength=len(COLOURS) + 1)
    if counts[1:].max() < PURITY * counts[1:].sum():
        return None
    colour = list(COLOURS)[int(counts[1:].argmax())]
    first, last = (np.argwhere(nearest[place] > 0).mean(0)[::-1] for place in (0, -1))
    moved = last - first
    if np.abs(moved).max() < MOVED:
        return None
    filled = float(np.median([fill(frame, colour) for frame in frames]))
    kind = min(SHAPES, key=lambda name: abs(KINDS[name] - filled))
    direction = max(DIRECTIONS, key=lambda name: float(moved @ DIRECTIONS[name]))
    return Motion(colour, kind, direction)


def score(frames: Frames, asked: Motion) -> float:
    """Share of the prompt's three words that the video keeps; 1 is a video that satisfies it, 0
    also one that shows no moving shape."""
    found = seen(frames)
    if found is None:
        return 0.0
    return sum(a == b for a, b in zip(astuple(found), astuple(asked), strict=True)) / 3
