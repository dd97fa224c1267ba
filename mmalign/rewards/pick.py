"""PickScore: a CLIP-H tuned on the choices of Pick-a-Pic's users. arXiv:2305.01569."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from mmalign.data.cache import Cache
from mmalign.rewards.encoders import transformers_encoder
from mmalign.rewards.scorer import Scorer


def pick(
    *,
    model: str = "yuvalkirstain/PickScore_v1",
    processor: str | None = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    device: str | None = None,
    batch_size: int = 16,
    cache: Cache | None = None,
) -> Scorer:
    """The cosine times the exponential of the logit scale; about 18 to 24.

    The softmax over the scores of images for one prompt is the probability that each is chosen.
    processor: None takes the one that lies with the model.
    """
    encoder = transformers_encoder(model, processor, device=device)

    def score(images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        return encoder.scale * encoder.cosines(images, texts)

    return Scorer(f"pick:{encoder.name}", score, batch_size, cache)
