"""Which part of an image each of its tokens stands for, family by family.

A layout is told a processor, the size of the original image (width, height) and what the tower is
given for it, and answers with a rectangle x0 y0 x1 y1 (m 4) in pixels of the original for each of
its m tokens, in their order; rows of nan are tokens that only separate. Parts that were padded
beyond the image are cut off, so a token that sees nothing but padding has no area.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Size = tuple[int, int]
Layout = Callable[[Any, Size, Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class ImageSpan:
    """Where a prompt shows an image. positions: (m,) of its tokens in the prompt, tiles and global
    view included, separators left out. rectangles: (m 4) x0 y0 x1 y1 of each in pixels of the
    original image, whose size is (width, height)."""

    positions: Tensor
    rectangles: Tensor
    size: Size


def cells(size: Size, rows: int, columns: int, box: tuple[float, ...] | None = None) -> Tensor:
    """(rows x columns, 4), row by row. box: what the grid lies over, the whole image by default."""
    width, height = size
    left, top, right, bottom = box or (0, 0, width, height)
    x = torch.linspace(left, right, columns + 1).clamp(0, width)
    y = torch.linspace(top, bottom, rows + 1).clamp(0, height)
    corners = [
        x[:-1].expand(rows, -1),
        y[:-1, None].expand(-1, columns),
        x[1:].expand(rows, -1),
        y[1:, None].expand(-1, columns),
    ]
    return torch.stack(corners, dim=-1).reshape(-1, 4)


def separators(count: int) -> Tensor:
    return torch.full((count, 4), math.nan)


def llava(processor: Any, size: Size, pixels: Mapping[str, Tensor]) -> Tensor:
    """One grid; where the processor would crop, over the square onto which images are padded."""
    height, width = pixels["pixel_values"].shape[-2:]
    extra = processor.num_additional_image_tokens
    if processor.vision_feature_select_strategy == "default":
        extra -= 1
    box = None
    if getattr(processor.image_processor, "do_center_crop", None):
        scale = max(size[0] / width, size[1] / height)
        left, top = (size[0] - width * scale) / 2, (size[1] - height * scale) / 2
        box = (left, top, size[0] - left, size[1] - top)
    patch = processor.patch_size
    return torch.cat([separators(extra), cells(size, height // patch, width // patch, box)])


def qwen(processor: Any, size: Size, pixels: Mapping[str, Tensor]) -> Tensor:
    """One grid of merged patches over the whole image, for each of its times."""
    merged = processor.image_processor.merge_size
    [(times, rows, columns)] = pixels["image_grid_thw"].tolist()
    return cells(size, rows // merged, columns // merged).repeat(times, 1)
