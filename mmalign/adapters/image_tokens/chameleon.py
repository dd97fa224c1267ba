"""Chameleon: codes are tokens of the text vocabulary.

Quirks. `forward` sets the logits of all codes to the lowest number there is, because the published
model was kept from drawing; its head is called here instead. transformers has the encoder of the
image tokenizer only. The decoder can be given as a `JanusVQVAE`, which is the same network in the
same library (`load_image_tokens(decoder=)`), without the normalised codebook.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import JanusVQVAE

from mmalign.adapters.image_tokens.emu3 import code_ids
from mmalign.adapters.image_tokens.family import DECODER, Family, Grid, bare_prompt, fixed_grid
from mmalign.adapters.text.loading import unavailable
from mmalign.errors import UserError


def _grid(lm: Any, processor: Any, asked: tuple[int, int] | None) -> Grid:
    vq = lm.config.vq_config
    return fixed_grid(vq.resolution, 2 ** (len(vq.channel_multiplier) - 1), asked)


def _to_codes(lm: Any, images: Tensor) -> Tensor:
    found = lm.model.vqmodel.encode(images, return_dict=True).image_tokens
    side = round((found.numel() / len(images)) ** 0.5)
    codes: Tensor = found.view(len(images), side, side)
    return codes


def _decoder(asked: str | None, steps: int, dtype: torch.dtype) -> JanusVQVAE | None:
    if asked is None:
        return None
    try:
        return JanusVQVAE.from_pretrained(asked, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise unavailable("JanusVQVAE", asked, error) from error


def _to_pixels(lm: Any, codes: Tensor, prompts: Sequence[str]) -> Tensor:
    decoder = getattr(lm, DECODER, None)
    if decoder is None:
        raise UserError(
            "transformers has no decoder for Chameleon's image tokens, so nothing can be drawn",
            hint="pass decoder=, the folder of a JanusVQVAE with the weights of its VQGAN; "
            "training on preferences works without",
        )
    vectors = decoder.quantize.embedding(codes).permute(0, 3, 1, 2)
    images: Tensor = decoder.decoder(decoder.post_quant_conv(vectors))
    return images


CHAMELEON = Family(
    language_model="model",
    frozen=("model.vqmodel", DECODER),
    chat=False,
    codes=lambda lm: len(lm.model.vocabulary_mapping.image_tokens),
    grid=_grid,
    opening=lambda processor, grid: processor.image_start_token,
    row_end=lambda lm: None,
    unconditional=bare_prompt,
    to_codes=_to_codes,
    to_pixels=_to_pixels,
    embed=lambda lm, codes: lm.get_input_embeddings()(code_ids(lm)[codes]),
    logits=lambda lm, hidden: F.linear(hidden, lm.lm_head.weight[code_ids(lm)]),
    not_text=code_ids,
    decoder=_decoder,
)
