"""Pictures that remember the codes they were drawn from, and pixels as an image tokenizer has them.

Decoding codes and encoding the picture again does not give the same codes, and a log-probability of
other codes than the drawn ones is another number. So a drawn picture carries its codes in a text
chunk of its PNG, beside the digest of the tokenizer that they belong to. Axes: n images.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from mmalign.media import open_image
from mmalign.records import Media

CHUNK = "mmalign image codes"


@dataclass(frozen=True)
class Pixels:
    """How a processor turns bytes 0 to 255 into what the image tokenizer reads, and back:
    (bytes x scale - mean) / std."""

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, image_processor: Any) -> Pixels:
        """As the image processor says; values without a word about them are 0 and 1."""
        scale = image_processor.rescale_factor if image_processor.do_rescale else 1.0
        if not image_processor.do_normalize:
            return cls(float(scale), (0.0,) * 3, (1.0,) * 3)
        mean, std = (
            tuple(np.broadcast_to(np.asarray(values, dtype=float), 3).tolist())
            for values in (image_processor.image_mean, image_processor.image_std)
        )
        return cls(float(scale), mean, std)

    def normalised(self, images: Tensor) -> Tensor:
        """(n 3 height width) float32 from bytes."""
        mean, std = (torch.tensor(v, device=images.device)[:, None, None] for v in self._both)
        return (images.float() * self.scale - mean) / std

    def bytes(self, images: Tensor) -> Tensor:
        """(n 3 height width) uint8 from what a decoder gives."""
        mean, std = (torch.tensor(v, device=images.device)[:, None, None] for v in self._both)
        return ((images.float() * std + mean) / self.scale).round().clamp(0, 255).byte()

    @property
    def _both(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.mean, self.std


def picture(pixels: Tensor, codes: Sequence[Sequence[int]], codec: str) -> Media:
    """A PNG of pixels (3 height width) uint8 drawn from codes, row by row."""
    packed = base64.b64encode(np.array(list(chain(*codes)), dtype="<u4").tobytes()).decode()
    info = PngInfo()
    widths = list(map(len, codes))
    info.add_text(CHUNK, json.dumps({"codec": codec, "widths": widths, "codes": packed}))
    buffer = io.BytesIO()
    image = Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())
    image.save(buffer, "PNG", pnginfo=info, compress_level=1)
    return Media("image", data=buffer.getvalue())


def codes_in(media: Media, codec: str) -> list[list[int]] | None:
    """The codes, row by row, that a picture was drawn from by this tokenizer, if it remembers."""
    try:
        with Image.open(io.BytesIO(media.content)) as image:
            written = image.info.get(CHUNK)
    except OSError:  # missing, or no image: reading its pixels says so in better words
        return None
    if not isinstance(written, str):
        return None
    found = json.loads(written)
    if found["codec"] != codec:
        return None
    codes = np.frombuffer(base64.b64decode(found["codes"]), dtype="<u4")
    return [row.tolist() for row in np.split(codes, np.cumsum(found["widths"])[:-1])]


def fitted(media: Media, height: int, width: int) -> Tensor:
    """(3 height width) uint8: scaled to cover that size, cropped at the centre.

    Raises BadSample for what cannot be decoded.
    """
    image = open_image(media)
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
