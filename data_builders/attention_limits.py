"""Which answers looked away, and which of their pairs are fit to train on: MIA-DPO's limits.

arXiv:2410.17637; numbers as in its published code where the code has them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmalign.data_builders.looking import Look
from mmalign.data_builders.weights import weights
from mmalign.records import Preference, text_of

INSIDE = "picture-in-picture"

PUBLISHED: Mapping[str, Mapping[int, float]] = {
    "sequence": {2: 0.8, 3: 0.7, 4: 0.6, 5: 0.6},
    "grid": {2: 0.7, 3: 0.6, 4: 0.5, 6: 0.4, 9: 0.3},
    INSIDE: {2: 0.8},
}
"""Ratios below which an answer looked away, by layout and number of images, as in the published
code; a number that is not there has the limit of the next smaller one."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Which pairs are kept.

    Args:
        thresholds: Ratios below which an answer looked away, as in grid=0.5 or grid4=0.5; where
            there is none, those published for MIA-DPO, between 0.3 and 0.8.
        rule: One rule instead, for every layout of N images: the lesser of 0.8 and rule / N.
        perplexity_min: Perplexity above which the rejected answer must be: of its likeliest tokens,
            so that 1 is an answer without a doubt.
        perplexity_max: Perplexity that it must not reach.
        max_chars: Characters that the chosen answer must stay below.
        length_ratio: Largest ratio between both answers' numbers of words, where both have more
            than 8.
        min_edits: Least share of words that separate the answers, counted as insertions,
            deletions and substitutions.
    """

    thresholds: tuple[str, ...] = ()
    rule: float | None = None
    perplexity_min: float = 1.1
    perplexity_max: float | None = None
    max_chars: int = 512
    length_ratio: float = 4.0
    min_edits: float = 0.1

    def threshold(self, layout: str, count: int) -> float:
        known = (f"{name}{number}" for name in PUBLISHED for number in ("", *range(2, 10)))
        own = weights("thresholds", self.thresholds, tuple(known))
        for name in (f"{layout}{count}", layout):
            if name in own:
                return own[name]
        if self.rule is not None:
            return min(0.8, self.rule / count)
        published = PUBLISHED[layout]
        return published[max(number for number in published if number <= count)]


def why_not(pair: Preference, look: Look, share: float, limits: Limits) -> str:
    """Why a pair is not kept; "" for one that is.

    share: of the attention on images, that on the image that is meant.
    """
    layout, count = pair.source.details["layout"], pair.source.details["count"]
    chosen, rejected = (text_of(sample.response).strip() for sample in pair.candidates)
    words = chosen.split(), rejected.split()
    longer, shorter = sorted(map(len, words), reverse=True)
    threshold = limits.threshold(layout, count)
    elsewhere = share <= threshold if layout == "sequence" else share < threshold
    most = limits.perplexity_max
    checks = (
        (math.isfinite(share), "its attention does not lie on images at all"),
        (chosen != rejected, "the model gives the known answer"),
        (elsewhere, f"{share:.3f} of its attention is on the right image, not below {threshold}"),
        (look.perplexity > limits.perplexity_min, f"its perplexity is {look.perplexity:.3f}"),
        (most is None or look.perplexity < most, f"its perplexity is {look.perplexity:.3f}"),
        (len(chosen) < limits.max_chars, f"the known answer has {len(chosen)} characters"),
        (
            shorter <= 8 or longer <= limits.length_ratio * shorter,
            f"the answers have {len(words[0])} and {len(words[1])} words",
        ),
        (edits(*words) >= limits.min_edits * longer, "the answers are too much alike"),
    )
    return next((reason for passed, reason in checks if not passed), "")


def edits(first: Sequence[str], second: Sequence[str]) -> int:
    """Levenshtein distance: insertions, deletions and substitutions."""
    row = list(range(len(second) + 1))
    for i, one in enumerate(first, start=1):
        corner, row[0] = row[0], i
        for j, other in enumerate(second, start=1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (one != other))
    return row[-1]
