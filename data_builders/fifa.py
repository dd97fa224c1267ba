"""FiFA: keep the few pairs with a clear margin, a good prompt, and prompts unlike one another.

Each pair gets an importance, margin + alpha * quality + gamma * log distance to the k-th nearest
other prompt, and the most important are kept. arXiv:2410.10166. Weights and normalisation are not
published word for word; here they are options. Axes: n pairs, p different prompts, d dimensions.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmalign.data_builders.neighbours import Floats, kth_distances
from mmalign.errors import UserError
from mmalign.records import Preference, text_of

Normalise = Literal["none", "zscore", "rank"]
Margin = Literal["abs", "signed"]
Diversity = Literal["full-set", "greedy"]

NEAREST = 1e-6
"""Distances are not taken to be smaller, so that their logarithm is finite."""


@dataclass(frozen=True)
class Weights:
    """What counts how much.

    alpha: a point of quality. gamma: a nat of diversity. k: whose distance tells of diversity.
    normalise: each term before they are added: as it is, to mean 0 and deviation 1, or to its rank
        in 0..1.
    """

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
    base = margin + weights.alpha * quality
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


def build(
    preferences: Iterable[Preference],
    *,
    embed: Callable[[Sequence[str]], Floats],
    margin_of: Callable[[Preference], float] | None = None,
    quality_of: Callable[[Sequence[str]], Sequence[float]] | None = None,
    keep: float = 0.005,
    margin: Margin = "abs",
    on_disagree: Literal["keep", "drop"] = "keep",
    weights: Weights = Weights(),
    diversity: Diversity = "full-set",
    least_quality: float | None = None,
    max_per_prompt: int | None = None,
    seed: int = 0,
    notes: dict[str, Any] | None = None,
) -> Iterator[Preference]:
    """The most important preferences, in their order in the data, with their scores as notes.

    Args:
        preferences: Read twice: once to be scored, once to be handed on. Only numbers and the
            different prompts are held in memory.
        embed: Prompts to points (p d).
        margin_of: How far the reward sees chosen ahead of rejected; by default the number "margin"
            that comes with the data.
        quality_of: Prompts to their quality, 0 to 10 in the paper; without it, none counts.
        keep: Share of the pairs to keep if below 1, else their number.
        margin: Its size, or with its sign, in which a reward that disagrees with the data counts
            against the pair.
        on_disagree: Whether pairs that the reward orders the other way may be kept at all.
        notes: Where rewards, embedder and rubric came from, for the record.
    Raises UserError when a preference has no margin, or nothing is left to choose from.
    """
    table, prompts = _scored(preferences, margin_of)
    if quality_of is not None:
        table = Table(table.margin, np.asarray(quality_of(prompts))[table.prompt], table.prompt)
    count = max(1, round(keep * len(table.margin))) if keep < 1 else int(keep)
    agreeing = table.margin >= 0
    sized = np.abs(table.margin) if margin == "abs" else table.margin
    may = np.flatnonzero(agreeing) if on_disagree == "drop" else np.arange(len(sized))
    if not len(may):
        raise UserError("no pair is left to choose from", hint="use --on-disagree keep")
    chosen = select(
        Table(sized[may], table.quality[may], table.prompt[may]),
        embed(prompts),
        count,
        weights=weights,
        diversity=diversity,
        least_quality=least_quality,
        max_per_prompt=max_per_prompt,
        seed=seed,
    )
    row_of = {int(may[i]): i for i in np.flatnonzero(chosen.selected)}
    for row, preference in enumerate(preferences):
        if (i := row_of.get(row)) is not None:
            yield preference.derived(
                "fifa",
                margin=float(table.margin[row]),
                quality=float(chosen.quality[i]),
                diversity=float(chosen.diversity[i]),
                importance=float(chosen.importance[i]),
                **(notes or {}),
            )


def _scored(
    preferences: Iterable[Preference], margin_of: Callable[[Preference], float] | None
) -> tuple[Table, list[str]]:
    """Margins and prompts of all pairs; quality is 0 as yet."""
    known: dict[str, int] = {}
    margins: list[float] = []
    places: list[int] = []
    for row, preference in enumerate(preferences):
        text = "\n".join(text_of(message.parts) for message in preference.chosen.prompt)
        places.append(known.setdefault(text, len(known)))
        if margin_of is not None:
            margins.append(margin_of(preference))
        elif "margin" in preference.aux:
            margins.append(float(preference.aux["margin"]))
        else:
            raise UserError(
                f"record {row} has no margin in its aux",
                hint="name a reward to score the candidates with, or build the data with one",
            )
    if not margins:
        raise UserError("there are no preferences to choose from")
    places_of = np.asarray(places, np.int64)
    return Table(np.asarray(margins), np.zeros(len(margins)), places_of), list(known)
