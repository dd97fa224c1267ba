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
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from mmalign.adapters.autoregressive import backbone_name
from mmalign.adapters.protocol import Inputs

Features = dict[str, Any]
"""images: for each image its tensors by name; listed, listed_deep: whether the model expects them,
and those for its deeper layers, in a list."""


def backbone(lm: PreTrainedModel) -> Any:
    """The part that merges images into text."""
    return lm.get_submodule(backbone_name(lm))


def encode_images(lm: PreTrainedModel, images: Inputs) -> Features:
    """One pass of the vision tower for each batch of images of one shape."""
    inner = backbone(lm)
    accepted = inspect.signature(inner.get_image_features).parameters
    found: list[dict[str, Tensor]] = []
    listed = listed_deep = False
    for batch, size in zip(images["batches"], images["sizes"], strict=True):
        arguments = {name: value for name, value in batch.items() if name in accepted}
        out = inner.get_image_features(**arguments, return_dict=True)
        listed = not isinstance(out.pooler_output, Tensor)
        layers = {"pooled": _apart(out.pooler_output, size)}
        for depth, layer in enumerate(getattr(out, "deepstack_features", None) or ()):
            layers[f"deep.{depth}"] = _apart(layer, size)
            listed_deep = not isinstance(layer, Tensor)
        found += [{name: parts[i] for name, parts in layers.items()} for i in range(size)]
    by_number = dict(zip(images["numbers"], found, strict=True))
    in_order = [by_number[number] for number in sorted(by_number)]
    return {"images": in_order, "listed": listed, "listed_deep": listed_deep}


def _apart(features: Any, size: int) -> list[Tensor]:
    """The features of each of `size` images of one shape."""
    return list(features.chunk(size)) if isinstance(features, Tensor) else list(features)


def _together(parts: list[Tensor], listed: bool) -> Any:
    return parts if listed else torch.cat(parts)


@dataclass
class _Output(BaseModelOutputWithPooling):
    """What `get_image_features` returns, over all families."""

    deepstack_features: Any = None


@contextmanager
def given(lm: PreTrainedModel, features: Features, order: Sequence[int]) -> Iterator[None]:
    """Inside, the model takes its images from `features`, in `order`."""
    shown = [features["images"][number] for number in order]
    depths = sorted(name for name in shown[0] if name.startswith("deep."))
    deep = [_together([i[name] for i in shown], features["listed_deep"]) for name in depths]
    output = _Output(
        pooler_output=_together([image["pooled"] for image in shown], features["listed"]),
        deepstack_features=deep or None,
    )
    inner = backbone(lm)
    inner.get_image_features = lambda *args, **kwargs: output  # an attribute before the method
    try:
        yield
    finally:
        del inner.get_image_features
