"""Importance of preference pairs: margin, quality and diversity added up, and the most important.

Margin and quality come from elsewhere; diversity is the log distance of a pair's prompt to others.
Axes: n pairs, p different prompts, d dimensions.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmalign.data_builders.neighbours import Floats, kth_distances

Normalise = Literal["none", "zscore", "rank"]
Diversity = Literal["full-set", "greedy"]

NEAREST = 1e-6
"""Distances are not taken to be smaller, so that their logarithm is finite."""


@dataclass(frozen=True)
class Weights:
    """What counts how much.

    Args:
        mu: Of the margin.
        alpha: Of a point of quality.
        gamma: Of a nat of diversity.
        k: The distance to the k-th nearest prompt tells of diversity.
        normalise: Each term before they are added: none, to mean 0 and deviation 1 (zscore), or to
            its rank in 0 to 1.
    """

    mu: float = 1.0
    alpha: float = 0.1
    gamma: float = 0.5
    k: int = 1
    normalise: Normalise = "none"


@dataclass(frozen=True)
class Table:
    """What is known of n pairs: (n,) each. prompt: which of the different prompts, 0 to p - 1."""

    margin: NDArray[np.float64]
    quality: NDArray[np.float64]
    prompt: NDArray[np.int64]


@dataclass(frozen=True)
class Selection:
    """(n,) each: the terms as they were added, their sum, and whether the pair is kept.

    With diversity "greedy" a pair's diversity is that of the moment when it was taken: nan for
    pairs that were not, and missing in their importance.
    """

    margin: NDArray[np.float64]
    quality: NDArray[np.float64]
    diversity: NDArray[np.float64]
    importance: NDArray[np.float64]
    selected: NDArray[np.bool_]


def select(
    table: Table,
    embeddings: Floats,
    count: int,
    *,
    weights: Weights = Weights(),
    diversity: Diversity = "full-set",
    least_quality: float | None = None,
    max_per_prompt: int | None = None,
    seed: int = 0,
) -> Selection:
    """Keep `count` pairs, or all that may be kept if there are fewer.

    embeddings: (p d) of the different prompts. diversity: "full-set" measures a prompt's distance
    to all others (FiFA); "greedy" takes pair after pair, and measures to those already taken.
    least_quality: pairs below it are never kept. Equal importance: the earlier pair.
    """
    margin = normalised(table.margin, weights.normalise)
    quality = normalised(table.quality, weights.normalise)
    base = weights.mu * margin + weights.alpha * quality
    allowed = np.ones(len(margin), bool)
    if least_quality is not None:
        allowed &= table.quality >= least_quality
    if diversity == "greedy":
        spread, importance = np.full(len(base), np.nan), base.copy()
        taken, spread_of_taken = _greedy(
            base, allowed, table.prompt, embeddings, count, weights.gamma, max_per_prompt
        )
        spread[taken] = spread_of_taken
        importance[taken] += weights.gamma * spread[taken]
    else:
        logs = np.zeros(len(embeddings))
        if weights.gamma and len(embeddings) > weights.k:
            logs = np.log(np.maximum(kth_distances(embeddings, weights.k, seed=seed), NEAREST))
        spread = normalised(logs[table.prompt], weights.normalise)
        importance = base + weights.gamma * spread
        taken = _top(importance, allowed, table.prompt, count, max_per_prompt)
    selected = np.zeros(len(margin), bool)
    selected[taken] = True
    return Selection(margin, quality, spread, importance, selected)


def normalised(values: Floats, how: Normalise) -> NDArray[np.float64]:
    """(n,) The values on a scale on which different terms can be added."""
    if how == "zscore":
        deviation = values.std()
        return (values - values.mean()) / (deviation if deviation > 0 else 1.0)
    if how == "rank":
        order = np.argsort(np.argsort(values, kind="stable"), kind="stable")
        return order / max(1, len(values) - 1)
    return values.astype(np.float64)


def _top(
    importance: NDArray[np.float64],
    allowed: NDArray[np.bool_],
    prompt: NDArray[np.int64],
    count: int,
    max_per_prompt: int | None,
) -> list[int]:
    taken: list[int] = []
    used: Counter[int] = Counter()
    for pair in np.argsort(-importance, kind="stable"):
        if len(taken) == count:
            break
        if allowed[pair] and (max_per_prompt is None or used[prompt[pair]] < max_per_prompt):
            used[prompt[pair]] += 1
            taken.append(int(pair))
    return taken


def _greedy(
    base: NDArray[np.float64],
    allowed: NDArray[np.bool_],
    prompt: NDArray[np.int64],
    embeddings: Floats,
    count: int,
    gamma: float,
    max_per_prompt: int | None,
) -> tuple[list[int], list[float]]:
    """Pairs by base + gamma * log distance to the nearest prompt taken before, and these logs.

    Distances only fall while pairs are taken, so that the prompt whose best pair, brought up to
    date, still gains most of all outdated ones is the next: few are brought up to date at all.
    """
    points = np.asarray(embeddings, np.float32)
    waiting = _by_prompt(base, allowed, prompt, max_per_prompt)
    nearest = np.full(len(points), float(np.linalg.norm(points.max(0) - points.min(0))) or 1.0)
    measured = np.zeros(len(points), int)  # how many of the places taken are in `nearest`
    places: list[NDArray[np.float32]] = []
    taken: list[int] = []
    spread: list[float] = []

    def gain(own: int) -> tuple[float, int, int]:
        """An entry of the heap: smaller for a larger gain, and for an earlier pair."""
        pair = waiting[own][-1]
        return -(base[pair] + gamma * np.log(max(nearest[own], NEAREST))), pair, own

    heap = [gain(own) for own in waiting]
    heapq.heapify(heap)
    while heap and len(taken) < count:
        _, pair, own = heapq.heappop(heap)
        if fresh := places[measured[own] :]:
            away = np.linalg.norm(np.stack(fresh) - points[own], axis=1).min()
            nearest[own], measured[own] = min(nearest[own], away), len(places)
        entry = gain(own)
        if heap and entry > heap[0]:
            heapq.heappush(heap, entry)
            continue
        taken.append(pair)
        spread.append(float(np.log(max(nearest[own], NEAREST))))
        if nearest[own] > 0:  # the first of its prompt
            places.append(points[own])
            nearest[own] = 0.0
        waiting[own].pop()
        if waiting[own]:
            heapq.heappush(heap, gain(own))
    return taken, spread


def _by_prompt(
    base: NDArray[np.float64],
    allowed: NDArray[np.bool_],
    prompt: NDArray[np.int64],
    most: int | None,
) -> dict[int, list[int]]:
    """The best pairs of each prompt, at most `most`, the best one last."""
    found: dict[int, list[int]] = {}
    for pair in np.argsort(-base, kind="stable"):
        if allowed[pair]:
            own = found.setdefault(int(prompt[pair]), [])
            if most is None or len(own) < most:
                own.append(int(pair))
    return {own: pairs[::-1] for own, pairs in found.items()}
