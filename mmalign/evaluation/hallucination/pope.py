"""POPE: questions whether an object is in an image, half of them about objects that are not.

arXiv:2305.10355, section 4. What is absent is drawn at random, or is what most images have
(popular), or what mostly comes with what is present (adversarial).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from mmalign.errors import UserError
from mmalign.evaluation.hallucination.coco import Annotated

Setting = Literal["random", "popular", "adversarial"]
SETTINGS: tuple[Setting, ...] = ("random", "popular", "adversarial")


@dataclass(frozen=True)
class YesNo:
    """A line of POPE's files. label: "yes" or "no"."""

    question_id: int
    image: str
    text: str
    label: str


def questions(
    annotated: Mapping[int, Annotated],
    setting: Setting,
    *,
    images: int = 500,
    per_image: int = 3,
    seed: int = 0,
) -> list[YesNo]:
    """Questions about objects that instances mark: `per_image` present and as many absent ones.

    Takes `images` of the images that show at least `per_image` objects. The three settings ask
    about the same images and present objects. Raises UserError where no image shows enough.
    """
    draw = random.Random(f"pope {seed}")
    shown = {
        number: sorted(found.segmented)
        for number, found in sorted(annotated.items())
        if len(found.segmented) >= per_image
    }
    if not shown:
        raise UserError(f"no image shows {per_image} objects", hint="give COCO's instances_*.json")
    drawn = draw.sample(list(shown), min(images, len(shown)))
    likely = _Likely(list(shown.values()))
    found: list[YesNo] = []
    for number in drawn:
        present = draw.sample(shown[number], per_image)
        absent_draw = random.Random(f"pope {seed} {setting} {number}")
        absent = likely.absent(setting, present, set(shown[number]), absent_draw)
        for there, missing in zip(present, absent, strict=True):
            for name, label in ((there, "yes"), (missing, "no")):
                text = f"Is there {article(name)} {name} in the image?"
                found.append(YesNo(len(found) + 1, annotated[number].file, text, label))
    return found


def article(name: str) -> str:
    """ "a" or "an", by the first letter."""
    return "an" if name[0] in "aeiou" else "a"


class _Likely:
    """How often objects are in images, and in images with another."""

    def __init__(self, images: Sequence[Sequence[str]]) -> None:
        self.often = Counter(chain.from_iterable(images))
        self.together: dict[str, Counter[str]] = {name: Counter() for name in self.often}
        for names in images:
            for name in names:
                self.together[name].update(other for other in names if other != name)

    def absent(
        self, setting: Setting, present: Sequence[str], shown: set[str], draw: random.Random
    ) -> list[str]:
        """One object for each of `present` that the image does not show, no two alike."""
        found: list[str] = []
        for name in present:
            left = [other for other in self._by(setting, name, draw) if other not in shown]
            fresh = [other for other in left if other not in found]
            if not fresh:
                raise UserError(
                    f"there are too few objects to ask for one that is not there: {len(self.often)}"
                )
            found.append(fresh[0])
        return found

    def _by(self, setting: Setting, name: str, draw: random.Random) -> Iterator[str]:
        """All objects, those first that the setting asks about first."""
        if setting == "popular":
            yield from _ranked(self.often)
        elif setting == "adversarial":
            yield from _ranked(self.together[name])
        yield from draw.sample(sorted(self.often), len(self.often))


def _ranked(counts: Counter[str]) -> list[str]:
    """By how often, then by name, so that the order of files does not matter."""
    return sorted(counts, key=lambda name: (-counts[name], name))
