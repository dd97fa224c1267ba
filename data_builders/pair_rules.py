"""From rewards of several candidates to preferences: which two are compared, or all in a list.

A rule is given rewards and says which candidates are better than which; what it says is made into
preferences in one place. Axes: k candidates of one prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from mmalign.errors import UserError
from mmalign.records import Preference, Provenance, Sample

Ties = Literal["drop", "keep"]
Order = tuple[int, ...]
"""Candidates by their places, best first."""


@dataclass(frozen=True)
class Rule:
    """Which candidates are compared.

    Args:
        rule: max-min, best against worst; max-random, best against any other; best-kth, best
            against the k-th best; margin, every two that are far enough apart; feasible, the best
            that reaches the threshold against the worst that does not; list, all in one ranking.
        least_margin: Chosen has to be ahead of rejected by more than this.
        least_best: Reward that the chosen one has to reach.
        kth: For best-kth: 2 is the second best.
        threshold: For feasible: the reward from which a candidate is acceptable.
        ties: Equal rewards make no pair (drop), or one that says so (keep).
    """

    rule: Literal["max-min", "max-random", "best-kth", "margin", "feasible", "list"] = "max-min"
    least_margin: float = 0.0
    least_best: float | None = None
    kth: int = 2
    threshold: float = 0.5
    ties: Ties = "drop"

    def __post_init__(self) -> None:
        if self.least_margin < 0:
            raise UserError(f"least_margin is not negative, but it is {self.least_margin}")
        if self.kth < 2:
            raise UserError(f"kth is at least 2, the second best, but it is {self.kth}")


def preferences(
    candidates: Sequence[Sample],
    rewards: Sequence[float],
    rule: Rule,
    source: Provenance,
    draws: Random,
) -> list[Preference]:
    """What the rule makes of candidates; their rewards are grades in a list, and aux "margin".

    Candidates that could not be scored (nan) are left out, and of equal ones all but the first.
    """
    known: dict[str, int] = {}
    for place, (sample, reward) in enumerate(zip(candidates, rewards, strict=True)):
        if not math.isnan(reward):
            known.setdefault(sample.id, place)
    ranked = sorted(known.values(), key=lambda place: -rewards[place])
    made = []
    for order in RULES[rule.rule](ranked, rewards, rule, draws):
        best, worst = rewards[order[0]], rewards[order[-1]]
        tie = best == worst
        if rule.least_best is not None and best < rule.least_best:
            continue
        if rule.ties == "drop" if tie else best - worst <= rule.least_margin:
            continue
        listed = rule.rule == "list"
        grades = [rewards[place] for place in order] if listed else [float(not tie), 0.0]
        made.append(
            Preference(
                tuple(candidates[place] for place in order),
                tuple(grades),
                {"margin": best - worst},
                source,
            )
        )
    return made


def max_min(
    ranked: Sequence[int], rewards: Sequence[float], rule: Rule, draws: Random
) -> list[Order]:
    """The best and the worst."""
    return [(ranked[0], ranked[-1])] if len(ranked) > 1 else []


def max_random(
    ranked: Sequence[int], rewards: Sequence[float], rule: Rule, draws: Random
) -> list[Order]:
    """The best and any other."""
    return [(ranked[0], draws.choice(ranked[1:]))] if len(ranked) > 1 else []


def best_kth(
    ranked: Sequence[int], rewards: Sequence[float], rule: Rule, draws: Random
) -> list[Order]:
    """The best and the k-th best."""
    return [(ranked[0], ranked[rule.kth - 1])] if len(ranked) >= rule.kth else []


def margin(
    ranked: Sequence[int], rewards: Sequence[float], rule: Rule, draws: Random
) -> list[Order]:
    """Every two, the better one first."""
    return [(one, other) for place, one in enumerate(ranked) for other in ranked[place + 1 :]]


def feasible(
    ranked: Sequence[int], rewards: Sequence[float], rule: Rule, draws: Random
) -> list[Order]:
    """The best acceptable one and the worst that is not."""
    good = [place for place in ranked if rewards[place] >= rule.threshold]
    return [(good[0], ranked[-1])] if good and len(good) < len(ranked) else []


def ranking(
    ranked: Sequence[int], rewards: Sequence[float], rule: Rule, draws: Random
) -> list[Order]:
    """All of them."""
    return [tuple(ranked)] if len(ranked) > 1 else []


RULES: Mapping[str, Callable[[Sequence[int], Sequence[float], Rule, Random], list[Order]]] = {
    "best-kth": best_kth,
    "feasible": feasible,
    "list": ranking,
    "margin": margin,
    "max-min": max_min,
    "max-random": max_random,
}
