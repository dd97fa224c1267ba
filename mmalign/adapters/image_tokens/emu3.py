"""Emu3: codes are tokens of the text vocabulary, in rows that end with a token of their own.

Quirks. The opening says the image's rows and columns. A row's end follows from the place, so it is
neither drawn nor scored, and a code competes with other codes only: transformers' `generate` leaves
both to a `prefix_allowed_tokens_fn` of the user's. What follows the last code (end of row, of
frame, of image) predicts nothing and is left out. The image tokenizer has batch norms, which must
not see training mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.adapters.image_tokens.family import Family, Grid, bare_prompt, cut_grid


def _grid(lm: Any, processor: Any, asked: tuple[int, int] | None) -> Grid:
    stride = lm.model.vqmodel.spatial_scale_factor
    side = round(processor.image_area**0.5)
    height, width = asked or (side - side % stride,) * 2
    return cut_grid(height, width, stride)


def _opening(processor: Any, grid: Grid) -> str:
    size = f"{grid.rows}*{grid.columns}"
    return f"{processor.image_start_token}{size}{processor.fake_token_around_image}"


def code_ids(lm: Any) -> Tensor:
    """(c,) the text vocabulary's id of each code."""
    ids: Tensor = lm.model.vocabulary_mapping.img2bpe_mapping_tensor.long()
    return ids.to(lm.device)


def _to_codes(lm: Any, images: Tensor) -> Tensor:
    sizes = torch.tensor([images.shape[-2:]] * len(images))
    return torch.stack(lm.model.vqmodel.encode(images, sizes, return_dict=True).image_tokens)


def _to_pixels(lm: Any, codes: Tensor, prompts: Sequence[str]) -> Tensor:
    images: Tensor = lm.model.vqmodel.decode(codes)
    return images


EMU3 = Family(
    language_model="model.text_model",
    frozen=("model.vqmodel",),
    chat=False,
    codes=lambda lm: len(lm.model.vocabulary_mapping.image_tokens),
    grid=_grid,
    opening=_opening,
    row_end=lambda lm: lm.model.vocabulary_mapping.eol_token_id,
    unconditional=bare_prompt,
    to_codes=_to_codes,
    to_pixels=_to_pixels,
    embed=lambda lm, codes: lm.get_input_embeddings()(code_ids(lm)[codes]),
    logits=lambda lm, hidden: F.linear(hidden, lm.lm_head.weight[code_ids(lm)]),
    not_text=code_ids,
)
