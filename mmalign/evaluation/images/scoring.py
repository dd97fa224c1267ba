"""Drawn images and rewards to figures: means, win rates, and both for every category.

Axes: n prompts, k images of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mmalign.evaluation.images.drawing import Drawn
from mmalign.evaluation.images.prompts import ImagePrompt
from mmalign.evaluation.intervals import Estimate, mean
from mmalign.records import Message, Sample, Text
from mmalign.rewards.scorer import Reward
from mmalign.training.log import progress

Floats = NDArray[np.float64]
AT_ONCE = 64
"""Images that are scored between two moves of the progress bar."""


def score(prompts: Sequence[ImagePrompt], drawn: Drawn, reward: Reward, title: str) -> Floats:
    """(n k) What a reward thinks of every image; nan where it has no opinion."""
    samples = [
        Sample((Message("user", (Text(prompt.text),)),), (image,))
        for prompt in prompts
        for image in drawn[prompt.id]
    ]
    found: list[float] = []
    with progress(title, total=len(samples)) as advance:
        for start in range(0, len(samples), AT_ONCE):
            found += reward(samples[start : start + AT_ONCE]).tolist()
            advance(to=len(found))
    return np.array(found).reshape(len(prompts), -1)


def wins(after: Floats, before: Floats) -> Floats:
    """(n k) 1 where the image after is better than its counterpart, 1/2 at a tie, 0 otherwise; nan
    where one of them has no score."""
    unknown = np.isnan(after) | np.isnan(before)
    found = (after > before) + 0.5 * (after == before)
    return np.where(unknown, np.nan, found)


def over_prompts(values: Floats) -> Estimate:
    """The mean over prompts of the mean over their images (n k), without those that are nan.

    Intervals draw prompts anew, not images: those of one prompt hang together.
    """
    known = ~np.isnan(values)
    counted = known.any(1)
    sums = np.where(known, values, 0.0).sum(1)[counted]
    return mean(sums / known.sum(1)[counted])


def by_category(
    name: str,
    values: Floats,
    prompts: Sequence[ImagePrompt],
    figure: Callable[[Floats], Estimate] = over_prompts,
) -> Mapping[str, Estimate]:
    """A figure over all prompts, and over those of each category where there are several."""
    found = {name: figure(values)}
    categories = list(dict.fromkeys(prompt.category for prompt in prompts))
    if len(categories) > 1:
        for category in categories:
            own = np.array([prompt.category == category for prompt in prompts])
            if not np.isnan(values[own]).all():
                found[f"{name}: {category or 'other'}"] = figure(values[own])
    return found
