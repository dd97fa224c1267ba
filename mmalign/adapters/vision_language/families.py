"""The families of vision-language models: what differs between them beyond their own processors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmalign.adapters.vision_language import layouts
from mmalign.adapters.vision_language.layouts import Layout


@dataclass(frozen=True)
class TokenTypes:
    """An argument of the model with one number for each token, and what attention makes of it.

    name: the argument's. answer: the number of a response's tokens. blocks: from the numbers (s) of
    a prompt to those of its blocks (s): tokens of one block see each other whatever their order,
    -1 stands for no block. beyond_window: whether also where a sliding window would hide them.
    """

    name: str
    answer: int
    blocks: Callable[[Tensor], Tensor]
    beyond_window: bool


@dataclass(frozen=True)
class Family:
    """layout: which part of an image each of its tokens stands for. types: see `TokenTypes`; None
    where every token sees what stands before it. together: which images the tower takes in one
    call. crowd: whether an image among several is cut up otherwise than one alone. crops: whether a
    processor whose settings say that it crops at the centre does so. cross_attention: whether the
    decoder looks at images there instead of reading them as tokens. video: what becomes of one:
    images; tokens of its own, with times in their positions if there are any; or with times written
    between them; or frames as images, with captions."""

    layout: Layout | None = None
    types: TokenTypes | None = None
    together: Literal["all", "equal", "one"] = "equal"
    crowd: bool = False
    crops: bool = True
    cross_attention: bool = False
    video: Literal["images", "timed", "captioned", "frames"] = "images"


def _runs(types: Tensor) -> Tensor:
    """Each run of ones is a block of its own."""
    image = types == 1
    begins = image & ~image.roll(1).index_fill(0, torch.tensor([0]), False)
    return torch.where(image, begins.cumsum(0), -1)


def _prefix(types: Tensor) -> Tensor:
    """All zeros are one block."""
    return torch.where(types == 0, 0, -1)


def _ones(types: Tensor) -> Tensor:
    """All ones are one block."""
    return torch.where(types == 1, 0, -1)


FAMILIES: dict[str, Family] = {
    "Gemma3Processor": Family(
        layouts.gemma3, TokenTypes("token_type_ids", 0, _runs, beyond_window=False)
    ),
    "Idefics3Processor": Family(layouts.idefics3),
    "InternVLProcessor": Family(layouts.internvl, video="frames"),
    "LlavaNextProcessor": Family(layouts.llava_next, crops=False),
    "LlavaOnevisionProcessor": Family(
        layouts.llava_onevision, crowd=True, crops=False, video="timed"
    ),
    "LlavaProcessor": Family(layouts.llava),
    "MllamaProcessor": Family(layouts.mllama, cross_attention=True),
    "Molmo2Processor": Family(
        layouts.molmo2,
        TokenTypes("mm_token_type_ids", 0, _ones, beyond_window=True),
        together="one",
    ),
    "PaliGemmaProcessor": Family(
        layouts.paligemma, TokenTypes("token_type_ids", 1, _prefix, beyond_window=True)
    ),
    "PixtralProcessor": Family(layouts.pixtral),
    "Qwen2VLProcessor": Family(layouts.qwen, together="all", video="timed"),
    "Qwen2_5_VLProcessor": Family(layouts.qwen, together="all", video="timed"),
    "Qwen3VLProcessor": Family(layouts.qwen, together="all", video="captioned"),
    "SmolVLMProcessor": Family(layouts.idefics3, video="frames"),
}
"""By processor, in which models of one kind agree: Pixtral's is that of Mistral 3, too."""

NOT_HERE: dict[str, str] = {
    "phi4_multimodal": "its published weights see images only with a LoRA of their own, and its "
    "images are merged inside the embedding, where their features cannot be shared",
}
"""By model type, why a kind of models that transformers has is not among the families."""
