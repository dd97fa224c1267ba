"""Intervals for what was measured: Wilson's for shares, the bootstrap for means, ratios and what is
computed of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = NDArray[np.float64]


class Interval(NamedTuple):
    """A figure and the interval that holds its true value at the level asked for."""

    value: float
    low: float
    high: float


def wilson(successes: float, n: int, *, level: float = 0.95) -> Interval:
    """Wilson's score interval for a share: stays within 0 and 1, and is honest at 0 of n.

    A tie may count as half a success. E. B. Wilson, 1927, JASA 22:209-212.
    Raises ValueError unless 0 <= successes <= n and n > 0.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} of {n} is not a share")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def bootstrap_mean(
    values: Sequence[float], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval of a mean. For two models on the same prompts, give the
    differences. One value alone has no interval: its bounds are nan.

    B. Efron, 1979, Annals of Statistics 7:1-26. Raises ValueError if there are no values.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0:
        raise ValueError("the mean of no values is not defined")
    mean = float(sample.mean())
    if sample.size == 1:
        return Interval(mean, math.nan, math.nan)
    random = np.random.default_rng(seed)
    means = np.empty(resamples)
    for index in range(resamples):
        means[index] = sample[random.integers(sample.size, size=sample.size)].mean()
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(mean, float(low), float(high))


def bootstrap_ratio(
    numerators: ArrayLike,
    denominators: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """The interval of `ratio(numerators, denominators)`."""
    return ratio(numerators, denominators).interval(level=level, resamples=resamples, seed=seed)


@dataclass(frozen=True)
class Estimate:
    """A figure over items that can be computed again from items drawn anew.

    items: how many there are. redrawn: called with a number of resamples and a seed, gives the
    figure of each resample (resamples,), nan where it is not defined. Equal seeds draw equal items,
    so that a difference of two estimates over the same items is a paired one.
    """

    value: float
    items: int
    redrawn: Callable[[int, int], Values]

    def interval(self, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
        """Percentile bootstrap interval. One item alone has none: its bounds are nan, as are those
        of a figure that is not defined."""
        if self.items < 2 or math.isnan(self.value):
            return Interval(self.value, math.nan, math.nan)
        low, high = np.nanquantile(
            self.redrawn(resamples, seed), [0.5 - level / 2, 0.5 + level / 2]
        )
        return Interval(self.value, float(low), float(high))


def ratio(numerators: ArrayLike, denominators: ArrayLike) -> Estimate:
    """A ratio of sums, such as faults per mention; nan where the denominators sum to 0.

    Items, not single mentions, are drawn anew: the mentions of one answer hang together. Draws
    whose denominators sum to 0 have no ratio and are left out of intervals.

    numerators, denominators: (n,), one entry per item. Raises ValueError where they do not fit.
    """
    above = np.asarray(numerators, dtype=np.float64)
    below = np.asarray(denominators, dtype=np.float64)
    if above.shape != below.shape or above.ndim != 1 or above.size == 0:
        raise ValueError(f"a ratio of sums over {above.shape} and {below.shape} is not defined")

    def redrawn(resamples: int, seed: int) -> Values:
        random = np.random.default_rng(seed)
        found = np.full(resamples, math.nan)
        for index in range(resamples):
            drawn = random.integers(above.size, size=above.size)
            if total := below[drawn].sum():
                found[index] = above[drawn].sum() / total
        return found

    total = below.sum()
    value = float(above.sum() / total) if total else math.nan
    return Estimate(value, above.size, redrawn)


def mean(values: ArrayLike) -> Estimate:
    """The mean over items, (n,)."""
    numbers = np.asarray(values, dtype=np.float64)
    return ratio(numbers, np.ones_like(numbers))


def combined(function: Callable[..., Any], *parts: Estimate) -> Estimate:
    """A figure computed of others, as in `combined(lambda after, before: after - before, a, b)`.

    function: of numbers, and of arrays element by element.
    """

    def redrawn(resamples: int, seed: int) -> Values:
        return np.asarray(function(*(part.redrawn(resamples, seed) for part in parts)))

    value = float(function(*(part.value for part in parts)))
    return Estimate(value, min(part.items for part in parts), redrawn)
