"""How far annotators agree: on pairs of candidates, by share and by Krippendorff's alpha."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from mmalign.labelling.votes import Vote, outcome


@dataclass(frozen=True)
class Agreement:
    """alpha: Krippendorff's, nominal: 1 for perfect agreement, 0 for what chance gives, negative
    for less; nan where nothing can be said. share: of the pairs of annotators' words on the same
    two candidates, those that are equal; nan without any. units: pairs of candidates that at least
    two annotators judged. ties: share of ties among all words. annotators: votes by name.
    """

    alpha: float
    share: float
    units: int
    ties: float
    annotators: dict[str, int]


def agreement(votes: Iterable[Vote]) -> Agreement:
    """Of votes that count. A ranking of k candidates is k (k - 1) / 2 words on pairs of them."""
    units: defaultdict[tuple[str, int, int], list[int]] = defaultdict(list)
    annotators: Counter[str] = Counter()
    for vote in votes:
        annotators[vote.annotator] += 1
        if vote.ranking is None:
            continue
        numbers = sorted(number for group in vote.ranking for number in group)
        for first, second in combinations(numbers, 2):
            units[vote.comparison, first, second].append(outcome(vote.ranking, first, second))
    words = [word for unit in units.values() for word in unit]
    together = [Counter(unit) for unit in units.values() if len(unit) > 1]
    meetings = sum(n * (n - 1) // 2 for unit in together for n in [unit.total()])
    equal = sum(n * (n - 1) // 2 for unit in together for n in unit.values())
    return Agreement(
        alpha=krippendorff_alpha(list(units.values())),
        share=equal / meetings if meetings else float("nan"),
        units=len(together),
        ties=words.count(0) / len(words) if words else float("nan"),
        annotators=dict(annotators),
    )


def krippendorff_alpha(units: Sequence[Sequence[Hashable]]) -> float:
    """Krippendorff's alpha for nominal data: 1 - observed / expected disagreement.

    units: what each unit was called by those who judged it, in any order; units with one word count
    for nothing. nan where no two words differ or no unit has two.
    K. Krippendorff, Content Analysis (2004), ch. 11.
    """
    judged = [Counter(unit) for unit in units if len(unit) > 1]
    values: Counter[Hashable] = Counter()
    for unit in judged:
        values.update(unit)
    n = values.total()
    if n == 0:
        return float("nan")
    observed = sum(
        (unit.total() ** 2 - sum(count**2 for count in unit.values())) / (unit.total() - 1)
        for unit in judged
    )
    expected = (n**2 - sum(count**2 for count in values.values())) / (n - 1)
    return 1 - observed / expected if expected else float("nan")
