"""LAION's aesthetic predictor v2: a linear head on CLIP ViT-L/14, 1 to 10, blind to the prompt."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from torch import Tensor, nn

from mmalign.data.cache import Cache
from mmalign.rewards.encoders import transformers_encoder
from mmalign.rewards.loading import device_of, fill, identity, read_weights, weights_file
from mmalign.rewards.scorer import Scorer

FILE = "aesthetic-model.pth"


def aesthetic(
    *,
    weights: str = "trl-lib/ddpo-aesthetic-predictor",
    model: str = "openai/clip-vit-large-patch14",
    device: str | None = None,
    batch_size: int = 16,
    cache: Cache | None = None,
) -> Scorer:
    """The predicted mean rating of an image; typical are 4.5 to 6.5.

    weights: Hub id, folder or file of the head (the file that its author published is called
        sac+logos+ava1-l14-linearMSE.pth). model: the CLIP that it is a head of.
    """
    file = weights_file(weights, FILE)
    encoder = transformers_encoder(model, device=device)
    tensors = read_weights(file)
    head = linear_stack(
        tensors["layers.0.weight"].shape[1] if "layers.0.weight" in tensors else 768
    )
    fill(head, {name.removeprefix("layers."): value for name, value in tensors.items()}, str(file))
    head.to(device_of(device)).eval().requires_grad_(False)

    def score(images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        ratings: Tensor = head(encoder.images(images).float())
        return ratings[:, 0]

    name = f"aesthetic:{identity(str(file))}:{encoder.name}"
    return Scorer(name, score, batch_size, cache)


def linear_stack(width: int) -> nn.Sequential:
    """Five linear layers without activations between them, and dropout in training."""
    return nn.Sequential(
        nn.Linear(width, 1024),
        nn.Dropout(0.2),
        nn.Linear(1024, 128),
        nn.Dropout(0.2),
        nn.Linear(128, 64),
        nn.Dropout(0.1),
        nn.Linear(64, 16),
        nn.Linear(16, 1),
    )
