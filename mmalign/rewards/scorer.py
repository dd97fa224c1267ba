"""Rewards of images, most of them against a text: batches, a cache, and what a sample shows.

Axes: n samples, d dimensions of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mmalign.data.cache import Cache, key_of
from mmalign.errors import BadSample
from mmalign.media import open_image
from mmalign.records import Media, Sample, media_of, text_of

Floats = NDArray[np.float64]


class Reward(Protocol):
    """Scores samples: (n,), larger is better; nan where no score could be had.

    name: what scores, with which weights; for provenance and as a part of cache keys.
    """

    @property
    def name(self) -> str: ...

    def __call__(self, samples: Sequence[Sample]) -> Floats: ...


@dataclass(frozen=True)
class Scorer:
    """A reward that looks at one image and one text.

    model: (n,) scores of as many images and texts, in one call. batch_size: how many it is given.
    """

    name: str
    model: Callable[[list[Image.Image], list[str]], Tensor]
    batch_size: int = 16
    cache: Cache | None = None

    def __call__(self, samples: Sequence[Sample]) -> Floats:
        shown = [image_and_text(sample) for sample in samples]
        return self.score([image for image, _ in shown], [text for _, text in shown])

    def score(self, images: Sequence[Media], texts: Sequence[str]) -> Floats:
        """(n,) How good each image is for its text.

        Raises BadSample for an image that cannot be opened.
        """
        scores: list[float] = []
        for start in range(0, len(images), self.batch_size):
            some = slice(start, start + self.batch_size)
            scores += self._batch(images[some], texts[some])
        return np.array(scores, np.float64)

    def _batch(self, images: Sequence[Media], texts: Sequence[str]) -> list[float]:
        def compute(places: list[int]) -> list[float]:
            opened = [open_image(images[place]) for place in places]
            with torch.no_grad():
                scores = self.model(opened, [texts[place] for place in places])
            return [float(score) for score in scores.float().cpu()]

        if self.cache is None:
            return compute(list(range(len(images))))
        keys: list[Any] = [
            key_of(self.name, image.digest, text) for image, text in zip(images, texts, strict=True)
        ]
        return self.cache.through(keys, compute)


def image_and_text(sample: Sample) -> tuple[Media, str]:
    """An image that was made, with the prompt it was made for; or a text, with the image it is on.

    Raises BadSample when the response and the prompt leave open which image is meant.
    """
    drawn = [part for part in sample.response if isinstance(part, Media)]
    if drawn:
        text = "\n".join(filter(None, (text_of(m.parts) for m in sample.prompt)))
        return _one(drawn, "response"), text
    return _one(list(media_of(sample.prompt)), "prompt"), text_of(sample.response)


def _one(media: list[Media], where: str) -> Media:
    if len(media) != 1 or media[0].kind != "image":
        kinds = ", ".join(part.kind for part in media) or "nothing to look at"
        raise BadSample(f"this reward looks at one image, and the {where} holds: {kinds}")
    return media[0]
