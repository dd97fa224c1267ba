"""Tiny CLIP models with random weights, in the folders that open_clip and transformers write."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from tiny_models import tokenizer

from mmalign.media import png
from mmalign.records import Media

MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])


def picture(seed: int, width: int = 66, height: int = 44) -> Image.Image:
    """Smooth coloured noise. At this size libraries agree which pixels are the middle ones."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def media(*seeds: int) -> list[Media]:
    return [png(picture(seed)) for seed in seeds]


def save_open_clip(folder: Path, *, image_size: int = 32, patch: int = 16) -> Path:
    config = {
        "model_cfg": {
            "embed_dim": 16,
            "vision_cfg": {
                "image_size": image_size,
                "layers": 2,
                "width": 32,
                "head_width": 16,
                "patch_size": patch,
            },
            "text_cfg": {
                "context_length": 77,
                "vocab_size": 49408,
                "width": 32,
                "heads": 2,
                "layers": 2,
            },
        },
        "preprocess_cfg": {
            "mean": MEAN.tolist(),
            "std": STD.tolist(),
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    net = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.2)
            elif name == "logit_scale":
                weight.fill_(4.0)
    save_file(net.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def save_transformers(folder: Path, *, image_size: int = 32) -> Path:
    torch.manual_seed(0)
    words = tokenizer(None, bos_token="<s>")
    config = transformers.CLIPConfig(
        text_config={
            "vocab_size": 432,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 24,
            "eos_token_id": words.eos_token_id,
            "bos_token_id": words.bos_token_id,
            "pad_token_id": words.pad_token_id,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": image_size,
            "patch_size": 16,
        },
        projection_dim=16,
        logit_scale_init_value=4.0,
    )
    net = transformers.CLIPModel(config)
    with torch.no_grad():
        for weight in net.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.2)
    net.save_pretrained(folder)
    pixels = transformers.CLIPImageProcessor(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )
    transformers.CLIPProcessor(pixels, words).save_pretrained(folder)
    return folder


def cropped(image: Image.Image, size: int) -> torch.Tensor:
    """(1 3 h w) Short side to `size`, bicubic, and the middle of the rest; normalised."""
    scale = size / min(image.size)
    wide, high = (int(scale * side) if side != min(image.size) else size for side in image.size)
    resized = image.resize((wide, high), Image.Resampling.BICUBIC)
    left, top = round((wide - size) / 2), round((high - size) / 2)
    return normalised(resized.crop((left, top, left + size, top + size)))


def padded(image: Image.Image, size: int) -> torch.Tensor:
    """(1 3 h w) Long side to `size`, bicubic, in the middle of a black square; normalised."""
    scale = size / max(image.size)
    resized = image.resize(
        tuple(round(scale * side) for side in image.size), Image.Resampling.BICUBIC
    )
    square = Image.new("RGB", (size, size))
    square.paste(resized, ((size - resized.width) // 2, (size - resized.height) // 2))
    return normalised(square)


def normalised(image: Image.Image) -> torch.Tensor:
    pixels = (np.asarray(image, np.float64) / 255 - MEAN) / STD
    return torch.from_numpy(pixels.transpose(2, 0, 1)[None].astype(np.float32))
