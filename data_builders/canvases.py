"""Several images on one canvas: a labelled grid, or one image in the middle of another.

The layouts of MIA-DPO, arXiv:2410.17637, and where each image came to lie on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil

from PIL import Image, ImageDraw, ImageFont

Box = tuple[int, int, int, int]
"""x0 y0 x1 y1 in pixels of the canvas."""

Picture = Image.Image
WHITE = (255, 255, 255)

GRIDS = {2: (1, 2), 3: (1, 3), 4: (2, 2), 6: (2, 3), 9: (3, 3)}
"""Rows and columns for each number of images."""


@dataclass(frozen=True)
class Canvas:
    """boxes: of the images, in their order; without the white that fills up a cell."""

    image: Picture
    boxes: tuple[Box, ...]


def label_of(number: int) -> str:
    """What the image in this place, counted from 1, is called in pictures and prompts."""
    return f"Image{number}"


def fitting(size: tuple[int, int], width: int, height: int) -> tuple[int, int]:
    """The largest width and height that fit, in the proportions of `size`."""
    scale = min(width / size[0], height / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def inside(outer: Picture, scale: float) -> tuple[int, int]:
    """Width and height that an inner picture may fill."""
    return max(1, int(scale * outer.width)), max(1, int(scale * outer.height))


def fitted(picture: Picture, width: int, height: int) -> Picture:
    """As large as fits, its proportions kept.

    The published code filters by Lanczos; for making smaller, Hamming is as sharp to the eye and
    takes less than half the time, most of which goes into this.
    """
    size = fitting(picture.size, width, height)
    if size == picture.size:
        return picture
    smaller = size < picture.size
    how = Image.Resampling.HAMMING if smaller else Image.Resampling.LANCZOS
    return picture.resize(size, how, reducing_gap=1.5)


def grid(
    pictures: Sequence[Picture],
    *,
    cell: int = 448,
    margin: int = 40,
    labels: bool = True,
    square: bool = False,
) -> Canvas:
    """Rows of square cells, read like a page; each picture in the upper left of its cell.

    margin: white between columns and above each row; there stand the labels. Without labels there
    is none above the first row. square: see `picture_in_picture`.
    Raises ValueError for a number of pictures without a grid.
    """
    if len(pictures) not in GRIDS:
        raise ValueError(f"a grid has {', '.join(map(str, GRIDS))} images, not {len(pictures)}")
    rows, columns = GRIDS[len(pictures)]
    above = margin if labels else 0
    width = columns * cell + (columns - 1) * margin
    height = rows * cell + (rows - 1) * margin + above
    canvas, left, top = _paper(width, height, square)
    boxes = []
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        x, y = left + column * (cell + margin), top + above + row * (cell + margin)
        if labels and margin:
            canvas.paste(_label(number + 1, margin), (x + margin // 2, y - margin))
        boxes.append(_paste(canvas, fitted(picture, cell, cell), x, y))
    return Canvas(canvas, tuple(boxes))


def picture_in_picture(
    inner: Picture, outer: Picture, *, scale: float = 0.7, square: bool = False
) -> Canvas:
    """`inner` in the middle of `outer`, fitted into `scale` of its width and of its height.

    The first box is the inner picture's, the second the outer one's. square: white on two sides, so
    that no model's processor crops anything away.
    """
    canvas, left, top = _paper(*outer.size, square)
    around = _paste(canvas, outer, left, top)
    placed = fitted(inner, *inside(outer, scale))
    x, y = (outer.width - placed.width) // 2, (outer.height - placed.height) // 2
    return Canvas(canvas, (_paste(canvas, placed, left + x, top + y), around))


def _paper(width: int, height: int, square: bool) -> tuple[Picture, int, int]:
    """White, and where on it an area of this size begins: the middle of a square, if wanted."""
    side = max(width, height)
    size = (side, side) if square else (width, height)
    return Image.new("RGB", size, WHITE), (size[0] - width) // 2, (size[1] - height) // 2


def _paste(canvas: Picture, picture: Picture, x: int, y: int) -> Box:
    canvas.paste(picture, (x, y))
    return x, y, x + picture.width, y + picture.height


@lru_cache(maxsize=64)
def _label(number: int, height: int) -> Picture:
    """Black on white, a strip of this height."""
    font = ImageFont.load_default(size=max(1, round(0.8 * height)))
    strip = Image.new("RGB", (ceil(font.getlength(label_of(number))), height), WHITE)
    ImageDraw.Draw(strip).text((0, height / 2), label_of(number), 0, font, anchor="lm")
    return strip
