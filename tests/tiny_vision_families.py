"""Further tiny vision-language models: families that cut images up, look both ways, or merge."""

from __future__ import annotations

from typing import Any

import torch
import transformers as t
from tiny_vision_parts import CHAT, TEXT, VISION, Made, words


def internvl() -> Made:
    names = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    coder = words(*names.values(), extra_special_tokens=names)
    config = t.InternVLConfig(
        vision_config={**VISION, "image_size": [28, 28], "patch_size": [7, 7]},
        text_config=t.Qwen2Config(**TEXT),
        image_token_id=coder.context_image_token_id,
        image_seq_length=4,
    )
    side = {"height": 28, "width": 28}
    processor = t.InternVLProcessor(
        t.GotOcr2ImageProcessor(size=side, crop_to_patches=True, max_patches=4),
        coder,
        t.InternVLVideoProcessor(size=side),
        image_seq_length=4,
        chat_template=CHAT.replace("IMAGE", "<IMG_CONTEXT>").replace("VIDEO", "<video>"),
    )
    return t.InternVLForConditionalGeneration(config), processor


def idefics3() -> Made:
    coder = words("<image>", "<fake_token_around_image>", "<end_of_utterance>", *TILES)
    config = t.Idefics3Config(
        vision_config={**VISION, "patch_size": 7},
        text_config=t.LlamaConfig(**TEXT),
        image_token_id=coder.convert_tokens_to_ids("<image>"),
    )
    pixels = t.Idefics3ImageProcessor(
        size={"longest_edge": 56}, max_image_size={"longest_edge": 28}
    )
    processor = t.Idefics3Processor(
        pixels, coder, image_seq_len=4, chat_template=CHAT.replace("IMAGE", "<image>")
    )
    return t.Idefics3ForConditionalGeneration(config), processor


def smolvlm() -> Made:
    names = {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
    }
    coder = words(*names.values(), "<end_of_utterance>", *TILES, extra_special_tokens=names)
    config = t.SmolVLMConfig(
        vision_config={**VISION, "patch_size": 7},
        text_config=t.LlamaConfig(**TEXT),
        image_token_id=coder.convert_tokens_to_ids("<image>"),
    )
    sizes = {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 28}}
    processor = t.SmolVLMProcessor(
        t.SmolVLMImageProcessor(**sizes),
        coder,
        t.SmolVLMVideoProcessor(**sizes, num_frames=4, fps=1),
        image_seq_len=4,
        chat_template=CHAT.replace("IMAGE", "<image>").replace("VIDEO", "<video>"),
    )
    return t.SmolVLMForConditionalGeneration(config), processor


TILES = ("<global-img>", *(f"<row_{i}_col_{j}>" for i in (1, 2) for j in (1, 2)))
GEMMA = {
    **{name: value for name, value in TEXT.items() if name != "attention_dropout"},
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "attention_dropout": 0.1,
}


def paligemma(**text: Any) -> Made:
    coder = words("<image>", extra_special_tokens={"image_token": "<image>"})
    config = t.PaliGemmaConfig(
        vision_config={**VISION, "projection_dim": 32},
        text_config=text or {**GEMMA, "model_type": "gemma"},
        image_token_index=coder.convert_tokens_to_ids("<image>"),
        projection_dim=32,
        hidden_size=32,
    )
    pixels = t.SiglipImageProcessor(size={"height": 28, "width": 28})
    pixels.image_seq_length = 4
    processor = t.PaliGemmaProcessor(pixels, coder, chat_template=CHAT.replace("IMAGE", "<image>"))
    return t.PaliGemmaForConditionalGeneration(config), processor


def paligemma2() -> Made:
    """With windows that are shorter than the prefix."""
    return paligemma(**GEMMA, model_type="gemma2", sliding_window=8)


def gemma3() -> Made:
    names = {
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
    }
    coder = words(*names.values(), extra_special_tokens=names)
    config = t.Gemma3Config(
        vision_config=t.SiglipVisionConfig(**VISION),
        text_config={
            **GEMMA,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        mm_tokens_per_image=4,
        boi_token_index=coder.boi_token_id,
        eoi_token_index=coder.eoi_token_id,
        image_token_index=coder.image_token_id,
    )
    processor = t.Gemma3Processor(
        t.Gemma3ImageProcessor(size={"height": 28, "width": 28}),
        coder,
        image_seq_length=4,
        chat_template=CHAT.replace("IMAGE", "<start_of_image>"),
    )
    model = t.Gemma3ForConditionalGeneration(config)
    # Zero in a new model.
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.2)
    return model, processor


def pixtral(merged: int = 1) -> Made:
    """LLaVA with a tower that takes images of any shape."""
    coder = words("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    tower = t.PixtralVisionConfig(**{**VISION, "image_size": 56})
    common = {
        "vision_config": tower,
        "text_config": t.MistralConfig(**TEXT, head_dim=8, sliding_window=None),
        "image_token_index": coder.convert_tokens_to_ids("[IMG]"),
        "vision_feature_layer": -1,
    }
    processor = t.PixtralProcessor(
        t.PixtralImageProcessor(size={"longest_edge": 56}, patch_size=14),
        coder,
        patch_size=14,
        spatial_merge_size=merged,
        chat_template=CHAT.replace("IMAGE", "[IMG]"),
    )
    if merged > 1:
        config = t.Mistral3Config(**common, spatial_merge_size=merged)
        return t.Mistral3ForConditionalGeneration(config), processor
    config = t.LlavaConfig(**common, vision_feature_select_strategy="full")
    return t.LlavaForConditionalGeneration(config), processor


def mistral3() -> Made:
    return pixtral(merged=2)


def mllama() -> Made:
    """The decoder looks at images through cross-attention."""
    coder = words("<|image|>", extra_special_tokens={"image_token": "<|image|>"})
    image = coder.convert_tokens_to_ids("<|image|>")
    config = t.MllamaConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 4,
            "vision_output_dim": 64,
            "image_size": 28,
            "patch_size": 14,
            "intermediate_layers_indices": [1],
            "initializer_range": 0.2,
        },
        text_config={
            **{name: value for name, value in TEXT.items() if name != "attention_dropout"},
            "vocab_size": image,  # the placeholder lies beyond what the head predicts
            "num_hidden_layers": 3,
            "cross_attention_layers": [1],
            "dropout": 0.1,
        },
        image_token_index=image,
    )
    processor = t.MllamaProcessor(
        t.MllamaImageProcessor(size={"height": 28, "width": 28}, max_image_tiles=4),
        coder,
        chat_template=CHAT.replace("IMAGE", "<|image|>"),
    )
    model = t.MllamaForConditionalGeneration(config)
    for name, gate in model.named_parameters():
        if "gate" in name and gate.numel() == 1:
            torch.nn.init.constant_(gate, 0.7)  # zero in a new model
    return model, processor


def molmo2() -> Made:
    names = (
        "<|image|>",
        "<|video|>",
        "<im_patch>",
        "<im_col>",
        "<im_start>",
        "<low_res_im_start>",
        "<frame_start>",
        "<im_end>",
        "<frame_end>",
        "<im_low>",
    )
    coder = words(
        *names, extra_special_tokens={"image_token": "<|image|>", "video_token": "<|video|>"}
    )
    ids = dict(zip(names, coder.convert_tokens_to_ids(list(names)), strict=True))
    tower = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "initializer_range": 0.2,
    }
    text = {name: value for name, value in TEXT.items() if name != "vocab_size"}
    config = t.Molmo2Config(
        vision_config={
            **tower,
            "image_size": [28, 28],
            "patch_size": 7,
            "num_position_embeddings": 16,
        },
        adapter_config={
            **{name: value for name, value in tower.items() if name != "num_hidden_layers"},
            "text_hidden_size": 32,
            "vision_feature_layer": [-1],
        },
        text_config={**text, "vocab_size": 400, "additional_vocab_size": 32, "head_dim": 8},
        image_start_token_id=ids["<im_start>"],
        low_res_image_start_token_id=ids["<low_res_im_start>"],
        image_end_token_id=ids["<im_end>"],
        image_patch_id=ids["<im_patch>"],
        frame_start_token_id=ids["<frame_start>"],
        frame_end_token_id=ids["<frame_end>"],
    )
    side = {"height": 28, "width": 28}
    options = {"size": side, "patch_size": 7, "pooling_size": [2, 2]}
    processor = t.Molmo2Processor(
        t.Molmo2ImageProcessor(**options, max_crops=4, overlap_margins=[1, 1]),
        t.Molmo2VideoProcessor(**options),
        coder,
        chat_template=CHAT.replace("IMAGE", "<|image|>"),
    )
    return t.Molmo2ForConditionalGeneration(config), processor
