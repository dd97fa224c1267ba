"""Faults of preference data that training cannot mend: ties, repeats, contradictions, lengths."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mmalign.evaluation.intervals import Interval, wilson
from mmalign.records import Preference, text_of


@dataclass(frozen=True)
class Rates:
    """Counts over the preferences with two or more candidates; the best and the worst are compared.

    ties: equal grades. identical: the two responses are the same. repeats: seen before in this
    order. contradictions: seen before in the opposite order. chosen_longer, rejected_longer: by
    characters of text. unreadable: whose image or video is gone; they are in no other count.
    """

    pairs: int
    ties: int
    identical: int
    repeats: int
    contradictions: int
    chosen_longer: int
    rejected_longer: int
    unreadable: int = 0

    def share(self, count: int) -> float:
        return count / self.pairs if self.pairs else 0.0

    def length_bias(self, *, level: float = 0.99) -> Interval | None:
        """How often the longer response is the chosen one, where lengths differ; one half without
        bias. It is also the accuracy of a judge that reads nothing but lengths."""
        differing = self.chosen_longer + self.rejected_longer
        return wilson(self.chosen_longer, differing, level=level) if differing else None


def rates(preferences: Iterable[Preference]) -> Rates:
    """Count in one pass. Thumbs up and down are passed over."""
    pairs = ties = identical = repeats = contradictions = longer = shorter = unreadable = 0
    seen: set[tuple[str, str]] = set()
    for preference in preferences:
        if len(preference.candidates) < 2:
            continue
        first, second = preference.chosen, preference.rejected
        try:
            same = first.id == second.id
        except OSError:
            unreadable += 1
            continue
        pairs += 1
        tie = preference.grades[0] == preference.grades[-1]
        ties += tie
        identical += same
        repeats += (first.id, second.id) in seen
        contradictions += (second.id, first.id) in seen and not tie and not same
        seen.add((first.id, second.id))
        ahead = len(text_of(first.response)) - len(text_of(second.response))
        longer += ahead > 0 and not tie
        shorter += ahead < 0 and not tie
    return Rates(pairs, ties, identical, repeats, contradictions, longer, shorter, unreadable)
