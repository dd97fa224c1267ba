"""VQAScore: how sure a vision-language model is that an image shows a text. arXiv:2404.01291."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from mmalign.data.cache import Cache
from mmalign.errors import UserError
from mmalign.media import png
from mmalign.records import Message, Sample, Text
from mmalign.rewards.loading import identity
from mmalign.rewards.scorer import Scorer

if TYPE_CHECKING:
    from mmalign.adapters.vision_language.adapter import VisionLanguageAdapter

QUESTION = 'Does this figure show "{text}"? Please answer yes or no.'


def vqa(
    *,
    model: str,
    question: str = QUESTION,
    relative: bool = False,
    precision: str = "float32",
    device: str | None = None,
    batch_size: int = 8,
    cache: Cache | None = None,
) -> Scorer:
    """The probability that the model answers Yes; relative: among Yes and No alone.

    Of an answer of several tokens it is the geometric mean of their probabilities. model: Hub id or
    folder of a vision-language model. question: with the place of the text as {text}.
    """
    from mmalign.adapters.vision_language import load_vision_language

    if "{text}" not in question:
        raise UserError("the question has no place for the text", hint="write {text} in it")
    adapter = load_vision_language(model, precision=precision, device=device)

    def score(images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        yes = answer_log_probs(adapter, images, texts, question, "Yes")
        if not relative:
            return yes.exp()
        return (yes - answer_log_probs(adapter, images, texts, question, "No")).sigmoid()

    name = f"vqa({question!r}, relative={relative}, {precision}):{identity(model)}"
    return Scorer(name, score, batch_size, cache)


def answer_log_probs(
    adapter: VisionLanguageAdapter,
    images: Sequence[Image.Image],
    texts: Sequence[str],
    question: str,
    answer: str,
) -> Tensor:
    """(n,) Mean log-probability of the answer's tokens, without that of the end of the turn."""
    samples = [
        Sample(
            (Message("user", (png(image, level=1), Text(question.replace("{text}", text)))),),
            (Text(answer),),
        )
        for image, text in zip(images, texts, strict=True)
    ]
    with torch.no_grad():
        inputs = adapter.encode(adapter.collate(samples, [0] * len(samples)))
        tokens = adapter.log_probs(adapter.policy, inputs).tokens
    assert tokens is not None  # autoregressive models have them
    words = tokens.mask.sum(1) - 1
    steps = torch.arange(tokens.mask.shape[1], device=tokens.mask.device)
    return (tokens.log_probs * (steps < words[:, None])).sum(1) / words
