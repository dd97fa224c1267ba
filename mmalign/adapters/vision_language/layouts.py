"""Which part of an image each of its tokens stands for, family by family.

A layout is told a processor, the size of the original image (width, height) and what the tower is
given for it, and answers with a rectangle x0 y0 x1 y1 (m 4) in pixels of the original for each of
its m tokens, in their order; rows of nan are tokens that only separate. Parts that were padded
beyond the image are cut off, so a token that sees nothing but padding has no area.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas
from transformers.models.mllama.image_processing_mllama import (
    get_image_size_fit_to_canvas,
)
from transformers.models.mllama.image_processing_mllama import (
    get_optimal_tiled_canvas as get_mllama_canvas,
)

Size = tuple[int, int]
Layout = Callable[[Any, Size, Mapping[str, Tensor]], Tensor]

FRAMES = "frames"
"""Is among the pixels of a video that a family takes for images."""


@dataclass(frozen=True)
class ImageSpan:
    """Where a prompt shows an image. positions: (m,) of its tokens in the prompt, or among the
    columns of cross-attention where the decoder looks at images there; tiles and global view
    included, separators left out. rectangles: (m 4) x0 y0 x1 y1 of each in pixels of the
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
    grid = "image_grid_thw" if "image_grid_thw" in pixels else "video_grid_thw"
    [(times, rows, columns)] = pixels[grid].tolist()
    return cells(size, rows // merged, columns // merged).repeat(times, 1)


def llava_next(processor: Any, size: Size, pixels: Mapping[str, Tensor]) -> Tensor:
    """The whole image, then its tiles as one grid without padding; each row ends in a separator."""
    side = pixels["pixel_values"].shape[-1]
    grid = side // processor.patch_size
    rows, columns, box = _unpadded(processor, size, side, grid)
    return torch.cat([cells(size, grid, grid), _lines(cells(size, rows, columns, box), rows)])


def llava_onevision(processor: Any, size: Size, pixels: Mapping[str, Tensor]) -> Tensor:
    """As LLaVA-Next, with a limit to the tiles' tokens; among several images it has no tiles. Of a
    video, each frame by one coarser grid."""
    grid = math.isqrt(processor.num_image_tokens)
    if "pixel_values_videos" in pixels:
        coarse, count = math.ceil(grid / 2), pixels["pixel_values_videos"].shape[1]
        return torch.cat([cells(size, coarse, coarse).repeat(count, 1), separators(1)])
    whole = cells(size, grid, grid)
    if pixels["batch_num_images"][0] != 1:
        return torch.cat([whole, separators(1)])
    rows, columns, box = _unpadded(processor, size, pixels["pixel_values"].shape[-1], grid)
    most = int(processor.vision_aspect_ratio.removeprefix("anyres_max_"))
    ratio = math.sqrt(rows * columns / (most * grid**2))
    if ratio > 1.1:
        rows, columns = int(rows // ratio), int(columns // ratio)
    return torch.cat([whole, _lines(cells(size, rows, columns, box), rows)])


def internvl(processor: Any, size: Size, pixels: Mapping[str, Tensor]) -> Tensor:
    """Tiles that cover the image, then all of it where there are several; a video's frames."""
    settings, count = processor.image_processor, len(pixels["pixel_values"])
    grid = math.isqrt(processor.image_seq_length)
    if FRAMES in pixels:
        return cells(size, grid, grid).repeat(count, 1)
    if count == 1:
        return cells(size, grid, grid)
    side = (settings.size["height"], settings.size["width"])
    columns, rows = get_optimal_tiled_canvas(
        size[::-1], side, settings.min_patches, settings.max_patches
    )
    return _tiles(size, rows, columns, grid, whole=count > rows * columns)


def idefics3(processor: Any, size: Size, pixels: Mapping[str, Tensor]) -> Tensor:
    """Tiles that cover the image, then the whole image; a video's frames. SmolVLM's, too."""
    width, height = size
    grid = math.isqrt(processor.image_seq_len)
    if FRAMES in pixels:
        return cells(size, grid, grid).repeat(pixels["pixel_values"].shape[1], 1)
    _, rows, columns = processor.image_processor.get_number_of_image_patches(height, width, {})
    if pixels["pixel_values"].shape[1] == 1:
        return cells(size, grid, grid)
    return _tiles(size, rows, columns, grid, whole=True)


def paligemma(processor: Any, size: Size, pixels: Mapping[str, Tensor]) -> Tensor:
    """One grid over the whole image."""
    grid = math.isqrt(processor.image_seq_length)
    return cells(size, grid, grid)


def gemma3(processor: Any, size: Size, pixels: Mapping[str, Tensor]) -> Tensor:
    """One grid over the whole image; with pan and scan, further ones over its pieces."""
    grid, (width, height) = math.isqrt(processor.image_seq_length), size
    found, pieces = [cells(size, grid, grid)], len(pixels["pixel_values"]) - 1
    for piece in range(pieces):
        if width >= height:
            step = math.ceil(width / pieces)
            box = (piece * step, 0, min(width, (piece + 1) * step), height)
        else:
            step = math.ceil(height / pieces)
            box = (0, piece * step, width, min(height, (piece + 1) * step))
        found.append(cells(size, grid, grid, box))
    return torch.cat(found)


def pixtral(processor: Any, size: Size, pixels: Mapping[str, Tensor]) -> Tensor:
    """One grid over the whole image; what ends its rows are tokens of another kind."""
    [(height, width)] = pixels["image_sizes"].tolist()
    patch = processor.patch_size * processor.spatial_merge_size
    return cells(size, height // patch, width // patch)


def molmo2(processor: Any, size: Size, pixels: Mapping[str, Tensor]) -> Tensor:
    """The whole image, then all its overlapping crops as one finer grid."""
    settings = processor.image_processor
    side, margin = settings.size["height"] // settings.patch_size, sum(settings.overlap_margins)
    [(*low, rows, columns)] = pixels["image_grids"].tolist()
    pools = settings.pooling_size
    fine = [
        next(
            patches
            for crops in range(1, settings.max_crops + 1)
            if math.ceil((patches := crops * (side - margin) + margin) / pool) == count
        )
        for pool, count in zip(pools, (rows, columns), strict=True)
    ]
    views = ((low, [side, side]), ([rows, columns], fine))
    return torch.cat([_pooled(size, counts, patches, pools) for counts, patches in views])


def mllama(processor: Any, size: Size, pixels: Mapping[str, Tensor]) -> Tensor:
    """Columns of cross-attention: for each tile, filled or not, one of its class and its grid. The
    image lies in the upper left of the canvas that the tiles cover."""
    settings = processor.image_processor
    side, most = settings.size["height"], settings.max_image_tiles
    [[tiles]] = pixels["aspect_ratio_mask"].sum(-1).tolist()
    shape = {"image_height": size[1], "image_width": size[0], "tile_size": side}
    high, wide = get_mllama_canvas(**shape, max_image_tiles=most)
    height, width = get_image_size_fit_to_canvas(**shape, canvas_height=high, canvas_width=wide)
    canvas = (0.0, 0.0, size[0] * wide / width, size[1] * high / height)
    boxes = cells((math.ceil(canvas[2]), math.ceil(canvas[3])), high // side, wide // side, canvas)
    grid = side // MLLAMA_PATCH
    filled = [
        torch.cat([separators(1), cells(size, grid, grid, tuple(box))]) for box in boxes.tolist()
    ]
    return torch.cat([*filled, separators((most - tiles) * (grid**2 + 1))])


MLLAMA_PATCH = 14
"""Pixels of a patch in all models of the family; its processor does not know."""


def _pooled(
    size: Size, counts: Sequence[int], patches: Sequence[int], pools: Sequence[int]
) -> Tensor:
    """Cells of windows of patches over the image, which are not filled at its edges. All of rows
    and columns, but `size`."""
    edges = []
    for original, count, length, pool in zip(size[::-1], counts, patches, pools, strict=True):
        beyond = (count * pool - length) // 2
        edges.append((-beyond * original / length, (count * pool - beyond) * original / length))
    (top, bottom), (left, right) = edges
    return cells(size, counts[0], counts[1], (left, top, right, bottom))


def _tiles(size: Size, rows: int, columns: int, grid: int, *, whole: bool) -> Tensor:
    """Tiles row by row, each with a grid of its own."""
    boxes = [tuple(box) for box in cells(size, rows, columns).tolist()]
    found = [cells(size, grid, grid, box) for box in boxes]
    return torch.cat([*found, cells(size, grid, grid)] if whole else found)


def _lines(grid: Tensor, rows: int) -> Tensor:
    """A separator behind each of the grid's rows."""
    lines = grid.view(rows, -1, 4)
    return torch.cat([lines, separators(rows)[:, None]], dim=1).view(-1, 4)


def _unpadded(
    processor: Any, size: Size, side: int, grid: int
) -> tuple[int, int, tuple[float, ...]]:
    """Rows and columns of the tiles' tokens without those of padding, and what they lie over."""
    width, height = size
    pinpoints = processor.image_processor.image_grid_pinpoints
    high, wide = select_best_resolution((height, width), pinpoints)
    rows, columns = grid * (high // side), grid * (wide // side)
    patch = side / grid
    box = [0.0, 0.0, float(width), float(height)]
    if width / height > columns / rows:
        filled = int(round(height * (columns / width), 7))
        scaled = min(math.ceil(height * wide / width), high)
        beyond = (rows - filled) // 2
        first = (beyond * patch - (high - scaled) // 2) * height / scaled
        rows -= 2 * beyond
        box[1], box[3] = first, first + rows * patch * height / scaled
    else:
        filled = int(round(width * (rows / height), 7))
        scaled = min(math.ceil(width * high / height), wide)
        beyond = (columns - filled) // 2
        first = (beyond * patch - (wide - scaled) // 2) * width / scaled
        columns -= 2 * beyond
        box[0], box[2] = first, first + columns * patch * width / scaled
    return rows, columns, tuple(box)
