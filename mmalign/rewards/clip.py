"""CLIPScore: how near an image and a text are for a CLIP model. arXiv:2104.08718."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from mmalign.data.cache import Cache
from mmalign.rewards.encoders import load_encoder
from mmalign.rewards.scorer import Scorer


def clip(
    *,
    model: str = "ViT-L-14",
    pretrained: str | None = "openai",
    rescaled: bool = False,
    device: str | None = None,
    batch_size: int = 16,
    cache: Cache | None = None,
) -> Scorer:
    """The cosine; or rescaled, as published, 2.5 max(cosine, 0).

    model, pretrained: see `load_encoder`; pretrained=None for models that come as one.
    """
    encoder = load_encoder(model, pretrained, device=device)

    def score(images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        cosines = encoder.cosines(images, texts)
        return 2.5 * cosines.clamp(min=0) if rescaled else cosines

    name = f"clip(rescaled={rescaled}):{encoder.name}"
    return Scorer(name, score, batch_size, cache)
