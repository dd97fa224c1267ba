"""The checker of pictures knows what was drawn, whatever was left open."""

from __future__ import annotations

import random

import numpy as np
import pytest

from mmalign.playground.pictures import (
    BACKGROUND,
    COLOURS,
    CORNERS,
    KINDS,
    SIDE,
    Shape,
    careless_caption,
    draw,
    foreground,
    prompts,
    score,
    seen,
)

ASKED = Shape("red", "circle", "top-left")


def empty() -> np.ndarray:
    return np.full((SIDE, SIDE, 3), BACKGROUND, np.uint8)


def test_the_checker_sees_what_was_drawn():
    look = random.Random(0)
    for asked in 3 * (prompts("train") + prompts("tuning") + prompts("held_out")):
        assert seen(draw(asked, look)) == asked


@pytest.mark.parametrize(
    ("painted", "share"),
    [
        (ASKED, 1.0),
        (Shape("green", "circle", "top-left"), 2 / 3),
        (Shape("red", "square", "top-left"), 2 / 3),
        (Shape("red", "square", "top-right"), 1 / 3),
        (Shape("black", "triangle", "bottom-right"), 0.0),
    ],
)
def test_a_picture_scores_the_words_that_it_keeps(painted: Shape, share: float):
    assert score(draw(painted, random.Random(1)), ASKED) == pytest.approx(share)


def test_what_is_no_single_shape_scores_nothing():
    assert seen(empty()) is None
    noise = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    assert seen(noise) is None
    two = draw(ASKED, random.Random(2)).copy()
    two[SIDE // 2 :] = draw(Shape("red", "circle", "bottom-left"), random.Random(3))[SIDE // 2 :]
    assert seen(two) is None
    spotted = draw(ASKED, random.Random(4)).copy()
    painted = foreground(spotted)
    painted[::2] = False
    spotted[painted] = COLOURS["green"]
    assert seen(spotted) is None
    assert score(spotted, ASKED) == 0.0


def test_the_splits_share_words_but_no_combination():
    train, tuning, held_out = prompts("train"), prompts("tuning"), prompts("held_out")
    together = {*train, *tuning, *held_out}
    assert len(together) == len(train) + len(tuning) + len(held_out)
    assert len(together) == len(COLOURS) * len(KINDS) * len(CORNERS)
    for words in (COLOURS, KINDS, CORNERS):
        for word in words:
            assert any(word in shape.text.split() for shape in train)
    assert len(held_out) >= 20
    assert prompts("train") == train
    assert prompts("train", seed=1) != train


def test_a_careless_caption_has_one_word_wrong_and_is_one_to_train_on():
    annotator = random.Random(0)
    for asked in prompts("train"):
        written = careless_caption(asked, annotator, carelessness=1.0)
        pairs = zip(asked.text.split(), written.text.split(), strict=True)
        assert sum(one != other for one, other in pairs) == 1
        assert written.split == "train"
        assert careless_caption(asked, annotator, carelessness=0.0) == asked


def test_the_foreground_is_where_something_is_painted():
    painted = foreground(draw(Shape("black", "square", "top-right"), random.Random(3)))
    assert painted[: SIDE // 2, SIDE // 2 :].sum() > 80
    assert not painted[SIDE // 2 :].any()
    assert not painted[:, : SIDE // 2].any()
