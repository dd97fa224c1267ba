"""How much the images of one prompt differ: what collapses first when a model is overtrained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from mmalign.evaluation.images.drawing import Drawn
from mmalign.evaluation.images.prompts import ImagePrompt
from mmalign.evaluation.intervals import Estimate, mean
from mmalign.media import open_image
from mmalign.rewards.encoders import Encoder


def diversity(prompts: Sequence[ImagePrompt], drawn: Drawn, encoder: Encoder) -> Estimate:
    """The mean of 1 - cosine over pairs of images of one prompt, then over prompts; 0 where all
    images of a prompt are the same. Needs two images of each prompt or more."""
    return mean([_spread([open_image(image) for image in drawn[p.id]], encoder) for p in prompts])


def _spread(images: Sequence[Image.Image], encoder: Encoder) -> float:
    with torch.no_grad():
        points = encoder.images(images).double()
    count = len(points)
    cosines = (points @ points.T).sum() - points.square().sum()
    return float(1 - cosines / (count * (count - 1)))
