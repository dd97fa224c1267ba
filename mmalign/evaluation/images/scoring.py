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
AT_ONCE = 16
"""Prompts whose images are scored between two moves of the progress bar."""


def score(
    prompts: Sequence[ImagePrompt], drawn: Mapping[str, Drawn], reward: Reward, title: str
) -> dict[str, Floats]:
    """Stage -> (n k): what a reward thinks of every image; nan where it has no opinion.

    All images of a prompt are scored in one call, those of all stages together: an ensemble
    compares the images of a prompt with one another.
    """
    stages = list(drawn)
    found: list[Floats] = []
    with progress(title, total=len(prompts)) as advance:
        for start in range(0, len(prompts), AT_ONCE):
            some = prompts[start : start + AT_ONCE]
            samples = [
                Sample((Message("user", (Text(prompt.text),)),), (image,))
                for prompt in some
                for stage in stages
                for image in drawn[stage][prompt.id]
            ]
            found.append(np.asarray(reward(samples)).reshape(len(some), len(stages), -1))
            advance(to=start + len(some))
    joined = np.concatenate(found)  # (n s k)
    return {stage: joined[:, place] for place, stage in enumerate(stages)}


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
