"""CHAIR against counts made by hand, and the properties that its definition promises."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from mmalign.errors import UserError
from mmalign.evaluation.hallucination.chair import chair
from mmalign.evaluation.intervals import bootstrap_ratio


def test_mentions_count_with_repetitions_and_captions_once() -> None:
    figures = chair([["dog", "dog", "cat"], ["car"]], [{"dog"}, {"car"}]).figures()
    assert figures["chair_i"].value == 1 / 4
    assert figures["chair_s"].value == 1 / 2
    assert figures["recall"].value == 1
    assert figures["mentions"].value == 2


def test_counts_are_kept_per_caption() -> None:
    found = chair([["dog", "dog", "cat"], [], ["sky"]], [{"dog", "ball"}, {"car"}, set()])
    assert found.mentions.tolist() == [3, 0, 1]
    assert found.hallucinated.tolist() == [1, 0, 1]
    assert found.recalled.tolist() == [1, 0, 0]
    assert found.present.tolist() == [2, 1, 0]


def test_a_silent_model_hallucinates_nothing_and_recalls_nothing() -> None:
    figures = chair([[], []], [{"dog"}, {"cat", "car"}]).figures()
    assert figures["chair_i"].value == figures["chair_s"].value == figures["recall"].value == 0


def test_images_without_objects_leave_recall_undefined() -> None:
    figures = chair([["dog"], []], [set(), set()]).figures()
    assert math.isnan(figures["recall"].value)
    assert figures["chair_i"].value == 1


def test_a_caption_without_objects_lowers_the_share_of_sentences_only() -> None:
    said, shown = [["dog", "cat"], ["car"]], [{"dog"}, {"car"}]
    before = chair(said, shown).figures()
    after = chair([*said, []], [*shown, set()]).figures()
    assert after["chair_s"].value < before["chair_s"].value
    assert after["chair_i"].value == before["chair_i"].value


def values(items: list[tuple[list[str], set[str]]]) -> dict[str, float]:
    found = chair([said for said, _ in items], [shown for _, shown in items])
    return {name: figure.value for name, figure in found.figures(resamples=10).items()}


def test_order_does_not_matter() -> None:
    draw = random.Random(0)
    items = [(draw.choices("abcd", k=3), set(draw.sample("abcd", 2))) for _ in range(20)]
    straight = values(items)
    draw.shuffle(items)
    assert values(items) == straight


def test_the_interval_of_a_ratio_agrees_with_the_delta_method() -> None:
    draw = np.random.default_rng(0)
    below = draw.integers(1, 9, size=400)
    above = draw.binomial(below, 0.2)
    found = bootstrap_ratio(above, below)
    residual = above - found.value * below
    error = residual.std(ddof=1) / math.sqrt(400) / below.mean()
    assert found.high - found.value == pytest.approx(1.96 * error, rel=0.15)
    assert found.value - found.low == pytest.approx(1.96 * error, rel=0.15)


@pytest.mark.parametrize(
    ("said", "shown", "words"),
    [
        ([["dog"]], [], "1 captions but objects of 0 images"),
        ([], [], "no captions"),
        ([["dog"], "a dog"], [{"dog"}, {"dog"}], "caption 1: the objects are a str"),
    ],
)
def test_what_cannot_be_scored_is_refused(said: list, shown: list, words: str) -> None:
    with pytest.raises(UserError, match=words):
        chair(said, shown)
