"""What a family of autoregressive image generators must say about itself.

All families are handled in one space of ids: a text token keeps its id, and code c of the image
codebook is id (size of the text vocabulary) + c, whether or not the family's own vocabulary has
codes in it. Axes: n images, k ids, p positions, h hidden size, v text vocabulary, c codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from mmalign.errors import UserError


@dataclass(frozen=True)
class Grid:
    """Rows and columns of an image's codes, and the pixels that one code is wide and high."""

    rows: int
    columns: int
    stride: int

    @property
    def pixels(self) -> tuple[int, int]:
        """Height and width."""
        return self.rows * self.stride, self.columns * self.stride


@dataclass(frozen=True)
class Layout:
    """What the codes of an image are, in the order in which they are drawn.

    first_code: id of code 0, which is the size of the text vocabulary. codes: size of the codebook.
    codec: digest of the image tokenizer. preview: of a smaller version of the image whose codes
    come before those of `grid`.
    """

    grid: Grid
    first_code: int
    codes: int
    row_end: int | None
    codec: str
    preview: Grid | None = None

    @property
    def grids(self) -> tuple[Grid, ...]:
        return (self.grid,) if self.preview is None else (self.preview, self.grid)

    @property
    def widths(self) -> list[int]:
        """Codes of each row."""
        return [grid.columns for grid in self.grids for _ in range(grid.rows)]

    @property
    def count(self) -> int:
        return sum(self.widths)

    def rows(self, codes: Sequence[int]) -> list[list[int]]:
        """Codes in the order of drawing, or the first of them, cut into rows."""
        ends = zip(self.widths, accumulate(self.widths), strict=True)
        return [list(codes[end - width : end]) for width, end in ends if end - width < len(codes)]


@dataclass(frozen=True)
class Family:
    """One family's side of the adapter; every function is given the transformers model `lm`.

    language_model: path of the decoder in `lm`, which has the LoRA. frozen: paths of the parts that
        are never trained. chat: whether prompts go through the processor's chat template.
    codes: size of the codebook. grid: of images of some size in pixels, or of the usual size.
    opening: text between prompt and first code. row_end: token behind each row of codes.
    unconditional: ids that stand for a prompt without content, given tokenizer, prompt and opening;
        None for a model that knows nothing of the kind and draws without guidance.
    to_codes: images (n 3 height width), normalised as the processor does, to their codes, each
        image's in the order of drawing.
    to_pixels: codes (n rows columns) and n prompts to images as `to_codes` takes them, or to bytes.
    embed: codes (k,) to (k h). logits: hidden states (p h) to (p c), over codes and nothing else.
    not_text: ids (k,) that a text must not contain.

    model: class of transformers that loads `lm`. writes: whether it has a head for words.
    guidance: that images are drawn with by default. tokenizer: paths of the parts that make codes.
    preview: grid of the smaller version that is drawn before an image.
    positions: (3 k) of each code on three rotary axes, counted from the first code; without it,
        codes follow one another as words do.
    decoder: given where it lies, denoising steps and precision, what draws codes if `lm` cannot;
        None where that is nowhere. `to_pixels` finds it at the attribute `DECODER` of `lm`.
    """

    language_model: str
    frozen: tuple[str, ...]
    chat: bool
    codes: Callable[[Any], int]
    grid: Callable[[Any, Any, tuple[int, int] | None], Grid]
    opening: Callable[[Any, Grid], str]
    row_end: Callable[[Any], int | None]
    unconditional: Callable[[Any, Sequence[int], Sequence[int]], list[int]] | None
    to_codes: Callable[[Any, Tensor], Tensor]
    to_pixels: Callable[[Any, Tensor, Sequence[str]], Tensor]
    embed: Callable[[Any, Tensor], Tensor]
    logits: Callable[[Any, Tensor], Tensor]
    not_text: Callable[[Any], Tensor | None]
    model: Any = AutoModelForImageTextToText
    writes: bool = True
    guidance: float = 5.0
    tokenizer: tuple[str, ...] = ("model.vqmodel",)
    preview: Callable[[Grid], Grid] | None = None
    positions: Callable[[Layout], Tensor] | None = None
    decoder: Callable[[str | None, int, torch.dtype], Any] | None = None

    def check_guidance(self, guidance: float) -> None:
        """Raises UserError for guidance of a model that has no unconditional prompt."""
        if guidance != 1 and self.unconditional is None:
            raise UserError(
                f"guidance is {guidance}, but this model knows no prompt without content",
                hint="guidance 1, which is none",
            )


DECODER = "image_decoder"
"""Attribute of the model that holds its family's `decoder`."""


def fixed_grid(side: int, stride: int, asked: tuple[int, int] | None) -> Grid:
    """The grid of a model that draws squares of one size. Raises UserError for any other size."""
    if asked not in (None, (side, side)):
        raise UserError(
            f"this model draws images of {side} x {side} pixels, not {asked}",
            hint="leave resolution out",
        )
    return Grid(side // stride, side // stride, stride)


def cut_grid(height: int, width: int, stride: int) -> Grid:
    """The grid of a model that draws images of any size. Raises UserError for broken codes."""
    if height % stride or width % stride:
        raise UserError(
            f"an image of {height} x {width} pixels cannot be cut into codes of {stride}",
            hint=f"a resolution in multiples of {stride}",
        )
    return Grid(height // stride, width // stride, stride)


def bare_prompt(tokenizer: Any, prompt: Sequence[int], opening: Sequence[int]) -> list[int]:
    """The unconditional prompt of models that were trained with empty ones."""
    return [*prompt[:1], *opening] if prompt[0] == tokenizer.bos_token_id else list(opening)
