"""CHAIR: which share of the objects that captions mention is not there. arXiv:1809.02156.

The scorer is pure: what each caption mentions and what each image shows go in, counts per caption
come out. Finding the mentions in a text is another's task, so COCO and drawn scenes share this.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmalign.errors import UserError
from mmalign.evaluation.intervals import Estimate, Interval, ratio

Counts = NDArray[np.int64]
"""(n,) one entry per caption."""


@dataclass(frozen=True)
class Chair:
    """Counts per caption, from which each figure and its interval follow.

    mentions: objects mentioned, repetitions included. hallucinated: those of them that the image
    does not show. recalled: different objects of the image that are mentioned. present: different
    objects of the image.
    """

    mentions: Counts
    hallucinated: Counts
    recalled: Counts
    present: Counts

    def __len__(self) -> int:
        return len(self.mentions)

    def estimates(self) -> dict[str, Estimate]:
        """The figures, over captions.

        chair_i: hallucinated of all mentions (section 3.1); 0 where nothing is mentioned at all,
            which is why it is to be read beside recall.
        chair_s: captions with a hallucinated mention, of all captions, also those without objects.
        recall: objects of the images that are mentioned; nan where no image shows any.
        mentions: objects mentioned per caption.
        """
        captions = np.ones(len(self))
        silent = not self.mentions.sum()
        return {
            "chair_i": ratio(self.hallucinated, captions if silent else self.mentions),
            "chair_s": ratio(self.hallucinated > 0, captions),
            "recall": ratio(self.recalled, self.present),
            "mentions": ratio(self.mentions, captions),
        }

    def figures(
        self, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
    ) -> dict[str, Interval]:
        """The estimates with their bootstrap intervals."""
        return {
            name: estimate.interval(level=level, resamples=resamples, seed=seed)
            for name, estimate in self.estimates().items()
        }


def chair(
    mentioned: Sequence[Sequence[Hashable]], present: Sequence[Collection[Hashable]]
) -> Chair:
    """Count what captions mention against what their images show.

    mentioned: for each caption the objects it mentions, in their canonical names, with repetitions.
    present: for each caption the objects its image shows.
    Raises UserError where the two differ in length or are empty, and where a text stands in place
    of a list of objects.
    """
    if len(mentioned) != len(present):
        raise UserError(
            f"{len(mentioned)} captions but objects of {len(present)} images",
            hint="give the objects present once per caption, in the same order.",
        )
    if not len(mentioned):
        raise UserError("there are no captions to score")
    for index, objects in enumerate((*mentioned, *present)):
        if isinstance(objects, str | Mapping):
            raise UserError(
                f"caption {index % len(mentioned)}: the objects are a {type(objects).__name__}",
                hint="find the objects in the text first, and give them as a list of names.",
            )
    shown = [set(objects) for objects in present]
    pairs = list(zip(mentioned, shown, strict=True))
    return Chair(
        mentions=_counts(len(said) for said, _ in pairs),
        hallucinated=_counts(sum(name not in there for name in said) for said, there in pairs),
        recalled=_counts(len(there.intersection(said)) for said, there in pairs),
        present=_counts(len(there) for _, there in pairs),
    )


def _counts(found: Iterable[int]) -> Counts:
    return np.fromiter(found, dtype=np.int64)
