"""What claims about the image-token playground share: its Janus, drawn from, judged and aligned."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mmalign.adapters.image_tokens import ImageTokenAdapter, load_image_tokens
from mmalign.objectives import objective
from mmalign.pipelines.quickstart_image_tokens import RECIPE, TOKENS
from mmalign.playground.relations import Asked
from mmalign.records import Media, Preference, Sample
from mmalign.training.align import align
from mmalign.training.seeds import derive


def load(seed: int) -> ImageTokenAdapter:
    """The playground's Janus with a fresh LoRA."""
    torch.manual_seed(derive(seed, "lora"))
    return load_image_tokens(TOKENS.source, lora={"r": RECIPE.lora_rank})


def repeated(asked: Sequence[Asked], each: int) -> list[Asked]:
    return [one for one in asked for _ in range(each)]


def drawn(adapter: ImageTokenAdapter, asked: Sequence[Asked], seed: int, what: str) -> list[Sample]:
    """A picture for each of `asked`."""
    seeds = [derive(seed, what, index) for index in range(len(asked))]
    return adapter.sample([one.prompt for one in asked], seeds, **TOKENS.sampling)


def as_asked(samples: Sequence[Sample], asked: Sequence[Asked]) -> NDArray[np.bool_]:
    """(n,) whether each picture is as asked for, by the exact checker."""
    drawings = map(picture, samples)
    return np.array(
        [TOKENS.judged(each, one) == 1 for each, one in zip(drawings, asked, strict=True)]
    )


def picture(sample: Sample) -> Media:
    (media,) = sample.response
    assert isinstance(media, Media)
    return media


def aligned(data: Sequence[Preference], spec: str, steps: int, seed: int) -> ImageTokenAdapter:
    """The Janus after training as in the quickstart."""
    adapter = load(seed)
    training = replace(RECIPE.training, steps=steps, seed=seed, save_every=0)
    with tempfile.TemporaryDirectory() as folder:
        align(adapter, data, (), objective(spec), training, Path(folder))
    return adapter
