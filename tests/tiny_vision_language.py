"""Tiny random-weight vision-language models, with their families' real processors, as folders.

Images become few tokens, and weights are larger than a trained model's, so that a leak between
responses, or an image in the wrong place, shows in the first digits.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as t
from PIL import Image
from tiny_models import tokenizer

from mmalign.records import Media

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}"
    "{% if c.type == 'image' %}IMAGE{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

TEXT = {
    "vocab_size": 432,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "initializer_range": 0.2,
    "attention_dropout": 0.1,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
    "initializer_range": 0.2,
}
Made = tuple[Any, Any]
"""A model and its processor."""


def words(*special: str) -> Any:
    found = tokenizer(None, bos_token="<s>")
    found.add_special_tokens(
        {"additional_special_tokens": ["<|im_start|>", "<|im_end|>", *special]}
    )
    return found


def llava() -> Made:
    coder = words("<image>")
    image = coder.convert_tokens_to_ids("<image>")
    config = t.LlavaConfig(
        vision_config=t.CLIPVisionConfig(**VISION),
        text_config=t.LlamaConfig(**TEXT),
        image_token_index=image,
        image_seq_length=4,
    )
    pixels = t.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor = t.LlavaProcessor(
        pixels,
        coder,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT.replace("IMAGE", "<image>"),
    )
    return t.LlavaForConditionalGeneration(config), processor


def qwen2_5_vl() -> Made:
    names = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    coder = words(*names)
    start, end, image, video = coder.convert_tokens_to_ids(list(names))
    config = t.Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 4,
            "out_hidden_size": 32,
            "window_size": 56,
            "fullatt_block_indexes": [1],
            "initializer_range": 0.2,
        },
        text_config={
            **TEXT,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [2, 1, 1],
            },
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    limits = {"shortest_edge": 56 * 56, "longest_edge": 84 * 84}
    processor = t.Qwen2_5_VLProcessor(
        t.Qwen2VLImageProcessor(size=limits),
        coder,
        t.Qwen2VLVideoProcessor(size=limits),
        chat_template=CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    )
    return t.Qwen2_5_VLForConditionalGeneration(config), processor


def qwen2_vl() -> Made:
    """As its successor, but for the tower."""
    model, made = qwen2_5_vl()
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    tower = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4}
    config = t.Qwen2VLConfig(
        vision_config={**tower, "initializer_range": 0.2},
        text_config=model.config.text_config.to_dict() | {"model_type": "qwen2_vl_text"},
        **{name: getattr(model.config, name) for name in names},
    )
    processor = t.Qwen2VLProcessor(
        made.image_processor,
        made.tokenizer,
        made.video_processor,
        chat_template=made.chat_template,
    )
    return t.Qwen2VLForConditionalGeneration(config), processor


FAMILIES: Mapping[str, Callable[[], Made]] = {
    "llava": llava,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
}


def save_family(folder: Path, family: str) -> Path:
    """A model folder as `from_pretrained` reads it. The same weights every time."""
    torch.manual_seed(0)
    model, processor = FAMILIES[family]()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def picture(seed: int, width: int = 80, height: int = 60) -> Media:
    """Coarse coloured noise as PNG."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((width, height), Image.Resampling.NEAREST).save(buffer, "PNG")
    return Media("image", data=buffer.getvalue())
