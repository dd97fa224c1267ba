"""Whether images matter: the accuracy of preferences with the image and without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmalign.data.views import view
from mmalign.objectives.scores import LogProbs
from mmalign.records import Preference
from mmalign.training.seeds import derive


@dataclass(frozen=True)
class ImageAblation:
    """Counts of pairs by whether they are right with the image and right without it."""

    right_both: int
    only_with: int
    only_without: int
    wrong_both: int

    @property
    def pairs(self) -> int:
        return self.right_both + self.only_with + self.only_without + self.wrong_both

    @property
    def with_image(self) -> float:
        return (self.right_both + self.only_with) / self.pairs

    @property
    def without_image(self) -> float:
        return (self.right_both + self.only_without) / self.pairs

    @property
    def drop(self) -> float:
        """Accuracy that is lost with the image; 0 where images do not matter."""
        return self.with_image - self.without_image


def without_images(
    preferences: Sequence[Preference], name: str = "no_image", *, seed: int = 0
) -> list[Preference]:
    """The same preferences under a view that takes their images away."""

    def blind(one: Preference) -> Preference:
        made = view(name, one, derive(seed, one.id), lambda: one)
        return replace(one, candidates=made)

    return list(map(blind, preferences))


def image_ablation(seen: LogProbs, unseen: LogProbs, *, by: str = "reward") -> ImageAblation:
    """From log-probabilities (b 2), chosen first, of the same pairs with and without their image.

    by: "reward" compares log-ratios to the reference, "likelihood" log-probabilities, "mean"
    those per token. Raises ValueError for another word or no pairs.
    """
    if seen.policy.numel() == 0:
        raise ValueError("no pairs to judge whether images matter")
    first, second = _right(seen, by), _right(unseen, by)
    counts = [first & second, first & ~second, ~first & second, ~first & ~second]
    return ImageAblation(*(int(count.sum()) for count in counts))


def _right(pairs: LogProbs, by: str) -> Tensor:
    match by:
        case "reward":
            score = pairs.ratio
        case "likelihood":
            score = pairs.policy
        case "mean":
            score = pairs.mean_policy
        case _:
            raise ValueError(f"by is 'reward', 'likelihood' or 'mean', not {by!r}")
    return torch.as_tensor(score[:, 0] > score[:, 1])
