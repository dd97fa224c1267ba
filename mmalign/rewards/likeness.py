"""How much a response is about the same as a text: the cosine of their sentence embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmalign.data.cache import Cache, key_of
from mmalign.errors import BadSample
from mmalign.records import Media, Sample, text_of
from mmalign.rewards.embeddings import MINILM, Embedder, load_embedder
from mmalign.rewards.scorer import Floats


@dataclass(frozen=True)
class Likeness:
    """to: the text that responses are compared with; None for the text of each one's prompt."""

    embed: Embedder
    to: str | None = None

    @property
    def name(self) -> str:
        return f"embeddings({key_of(self.to)[:16] if self.to else 'prompt'}):{self.embed.name}"

    def __call__(self, samples: Sequence[Sample]) -> Floats:
        """(n,) Cosines, -1 to 1. Raises BadSample for a response or a prompt without text."""
        pairs = [_texts(sample, self.to) for sample in samples]
        points = self.embed([text for pair in pairs for text in pair]).reshape(len(pairs), 2, -1)
        return np.sum(points[:, 0] * points[:, 1], axis=1, dtype=np.float64)


def embeddings(
    *,
    model: str = MINILM,
    to: str | None = None,
    device: str | None = None,
    batch_size: int = 64,
    cache: Cache | None = None,
) -> Likeness:
    """Likeness of answers to their prompt, or to the text `to`, as a sentence encoder sees it.

    model: Hub id or folder of a text encoder of transformers.
    """
    return Likeness(load_embedder(model, device=device, batch_size=batch_size, cache=cache), to)


def _texts(sample: Sample, to: str | None) -> tuple[str, str]:
    if any(isinstance(part, Media) for part in sample.response):
        raise BadSample("embeddings compare texts, and the response holds media: use clip or vqa")
    said = text_of(sample.response)
    asked = to or "\n".join(filter(None, (text_of(m.parts) for m in sample.prompt)))
    for text, where in ((said, "response"), (asked, "prompt")):
        if not text.strip():
            raise BadSample(f"embeddings compare texts, and the {where} is empty")
    return said, asked
