"""Image features: computed once for each image of a batch, and handed to the model's own forward.

What a family does with features (projecting, splitting, adding them to deeper layers) is left to
its own code: `encode_images` calls its `get_image_features`, and inside `given` that method answers
with what was computed. Axes: m tokens of an image, h hidden size.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MllamaModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from mmalign.adapters.autoregressive import backbone_name
from mmalign.adapters.protocol import Inputs

Encoded = dict[str, Tensor]
"""What a tower makes of an image: "pooled", and "deep.0" and so on for further layers of the
language model. A name ends in [] where the model expects a list of the images' tensors, and begins
with "video." where the model takes them for a video."""

Features = dict[int, Encoded]
"""By the numbers of a batch's images."""


def backbone(lm: PreTrainedModel) -> Any:
    """The part that merges images into text."""
    return lm.get_submodule(backbone_name(lm))


def vision_parts(lm: PreTrainedModel) -> nn.ModuleList:
    """What images go through before they meet text."""
    inner, words = backbone(lm), lm.get_input_embeddings()
    parts = [part for part in inner.children() if all(m is not words for m in part.modules())]
    return nn.ModuleList([*parts, nn.ParameterList(inner.parameters(recurse=False))])


def encode_images(lm: PreTrainedModel, images: Inputs) -> Features:
    """One pass of the vision tower for all images that it takes together."""
    inner = backbone(lm)
    found: list[Encoded] = []
    for batch, size in zip(images["batches"], images["sizes"], strict=True):
        out = _seen(inner, batch)
        kind = "video." if "pixel_values_videos" in batch else ""
        layers = {f"{kind}pooled": out.pooler_output}
        for depth, layer in enumerate(getattr(out, "deepstack_features", None) or ()):
            layers[f"{kind}deep.{depth}"] = layer
        apart = dict(_apart(name, layer, size) for name, layer in layers.items())
        found += [{name: parts[i] for name, parts in apart.items()} for i in range(size)]
    return dict(zip(images["numbers"], found, strict=True))


def _seen(inner: Any, batch: dict[str, Tensor]) -> Any:
    """What the tower and what lies behind it make of some images, or videos."""
    if isinstance(inner, MllamaModel):
        out = inner.vision_model(**_accepted(inner.vision_model.forward, batch))
        out.pooler_output = inner.multi_modal_projector(out.last_hidden_state)
        return out
    video = "pixel_values_videos" in batch
    look = inner.get_video_features if video else inner.get_image_features
    return look(**_accepted(look, batch), return_dict=True)


def _accepted(function: Any, arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    known = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in known}


def _apart(name: str, features: Any, size: int) -> tuple[str, list[Tensor]]:
    """The features of each of `size` images, and their name."""
    if isinstance(features, Tensor):
        return name, list(features.chunk(size))
    return f"{name}[]", list(features)


@dataclass
class _Output(BaseModelOutputWithPooling):
    """What `get_image_features` returns, over all families."""

    deepstack_features: Any = None


def crossed(features: Features, order: Sequence[int]) -> dict[str, Tensor]:
    """The argument by which a decoder with cross-attention is given its images."""
    shown = torch.cat([features[number]["pooled"] for number in order])
    return {"cross_attention_states": shown.flatten(0, 2)}  # (images x tiles, patches, h)


@contextmanager
def given(
    lm: PreTrainedModel, features: Features, order: Sequence[int]
) -> Iterator[dict[str, Tensor]]:
    """Inside, a call of the model with these further arguments takes its images from `features`,
    in `order`."""
    inner, shown = backbone(lm), [features[number] for number in order]
    videos = [one for one in shown if any(name.startswith("video.") for name in one)]
    images = [one for one in shown if not any(name.startswith("video.") for name in one)]
    call, some_pixels = {}, torch.zeros(1, device=lm.device)  # make the model ask for features
    if images:
        output = _output(images, "")
        inner.get_image_features = lambda *_, **__: output  # an attribute before the method
        call["pixel_values"] = some_pixels
    if videos:
        output_of_videos = _output(videos, "video.")
        inner.get_video_features = lambda *_, **__: output_of_videos
        call["pixel_values_videos"] = some_pixels
    try:
        yield call
    finally:
        for name in ("get_image_features", "get_video_features"):
            inner.__dict__.pop(name, None)


def _output(shown: Sequence[Encoded], kind: str) -> _Output:
    """As the model's own method returns it."""
    joined: dict[str, Any] = {}
    for name in shown[0]:
        parts = [image[name] for image in shown]
        plain = name.removeprefix(kind).removesuffix("[]")
        if kind and not name.endswith("[]"):  # videos may differ in length
            joined[plain] = torch.cat([part.flatten(0, -2) for part in parts])[None]
        else:
            joined[plain] = parts if name.endswith("[]") else torch.cat(parts)
    pooled = joined.pop("pooled")
    deep = [joined[f"deep.{depth}"] for depth in range(len(joined))]
    return _Output(pooler_output=pooled, deepstack_features=deep or None)
