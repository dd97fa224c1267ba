"""GLM-Image: codes of a small preview and of the image itself, which a diffusion model then draws.

Quirks. Ids below the codebook's size are codes in the text vocabulary; the head gives logits of
codes, of the image's beginning and end, and of nothing else, so that no plan can be written or
scored. The opening says the grids of image and preview. Codes lie on three rotary axes: `generate`
puts them there, while transformers' `forward` (5.24) takes given codes for words, so positions are
computed here. A code is 32 pixels wide but the vision tower, which makes codes, sees images at half
their size. The end of the image follows from the place and is neither drawn nor scored.

What draws pixels is trained apart and stays as it is. Its noise is the same for all pictures, so
that those of one prompt differ by their codes alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor
from torch.nn import functional as F
from transformers import GlmImageForConditionalGeneration

from mmalign.adapters.image_tokens.family import DECODER, Family, Grid, Layout, cut_grid
from mmalign.adapters.text.loading import unavailable
from mmalign.errors import UserError

STRIDE = 32
PREVIEW = 16
"""Side of a square image's preview, in codes; others have about as many."""


def _grid(lm: Any, processor: Any, asked: tuple[int, int] | None) -> Grid:
    height, width = asked or (processor.target_h, processor.target_w)
    return cut_grid(height, width, STRIDE)


def _preview(grid: Grid) -> Grid:
    ratio = grid.rows / grid.columns
    rows, columns = (max(1, int(math.sqrt(side) * PREVIEW)) for side in (ratio, 1 / ratio))
    return Grid(rows, columns, STRIDE)


def _opening(processor: Any, grid: Grid) -> str:
    sizes = (f"{each.rows} {each.columns}" for each in (grid, _preview(grid)))
    begin, end = processor.grid_bos_token, processor.grid_eos_token
    return "".join(f"{begin}{size}{end}" for size in sizes) + str(processor.bos_token)


def _positions(layout: Layout) -> Tensor:
    """(time height width, k): a grid begins behind the longer side of the one before it, and time
    stands still within it."""
    begin, parts = 0, []
    for grid in layout.grids:
        down, across = torch.arange(grid.rows), torch.arange(grid.columns)
        axes = torch.meshgrid(torch.zeros(1, dtype=torch.long), down, across, indexing="ij")
        parts.append(begin + torch.stack(axes).flatten(1))
        begin += max(grid.rows, grid.columns)
    return torch.cat(parts, 1)


def _to_codes(lm: Any, images: Tensor) -> Tensor:
    """(n k): those of the preview first."""
    grid = cut_grid(images.shape[-2], images.shape[-1], STRIDE)
    return torch.cat([_seen(lm, images, each) for each in (_preview(grid), grid)], 1)


def _seen(lm: Any, images: Tensor, grid: Grid) -> Tensor:
    """(n k) codes of images at the size that has so many of them."""
    patch, count = lm.config.vision_config.patch_size, grid.rows * grid.columns
    size = (grid.rows * patch, grid.columns * patch)
    small = F.interpolate(images, size, mode="bicubic", antialias=True)
    patches = F.unfold(small, patch, stride=patch).mT.flatten(0, 1)  # (n k, 3 patch patch)
    sizes = torch.tensor([[1, grid.rows, grid.columns]] * len(images), device=images.device)
    states = lm.model.visual(patches, grid_thw=sizes).last_hidden_state
    states = states.view(len(images), grid.rows, grid.columns, -1).permute(0, 3, 1, 2)
    codes: Tensor = lm.model.vqmodel.encode(states).image_tokens
    return codes.view(len(images), count)


def _to_pixels(lm: Any, codes: Tensor, prompts: Sequence[str]) -> Tensor:
    decoder = getattr(lm, DECODER, None)
    if decoder is None:
        raise UserError(
            "this folder has no decoder for GLM-Image's codes, so nothing can be drawn",
            hint="pass decoder=, a whole GLM-Image pipeline of diffusers such as "
            "zai-org/GLM-Image; training on preferences works without",
        )
    images: Tensor = decoder(codes, prompts, lm.device)
    return images


class DiffusionDecoder:
    """Draws codes with the pipeline at `source`, which is loaded when the first picture is."""

    def __init__(self, source: str, steps: int, dtype: torch.dtype) -> None:
        self.source, self.steps, self.dtype = source, steps, dtype
        self._pipeline: Any = None

    def __call__(self, codes: Tensor, prompts: Sequence[str], device: torch.device) -> Tensor:
        """(n 3 height width) bytes from codes (n rows columns).

        One by one: the pipeline pads the quoted words of prompts without a mask, so that pictures
        would depend on their batch-mates.
        """
        pipeline = self._loaded().to(device)
        height, width = (side * STRIDE for side in codes.shape[1:])
        made = []
        for grid, prompt in zip(codes, prompts, strict=True):
            images = pipeline(
                prompt,
                prior_token_ids=grid.repeat_interleave(2, 0).repeat_interleave(2, 1).view(1, -1),
                height=height,
                width=width,
                num_inference_steps=self.steps,
                generator=torch.Generator().manual_seed(0),
                output_type="pt",
            ).images
            made.append((images.float() * 255).round().clamp(0, 255).byte())
        return torch.cat(made)

    def __deepcopy__(self, memo: dict[int, Any]) -> DiffusionDecoder:
        """A frozen copy of the generator draws with the same decoder, which nothing changes."""
        return self

    def _loaded(self) -> Any:
        if self._pipeline is None:
            from diffusers import GlmImagePipeline

            try:
                self._pipeline = GlmImagePipeline.from_pretrained(
                    self.source, dtype=self.dtype, vision_language_encoder=None,
                    processor=None,
                )  # fmt: skip
            except (OSError, HfHubHTTPError, ValueError) as error:
                raise unavailable("GLM-Image pipeline", self.source, error) from error
            self._pipeline.set_progress_bar_config(disable=True)
        return self._pipeline


def _decoder(pipeline: str | None, steps: int, dtype: torch.dtype) -> DiffusionDecoder | None:
    return None if pipeline is None else DiffusionDecoder(pipeline, steps, dtype)


def _codes(lm: Any) -> int:
    return int(lm.config.vq_config.num_embeddings)


GLM_IMAGE = Family(
    language_model="model.language_model",
    frozen=("model.vqmodel", "model.visual"),
    chat=True,
    codes=_codes,
    grid=_grid,
    opening=_opening,
    row_end=lambda lm: None,
    unconditional=None,
    to_codes=_to_codes,
    to_pixels=_to_pixels,
    embed=lambda lm, codes: lm.get_input_embeddings()(codes),
    logits=lambda lm, hidden: F.linear(hidden, lm.lm_head.weight[: _codes(lm)]),
    not_text=lambda lm: None,
    model=GlmImageForConditionalGeneration,
    writes=False,
    guidance=1.0,
    tokenizer=("model.visual", "model.vqmodel"),
    preview=_preview,
    positions=_positions,
    decoder=_decoder,
)
