"""What is in an image, and in which colour: detectors of transformers, and CLIP for colours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from mmalign.errors import UserError
from mmalign.evaluation.images.geneval import Box, Found, plain
from mmalign.rewards.encoders import Encoder
from mmalign.rewards.loading import device_of

COLOURS = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white",
)  # fmt: skip
TEMPLATES = ("a photo of a {colour} {name}", "a {colour}-colored {name}", "a {colour} object")
GREY = (0x99, 0x99, 0x99)
"""What GenEval puts around an object before its colour is judged."""

SEGMENTING = {"mask2former", "maskformer", "oneformer"}


@dataclass(frozen=True)
class Seen:
    """An object as a detector found it. mask: (h w) of booleans, where the detector gives one."""

    found: Found
    mask: Tensor | None = None


Detector = Callable[[Image.Image, float], list[Seen]]
"""An image and the least score to what is in it."""


def load_detector(model: str, *, device: str | None = None) -> Detector:
    """A detector, or a segmenter of objects, of transformers: hub id or folder.

    Raises UserError for what cannot be loaded, and for a model without names of its classes.
    """
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModelForObjectDetection,
        AutoModelForUniversalSegmentation,
    )

    try:
        kind = AutoConfig.from_pretrained(model).model_type
        cls: Any = (
            AutoModelForUniversalSegmentation if kind in SEGMENTING else AutoModelForObjectDetection
        )
        net = cls.from_pretrained(model).to(device_of(device)).eval()
        processor: Any = AutoImageProcessor.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{model} cannot be loaded as a detector: {error}",
            hint="give a model for object detection (DETR ...) or Mask2Former for instances",
        ) from error
    names = {number: plain(name) for number, name in net.config.id2label.items()}
    if all(name.startswith("label_") for name in names.values()):
        raise UserError(f"{model} does not say what its classes are called (id2label)")
    find = _segmenter if kind in SEGMENTING else _detector

    def detect(image: Image.Image, least: float) -> list[Seen]:
        inputs = processor(images=image, return_tensors="pt").to(net.device)
        with torch.no_grad():
            return find(processor, net(**inputs), image, least, names)

    return detect


def _detector(
    processor: Any, output: Any, image: Image.Image, least: float, names: dict[int, str]
) -> list[Seen]:
    (result,) = processor.post_process_object_detection(
        output, threshold=least, target_sizes=[(image.height, image.width)]
    )
    return [
        Seen(Found(names[int(label)], float(score), _box(box)))
        for score, label, box in zip(
            result["scores"], result["labels"], result["boxes"], strict=True
        )
    ]


def _segmenter(
    processor: Any, output: Any, image: Image.Image, least: float, names: dict[int, str]
) -> list[Seen]:
    (result,) = processor.post_process_instance_segmentation(
        output,
        threshold=least,
        target_sizes=[(image.height, image.width)],
        return_binary_maps=True,
    )
    seen = []
    for info in result["segments_info"]:
        mask = result["segmentation"][info["id"]].bool()
        if mask.any():
            found = Found(names[info["label_id"]], float(info["score"]), _around(mask))
            seen.append(Seen(found, mask))
    return seen


def _box(box: Tensor) -> Box:
    x0, y0, x1, y1 = box.tolist()
    return x0, y0, x1, y1


def _around(mask: Tensor) -> Box:
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    return (
        float(columns[0]),
        float(rows[0]),
        float(columns[-1]) + 1,
        float(rows[-1]) + 1,
    )


def with_colours(image: Image.Image, seen: Sequence[Seen], encoder: Encoder) -> list[Found]:
    """The objects with the likeliest of ten colours each, by CLIP: the object cut out along its
    mask and laid on grey, against three phrases a colour."""
    if not seen:
        return []
    shown = encoder.images([cut_out(image, each) for each in seen]).float()
    found = []
    for each, point in zip(seen, shown, strict=True):
        colours = _colour_points(each.found.name, encoder)
        best = int((colours @ point).argmax())
        found.append(replace(each.found, colour=COLOURS[best]))
    return found


def cut_out(image: Image.Image, seen: Seen) -> Image.Image:
    """The object alone; without a mask, its box."""
    box = tuple(round(edge) for edge in seen.found.box)
    if seen.mask is None:
        return image.crop(box)  # type: ignore[arg-type]  # four integers
    alone = Image.new("RGB", image.size, GREY)
    alone.paste(image, mask=Image.fromarray(seen.mask.cpu().numpy()))
    return alone.crop(box)  # type: ignore[arg-type]  # four integers


def _colour_points(name: str, encoder: Encoder) -> Tensor:
    """(10 d) One point for each colour of such an object."""
    said = [each.format(colour=colour, name=name) for colour in COLOURS for each in TEMPLATES]
    points = encoder.texts(said).float().view(len(COLOURS), len(TEMPLATES), -1)
    return normalize(points.mean(1), dim=-1)
