"""Adapters by modality. Each one's libraries are imported when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # torch
    from mmalign.adapters.protocol import Adapter

Modality = Literal["text", "vlm", "image", "video", "image-tokens"]
"""What a model makes: text, text about images (vlm), images or videos by denoising, or images token
by token."""

LOADERS: dict[Modality, str] = {
    "text": "mmalign.adapters.text:load_text",
    "vlm": "mmalign.adapters.vision_language:load_vision_language",
    "image": "mmalign.adapters.diffusion:load_diffusion",
    "video": "mmalign.adapters.diffusion:load_diffusion",
    "image-tokens": "mmalign.adapters.image_tokens:load_image_tokens",
}


def load_adapter(
    modality: Modality,
    model: str,
    *,
    adapter: str | None = None,
    precision: str = "float32",
    **options: Any,
) -> Adapter:
    """A model to be sampled from or to score with, not to be trained.

    adapter: folder of a LoRA on it. options: further ones of the modality's own loader.
    """
    module, name = LOADERS[modality].split(":")
    load: Callable[..., Adapter] = getattr(import_module(module), name)
    if adapter is None and precision != "float32":
        options["lora"] = {"r": 1}  # holds the weights in that precision; at first it adds nothing
    return load(model, adapter=adapter, precision=precision, **options)
