"""Faults of preference data that training cannot mend: ties, repeats, contradictions, lengths,
images that show nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from mmalign.errors import BadSample
from mmalign.evaluation.intervals import Interval, wilson
from mmalign.media import open_image
from mmalign.records import Media, Preference, media_of, text_of

ONE_COLOUR = 2
"""Levels of 255 by which the pixels of a blank image may differ: what a JPEG's rounding leaves."""
THUMBNAIL = 64
"""Pixels of the longer side that are enough to see whether anything is shown."""


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


@dataclass(frozen=True)
class Blanks:
    """looked_at: preferences with images that were opened. blank: those of which every image, on
    all sides, has one colour only. One side alone may be blank on purpose, as a contrast."""

    looked_at: int
    blank: int


def blank_images(preferences: Sequence[Preference], *, most: int = 100) -> Blanks:
    """Open the images of up to `most` preferences, evenly spaced. Videos, and images that cannot be
    read, are passed over."""
    looked_at = blank = 0
    for index in range(0, len(preferences), max(1, ceil(len(preferences) / most))):
        if images := _images(preferences[index]):
            try:
                empty = all(map(_of_one_colour, images))
            except BadSample:
                continue
            looked_at += 1
            blank += empty
    return Blanks(looked_at, blank)


def _images(preference: Preference) -> list[Media]:
    """All different ones, of prompts and responses."""
    media = [
        each
        for sample in preference.candidates
        for each in (
            *media_of(sample.prompt),
            *(part for part in sample.response if isinstance(part, Media)),
        )
    ]
    return [each for each in dict.fromkeys(media) if each.kind == "image"]


def _of_one_colour(image: Media) -> bool:
    pixels = np.asarray(open_image(image, least=THUMBNAIL), np.int16)  # (h w 3)
    return bool((np.ptp(pixels, axis=(0, 1)) <= ONE_COLOUR).all())
