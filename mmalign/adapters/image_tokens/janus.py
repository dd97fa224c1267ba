"""Janus and Janus-Pro: a codebook, embeddings and a head for images beside those for text.

Quirks. `forward` returns logits of text tokens: codes are predicted by the generation head, from
the language model's hidden states. The codebook of the original is normalised to length 1 before
the nearest code is sought; transformers does that when it decodes but not when it encodes
(5.17 to 5.24), so encoding is done here. The unconditional prompt is as long as the prompt, with
everything but its beginning and the opening replaced by padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from mmalign.adapters.image_tokens.family import Family, Grid, fixed_grid


def _grid(lm: Any, processor: Any, asked: tuple[int, int] | None) -> Grid:
    stride = 2 ** (len(lm.config.vq_config.channel_multiplier) - 1)
    return fixed_grid(lm.config.vq_config.num_patches * stride, stride, asked)


def _unconditional(tokenizer: Any, prompt: Sequence[int], opening: Sequence[int]) -> list[int]:
    kept = {tokenizer.bos_token_id, *opening}
    return [token if token in kept else int(tokenizer.pad_token_id) for token in prompt]


def _to_codes(lm: Any, images: Tensor) -> Tensor:
    vq = lm.model.vqmodel
    latents = F.normalize(vq.quant_conv(vq.encoder(images)).permute(0, 2, 3, 1), dim=-1)
    codebook = F.normalize(vq.quantize.embedding.weight, dim=-1)
    return (latents @ codebook.T).argmax(-1)


def _to_pixels(lm: Any, codes: Tensor, prompts: Sequence[str]) -> Tensor:
    images: Tensor = lm.model.vqmodel.decode(codes.flatten(1))
    return images


JANUS = Family(
    language_model="model.language_model",
    frozen=("model.vqmodel", "model.vision_model", "model.aligner"),
    chat=True,
    codes=lambda lm: lm.config.vq_config.num_embeddings,
    grid=_grid,
    opening=lambda processor, grid: processor.image_start_token,
    row_end=lambda lm: None,
    unconditional=_unconditional,
    to_codes=_to_codes,
    to_pixels=_to_pixels,
    embed=lambda lm, codes: lm.prepare_embeddings_for_image_generation(codes),
    logits=lambda lm, hidden: lm.model.generation_head(hidden),
    not_text=lambda lm: None,
)
