"""What a family of autoregressive image generators must say about itself.

All families are handled in one space of ids: a text token keeps its id, and code c of the image
codebook is id (size of the text vocabulary) + c, whether or not the family's own vocabulary has
codes in it. Axes: n images, k ids, p positions, h hidden size, v text vocabulary, c codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

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
class Family:
    """One family's side of the adapter; every function is given the transformers model `lm`.

    language_model: path of the decoder in `lm`, which has the LoRA. frozen: paths of the parts that
        are never trained. chat: whether prompts go through the processor's chat template.
    codes: size of the codebook. grid: of images of some size in pixels, or of the usual size.
    opening: text between prompt and first code. row_end: token behind each row of codes.
    unconditional: ids that stand for a prompt without content, given tokenizer, prompt and opening.
    to_codes: images (n 3 height width), normalised as the processor does, to (n rows columns).
    to_pixels: the way back. embed: codes (k,) to (k h). logits: hidden states (p h) to (p c), over
        codes and nothing else. not_text: ids (k,) that a text must not contain.
    """

    language_model: str
    frozen: tuple[str, ...]
    chat: bool
    codes: Callable[[Any], int]
    grid: Callable[[Any, Any, tuple[int, int] | None], Grid]
    opening: Callable[[Any, Grid], str]
    row_end: Callable[[Any], int | None]
    unconditional: Callable[[Any, Sequence[int], Sequence[int]], list[int]]
    to_codes: Callable[[Any, Tensor], Tensor]
    to_pixels: Callable[[Any, Tensor], Tensor]
    embed: Callable[[Any, Tensor], Tensor]
    logits: Callable[[Any, Tensor], Tensor]
    not_text: Callable[[Any], Tensor | None]


def fixed_grid(side: int, stride: int, asked: tuple[int, int] | None) -> Grid:
    """The grid of a model that draws squares of one size. Raises UserError for any other size."""
    if asked not in (None, (side, side)):
        raise UserError(
            f"this model draws images of {side} x {side} pixels, not {asked}",
            hint="leave resolution out",
        )
    return Grid(side // stride, side // stride, stride)


def bare_prompt(tokenizer: Any, prompt: Sequence[int], opening: Sequence[int]) -> list[int]:
    """The unconditional prompt of models that were trained with empty ones."""
    return [*prompt[:1], *opening] if prompt[0] == tokenizer.bos_token_id else list(opening)
