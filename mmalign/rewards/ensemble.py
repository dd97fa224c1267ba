"""Several rewards as one. Their scales have nothing in common, so raw values are never added.

Axes: r rewards, n samples.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mmalign.errors import UserError
from mmalign.records import Sample
from mmalign.rewards.scorer import Floats, Reward

How = Literal["zscore", "rank", "wins", "calibrated"]


@dataclass(frozen=True)
class Ensemble:
    """A reward made of rewards, compared among the samples of one prompt.

    weights: (r,). how: see `combine`. scales: (r,) what `calibrate` found, for "calibrated".
    """

    rewards: tuple[Reward, ...]
    weights: tuple[float, ...]
    how: How = "zscore"
    scales: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.how == "calibrated" and self.scales is None:
            raise UserError(
                "a calibrated ensemble needs a scale for each reward",
                hint="find them with calibrate(), or combine by zscore, rank or wins",
            )

    @property
    def name(self) -> str:
        parts = [f"{w:g}*{r.name}" for w, r in zip(self.weights, self.rewards, strict=True)]
        scales = "" if self.scales is None else f"{list(self.scales)}"
        return f"{self.how}{scales}({' + '.join(parts)})"

    def __call__(self, samples: Sequence[Sample]) -> Floats:
        scores = np.stack([reward(samples) for reward in self.rewards])
        groups = [sample.prompt_id for sample in samples]
        return combine(scores, self.weights, groups, self.how, scales=self.scales)


def combine(
    scores: Floats,
    weights: Sequence[float],
    groups: Sequence[Hashable],
    how: How,
    *,
    scales: Sequence[float] | None = None,
) -> Floats:
    """(n,) The weighted sum over rewards of scores (r n) brought to one scale.

    how: within each group, "zscore" takes deviations from the mean in standard deviations, "rank"
        ranks from 0 to 1 (equal scores share theirs), "wins" the share of the others that a sample
        beats, ties half. "calibrated" multiplies by `scales`, whatever the group.
    A sample that a reward could not score (nan) is nan, and the others of its group do without it.
    """
    if how == "calibrated":
        brought = scores * np.asarray(scales)[:, None]
    else:
        brought = np.full(scores.shape, np.nan)
        places: dict[Hashable, list[int]] = {}
        for place, group in enumerate(groups):
            places.setdefault(group, []).append(place)
        for group_places in places.values():
            for row, own in zip(brought, scores, strict=True):
                there = [place for place in group_places if np.isfinite(own[place])]
                if there:
                    row[there] = WITHIN[how](own[there])
    total: Floats = np.asarray(weights) @ brought
    return total


def zscore(scores: Floats) -> Floats:
    """(n,) Deviations from the mean in standard deviations; 0 where all are equal."""
    deviation = scores.std()
    return (scores - scores.mean()) / (deviation if deviation > 0 else 1.0)


def wins(scores: Floats) -> Floats:
    """(n,) The share of the others that a sample beats, ties half; 1/2 for one alone."""
    beaten = (scores[:, None] > scores).sum(1) + 0.5 * ((scores[:, None] == scores).sum(1) - 1)
    return beaten / (len(scores) - 1) if len(scores) > 1 else np.array([0.5])


def rank(scores: Floats) -> Floats:
    """(n,) Ranks among the different scores, 0 to 1; 1/2 where all are equal."""
    different, places = np.unique(scores, return_inverse=True)
    return places / (len(different) - 1) if len(different) > 1 else np.full(len(scores), 0.5)


WITHIN: dict[str, Callable[[Floats], Floats]] = {"zscore": zscore, "rank": rank, "wins": wins}


def calibrate(margins: Floats, *, rounds: int = 100) -> float:
    """How much a reward's margins are worth in log odds: the likeliest a in sigmoid(a margin).

    margins: (n,) the reward's score of the better sample of a labelled pair less that of the worse.
    Calibrated rewards add up as independent witnesses. Raises UserError when all margins have one
    sign: no scale is too large for a reward that is always right.
    """
    if not ((margins > 0).any() and (margins < 0).any()):
        raise UserError(
            "the reward is always right or always wrong on these pairs, so no scale is likeliest",
            hint="calibrate on more labelled pairs",
        )
    scale = 0.0
    unit = np.abs(margins).mean()
    x = margins / unit
    for _ in range(rounds):  # Newton's method: the log-likelihood is concave
        right = 1 / (1 + np.exp(-scale * x))
        slope, bend = (x * (1 - right)).sum(), (x**2 * right * (1 - right)).sum()
        step = slope / max(bend, 1e-12)
        scale += float(np.clip(step, -1, 1))
        if abs(step) < 1e-10:
            break
    return float(scale / unit)
