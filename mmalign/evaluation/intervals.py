"""Intervals for what was measured: Wilson's for shares, the bootstrap for means and ratios."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


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
    """Percentile bootstrap interval of a ratio of sums, such as faults per mention.

    Items, not single mentions, are drawn anew: the mentions of one answer hang together. Draws
    whose denominators sum to 0 have no ratio and are left out; where all do, the result is nan.
    One item alone has no interval: its bounds are nan.

    numerators, denominators: (n,), one entry per item. Raises ValueError where they do not fit.
    """
    above = np.asarray(numerators, dtype=np.float64)
    below = np.asarray(denominators, dtype=np.float64)
    if above.shape != below.shape or above.ndim != 1 or above.size == 0:
        raise ValueError(f"a ratio of sums over {above.shape} and {below.shape} is not defined")
    if not below.sum():
        return Interval(math.nan, math.nan, math.nan)
    value = float(above.sum() / below.sum())
    if above.size == 1:
        return Interval(value, math.nan, math.nan)
    random = np.random.default_rng(seed)
    ratios = []
    for _ in range(resamples):
        drawn = random.integers(above.size, size=above.size)
        if total := below[drawn].sum():
            ratios.append(above[drawn].sum() / total)
    low, high = np.quantile(ratios, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(value, float(low), float(high))
