"""Human Preference Score v2 and v2.1: a CLIP-H tuned on HPD v2. arXiv:2306.09341."""

from __future__ import annotations

from typing import Literal

from mmalign.data.cache import Cache
from mmalign.rewards.encoders import open_clip_encoder
from mmalign.rewards.loading import identity, read_weights, weights_file
from mmalign.rewards.scorer import Scorer

FILES = {"v2": "HPS_v2_compressed.pt", "v2.1": "HPS_v2.1_compressed.pt"}
PREPROCESSING = {
    "image_size": 224,
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "interpolation": "bicubic",
    "resize_mode": "longest",  # the whole image, on black: nothing is cropped
    "fill_color": 0,
}


def hps(
    *,
    version: Literal["v2", "v2.1"] = "v2.1",
    weights: str = "xswu/HPSv2",
    model: str = "ViT-H-14",
    device: str | None = None,
    batch_size: int = 16,
    cache: Cache | None = None,
) -> Scorer:
    """The cosine; v2 is about 0.24 to 0.29, v2.1 about 0.14 to 0.34. Published tables show 100 x.

    weights: Hub id, folder or file. model: architecture of open_clip.
    """
    file = weights_file(weights, FILES[version])
    encoder = open_clip_encoder(
        model, None, weights=read_weights(file), preprocessing=PREPROCESSING, device=device
    )
    return Scorer(f"hps({version}):{identity(str(file))}", encoder.cosines, batch_size, cache)
