"""One call of every tiny vision-language model: two rows with an image each, one of them padded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tiny_vision_language import FAMILIES, picture
from torch import Tensor

from mmalign.media import open_image

SAYS = (
    ("Name three colours.", " the quick brown fox jumps over the lazy dog"),
    ("Name", " the lazy brown dog jumps over the quick fox"),
)
"""What stands before and behind the image. The second row is shorter, and padded on the left."""


@dataclass(frozen=True)
class Call:
    """A model and one call: inputs (2 s), image columns of each row, columns of the answer.

    columns: how many there are: tokens, or vision tokens where the model looks at images by
    cross-attention; `crossing` says which.
    """

    model: Any
    inputs: dict[str, Tensor]
    image: Tensor  # (m,) the same in both rows
    answer: Tensor  # (r,)
    columns: int
    crossing: bool = False


def call_of(family: str) -> Call:
    torch.manual_seed(0)
    model, processor = FAMILIES[family]()
    texts = [_asked(processor, *parts) for parts in SAYS]
    inputs = dict(
        processor(
            text=texts, images=[[open_image(picture(seed))] for seed in (0, 1)], padding=True,
            padding_side="left", return_tensors="pt",
        )
    )  # fmt: skip
    length = inputs["input_ids"].shape[1]
    answer = torch.arange(length - 5, length)
    if family == "mllama":
        tiles = inputs["aspect_ratio_mask"].shape[-1]
        patches = (model.config.vision_config.image_size // 14) ** 2 + 1
        image = torch.arange(patches)  # the first tile
        return Call(model.eval(), inputs, image, answer, tiles * patches, crossing=True)
    if family.startswith("paligemma"):  # the prompt, image included, is read in both directions
        del inputs["labels"]
        inputs["token_type_ids"] = (torch.arange(length) >= answer[0]).long().repeat(2, 1)
    token = "image_patch_id" if family == "molmo2" else "image_token_id"
    image = (inputs["input_ids"] == getattr(model.config, token)).all(0).nonzero()[:, 0]
    return Call(model.eval(), inputs, image, answer, length)


def _asked(processor: Any, before: str, behind: str) -> str:
    words = [{"type": "text", "text": text} for text in (before, behind)]
    message = {"role": "user", "content": [words[0], {"type": "image"}, words[1]]}
    asked: str = processor.apply_chat_template([message])
    return asked
