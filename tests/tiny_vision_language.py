"""Tiny random-weight vision-language models, with their families' real processors, as folders.

Images become few tokens, and weights are larger than a trained model's, so that a leak between
responses, or an image in the wrong place, shows in the first digits.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import transformers as t
from PIL import Image
from tiny_vision_families import (
    gemma3,
    idefics3,
    internvl,
    mistral3,
    mllama,
    molmo2,
    paligemma,
    paligemma2,
    pixtral,
    smolvlm,
)
from tiny_vision_parts import AXES, CHAT, TEXT, VISION, Made, words

from mmalign.records import Media


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
            "rope_parameters": dict(AXES),
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
        chat_template=CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>").replace(
            "VIDEO", "<|vision_start|><|video_pad|><|vision_end|>"
        ),
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


def llava_next() -> Made:
    coder = words("<image>")
    pinpoints = [[28, 56], [56, 28], [56, 56]]
    config = t.LlavaNextConfig(
        vision_config=t.CLIPVisionConfig(**VISION),
        text_config=t.LlamaConfig(**TEXT),
        image_token_index=coder.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=pinpoints,
        image_seq_length=4,
    )
    side = {"height": 28, "width": 28}
    pixels = t.LlavaNextImageProcessor(
        size={"shortest_edge": 28}, crop_size=side, image_grid_pinpoints=pinpoints
    )
    processor = t.LlavaNextProcessor(
        pixels,
        coder,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT.replace("IMAGE", "<image>"),
    )
    return t.LlavaNextForConditionalGeneration(config), processor


def llava_onevision() -> Made:
    coder = words("<image>", "<video>")
    image, video = coder.convert_tokens_to_ids(["<image>", "<video>"])
    pinpoints = [[28 * rows, 28 * columns] for rows in range(1, 5) for columns in range(1, 5)]
    config = t.LlavaOnevisionConfig(
        vision_config=t.SiglipVisionConfig(**VISION),
        text_config=t.Qwen2Config(**TEXT),
        image_token_index=image,
        video_token_index=video,
        image_grid_pinpoints=pinpoints,
        vision_aspect_ratio="anyres_max_4",  # fewer than some images' tiles
    )
    side = {"height": 28, "width": 28}
    processor = t.LlavaOnevisionProcessor(
        t.LlavaOnevisionImageProcessor(size=side, image_grid_pinpoints=pinpoints),
        coder,
        t.LlavaOnevisionVideoProcessor(size=side),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_4",
        chat_template=CHAT.replace("IMAGE", "<image>").replace("VIDEO", "<video>"),
    )
    return t.LlavaOnevisionForConditionalGeneration(config), processor


def qwen3_vl() -> Made:
    """Features of a middle layer are added to those of the language model's first layer."""
    model, made = qwen2_5_vl()
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    config = t.Qwen3VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 4,
            "out_hidden_size": 32,
            "patch_size": 14,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
            "initializer_range": 0.2,
        },
        text_config={
            **TEXT,
            "head_dim": 8,
            "rope_parameters": dict(AXES),
        },
        **{name: getattr(model.config, name) for name in names},
    )
    limits = {"shortest_edge": 56 * 56, "longest_edge": 84 * 84}
    processor = t.Qwen3VLProcessor(
        made.image_processor,
        made.tokenizer,
        t.Qwen3VLVideoProcessor(size=limits, patch_size=14),
        chat_template=made.chat_template,
    )
    return t.Qwen3VLForConditionalGeneration(config), processor


FAMILIES: Mapping[str, Callable[[], Made]] = {
    "llava": llava,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "internvl": internvl,
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "paligemma": paligemma,
    "paligemma2": paligemma2,
    "gemma3": gemma3,
    "pixtral": pixtral,
    "mistral3": mistral3,
    "molmo2": molmo2,
    "mllama": mllama,
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


def video(count: int) -> Media:
    """An animated PNG of `count` frames, each of another colour."""
    colours = np.random.default_rng(9).integers(0, 256, (count, 3), dtype=np.uint8)
    frames = [Image.new("RGB", (70, 50), tuple(int(c) for c in colour)) for colour in colours]
    buffer = io.BytesIO()
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:], duration=100)
    return Media("video", data=buffer.getvalue())
