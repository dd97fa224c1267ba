"""Tiny random vision-language models of many families, each with one call: padding, image, text.

No processor: ids, pixels and grids are written down as the family's processor would return them.
Weights are larger than a trained model's, so that attention is far from uniform.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

IMAGE = 90  # the id of the image token
_TEXT = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 2,
}
_CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 12,
    "patch_size": 4,
}
_SIGLIP = {**_CLIP, "model_type": "siglip_vision_model"}
_MROPE = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
_IDS = {"image_token_id": IMAGE, "image_token_index": IMAGE}


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
    crossing: bool = False


def _row(tokens: int, *, before: int = 3, answer: int = 5, start: int | None = None) -> Tensor:
    lead = [1, *range(10, 10 + before - 1)] + ([start] if start is not None else [])
    return torch.tensor([*lead, *[IMAGE] * tokens, *range(20, 24), *range(30, 30 + answer)])


def _batch(ids: Tensor, padded: int = 2) -> dict[str, Tensor]:
    """Two rows, the second with other words and shorter: padded on the left."""
    second = torch.cat([torch.full((padded,), 2), ids[:1], ids[padded + 1 :].clone()])
    second[-6:] += 7
    mask = torch.ones(2, len(ids), dtype=torch.long)
    mask[1, :padded] = 0
    return {"input_ids": torch.stack([ids, second]), "attention_mask": mask}


def _made(kind: str, config: Mapping[str, Any]) -> Any:
    torch.manual_seed(0)
    made = AutoConfig.for_model(kind, **config)
    model = AutoModelForImageTextToText.from_config(made).eval()
    for parameter in model.parameters():  # some families begin with zeros or with ones everywhere
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def _call(model: Any, ids: Tensor, inputs: dict[str, Tensor]) -> Call:
    batch = _batch(ids)
    image = (batch["input_ids"] == IMAGE).all(0).nonzero()[:, 0]
    answer = torch.arange(len(ids) - 5, len(ids))
    return Call(model, {**batch, **inputs}, image, answer)


def llava() -> Call:
    model = _made(
        "llava", {"text_config": {"model_type": "llama", **_TEXT}, "vision_config": _CLIP, **_IDS}
    )
    return _call(model, _row(9), {"pixel_values": torch.randn(2, 3, 12, 12)})


def llava_next() -> Call:
    config = {
        "text_config": {"model_type": "mistral", **_TEXT},
        "vision_config": _CLIP,
        "image_grid_pinpoints": [[12, 24]],
        **_IDS,
    }
    # A global view of 9 tokens, and 3 rows of 6 with a separator each.
    return _call(
        _made("llava_next", config),
        _row(9 + 3 * 7),
        {
            "pixel_values": torch.randn(2, 3, 3, 12, 12),
            "image_sizes": torch.tensor([[12, 24], [12, 24]]),
        },
    )


def llava_onevision() -> Call:
    config = {
        "text_config": {"model_type": "qwen2", **_TEXT},
        "vision_config": _SIGLIP,
        "image_grid_pinpoints": [[12, 24]],
        **_IDS,
    }
    return _call(
        _made("llava_onevision", config),
        _row(9 + 3 * 7),
        {
            "pixel_values": torch.randn(2, 3, 3, 12, 12),
            "image_sizes": torch.tensor([[12, 24], [12, 24]]),
        },
    )


def _qwen(kind: str, vision: Mapping[str, Any]) -> Call:
    config = {
        "text_config": {**_TEXT, "rope_parameters": _MROPE},
        "vision_config": {"depth": 1, "num_heads": 2, "patch_size": 4, **vision},
        "vision_start_token_id": 91,
        "vision_end_token_id": 92,
        "video_token_id": 93,
        **_IDS,
    }
    ids = _row(9, start=91)
    kinds = (_batch(ids)["input_ids"] == IMAGE).long()
    grid = torch.tensor([[1, 6, 6], [1, 6, 6]])
    pixels = torch.randn(2 * 36, 3 * 2 * 4 * 4)
    inputs = {"pixel_values": pixels, "image_grid_thw": grid, "mm_token_type_ids": kinds}
    return _call(_made(kind, config), ids, inputs)


def qwen2_vl() -> Call:
    return _qwen("qwen2_vl", {"embed_dim": 16, "hidden_size": 32})


def qwen2_5_vl() -> Call:
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "out_hidden_size": 32,
        "window_size": 16,
        "fullatt_block_indexes": [0],
    }
    return _qwen("qwen2_5_vl", vision)


def qwen3_vl() -> Call:
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "out_hidden_size": 32,
        "num_position_embeddings": 36,
        "deepstack_visual_indexes": [0],
    }
    return _qwen("qwen3_vl", vision)


def internvl() -> Call:
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": [16, 16],
        "patch_size": [4, 4],
    }
    config = {"text_config": {"model_type": "qwen2", **_TEXT}, "vision_config": vision, **_IDS}
    # Two tiles of an image in each row, 4 tokens each.
    return _call(_made("internvl", config), _row(8), {"pixel_values": torch.randn(4, 3, 16, 16)})


def idefics3() -> Call:
    vision = {key: value for key, value in _CLIP.items() if key != "model_type"}
    config = {
        "text_config": {"model_type": "llama", **_TEXT},
        "vision_config": {**vision, "image_size": 16},
        "scale_factor": 2,
        **_IDS,
    }
    return _call(_made("idefics3", config), _row(8), {"pixel_values": torch.randn(2, 2, 3, 16, 16)})


def smolvlm() -> Call:
    vision = {key: value for key, value in _CLIP.items() if key != "model_type"}
    config = {
        "text_config": {"model_type": "llama", **_TEXT},
        "vision_config": {**vision, "image_size": 16},
        "scale_factor": 2,
        **_IDS,
    }
    return _call(_made("smolvlm", config), _row(8), {"pixel_values": torch.randn(2, 2, 3, 16, 16)})


def paligemma() -> Call:
    config = {
        "text_config": {"model_type": "gemma2", **_TEXT, "query_pre_attn_scalar": 8},
        "vision_config": {**_SIGLIP, "projection_dim": 32, "vision_use_head": False},
        "projection_dim": 32,
        "hidden_size": 32,
        **_IDS,
    }
    call = _call(_made("paligemma", config), _row(9), {"pixel_values": torch.randn(2, 3, 12, 12)})
    # The prompt, image included, is read in both directions.
    kinds = (torch.arange(call.inputs["input_ids"].shape[1]) >= call.answer[0]).long()
    return Call(
        call.model, {**call.inputs, "token_type_ids": kinds.repeat(2, 1)}, call.image, call.answer
    )


def gemma3() -> Call:
    text = {
        **_TEXT,
        "query_pre_attn_scalar": 8,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    }
    config = {
        "text_config": text,
        "vision_config": {**_SIGLIP, "image_size": 16, "vision_use_head": False},
        "mm_tokens_per_image": 4,
        **_IDS,
    }
    call = _call(_made("gemma3", config), _row(4), {"pixel_values": torch.randn(2, 3, 16, 16)})
    kinds = (call.inputs["input_ids"] == IMAGE).long()
    return Call(call.model, {**call.inputs, "token_type_ids": kinds}, call.image, call.answer)


def mistral3() -> Call:
    vision = {
        "model_type": "pixtral",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 8,
        "image_size": 16,
        "patch_size": 4,
    }
    config = {
        "text_config": {"model_type": "mistral", **_TEXT},
        "vision_config": vision,
        "spatial_merge_size": 2,
        **_IDS,
    }
    sizes = torch.tensor([[16, 16], [16, 16]])
    return _call(
        _made("mistral3", config),
        _row(4),
        {"pixel_values": torch.randn(2, 3, 16, 16), "image_sizes": sizes},
    )


def pixtral() -> Call:
    vision = {
        "model_type": "pixtral",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 8,
        "image_size": 16,
        "patch_size": 4,
    }
    config = {
        "text_config": {"model_type": "mistral", **_TEXT},
        "vision_config": vision,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        **_IDS,
    }
    sizes = torch.tensor([[16, 16], [16, 16]])
    return _call(
        _made("llava", config),
        _row(16),
        {"pixel_values": torch.randn(2, 3, 16, 16), "image_sizes": sizes},
    )


def mllama() -> Call:
    """Two tiles at most, 9 patches and a class token each; the second row's image has one tile."""
    text = {key: value for key, value in _TEXT.items() if key != "head_dim"}
    config = {
        "text_config": {**text, "cross_attention_layers": [1]},
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "image_size": 12,
            "patch_size": 4,
            "max_num_tiles": 2,
            "supported_aspect_ratios": [[1, 1], [1, 2]],
            "intermediate_layers_indices": [0],
            "vision_output_dim": 32,
        },
        **_IDS,
    }
    model = _made("mllama", config)
    for layer in model.modules():  # the gates are closed at first
        for name, parameter in layer.named_parameters(recurse=False):
            if "gate" in name:
                torch.nn.init.constant_(parameter, 1.0)
    ids = _row(1)
    batch = _batch(ids)
    seen = torch.zeros(2, len(ids), 1, 2, dtype=torch.long)
    seen[0, 3:, 0, :] = 1
    seen[1, 3:, 0, :1] = 1
    inputs = {
        "pixel_values": torch.randn(2, 1, 2, 3, 12, 12),
        "aspect_ratio_ids": torch.tensor([[2], [1]]),
        "aspect_ratio_mask": torch.tensor([[[1, 1]], [[1, 0]]]),
        "cross_attention_mask": seen,
    }
    return Call(
        model, {**batch, **inputs}, torch.arange(10), torch.arange(len(ids) - 5, len(ids)), True
    )


FAMILIES: Mapping[str, Callable[[], Call]] = {
    "llava": llava,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "internvl": internvl,
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "paligemma": paligemma,
    "gemma3": gemma3,
    "mistral3": mistral3,
    "pixtral": pixtral,
    "mllama": mllama,
}
