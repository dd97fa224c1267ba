"""From encoded images and videos to pixels of one size, and back.

Pixels are (frames, 3, height, width), uint8; an image has one frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mmalign.media import FrameChoice, animation, frames, png
from mmalign.records import Media


@dataclass(frozen=True)
class Bucket:
    """The one size to which media are brought, in pixels and frames."""

    height: int
    width: int
    frames: int = 1

    def __str__(self) -> str:
        return f"{self.height}x{self.width}x{self.frames}"


def pixels(media: Media, bucket: Bucket, *, choice: FrameChoice = "consecutive") -> Tensor:
    """(frames, 3, height, width) uint8: scaled to cover the bucket, cropped at the centre.

    Raises BadSample for what cannot be decoded completely, and for a video with too few frames.
    """
    found = frames(media, bucket.frames, choice=choice)
    fitted = [np.asarray(_fitted(frame, bucket)) for frame in found]
    return torch.from_numpy(np.stack(fitted)).permute(0, 3, 1, 2).contiguous()


def encoded(shown: Tensor, *, fps: float = 8.0) -> Media:
    """Pixels as lossless media: PNG for one frame, animated WebP for several."""
    pictures = [Image.fromarray(f) for f in shown.permute(0, 2, 3, 1).cpu().numpy()]
    if len(pictures) == 1:
        return png(pictures[0])
    return animation(pictures, fps=fps)


def _fitted(image: Image.Image, bucket: Bucket) -> Image.Image:
    size = (bucket.width, bucket.height)
    return image if image.size == size else ImageOps.fit(image, size, Image.Resampling.LANCZOS)
