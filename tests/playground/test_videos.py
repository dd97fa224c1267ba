"""Videos of moving shapes: what is drawn is what the checker sees, and nothing else passes."""

from __future__ import annotations

import random

import numpy as np

from mmalign.playground.videos import (
    FRAMES,
    Motion,
    film,
    motions,
    score,
    seen,
)


def test_every_motion_is_seen_as_what_it_is() -> None:
    look = random.Random(0)
    for motion in motions("train") + motions("tuning") + motions("held_out"):
        for _ in range(3):
            shown = film(motion, look)
            assert shown.shape == (FRAMES, 32, 32, 3)
            assert seen(shown) == motion


def test_a_shape_that_stands_still_or_vanishes_is_no_motion() -> None:
    shown = film(Motion("red", "circle", "left"), random.Random(1))
    assert seen(np.repeat(shown[:1], FRAMES, 0)) is None
    assert seen(np.concatenate([shown[:-1], np.full_like(shown[:1], 245)])) is None


def test_backwards_is_the_other_direction_and_two_thirds_right() -> None:
    asked = Motion("blue", "square", "up")
    shown = film(asked, random.Random(2))[::-1]
    assert seen(shown) == Motion("blue", "square", "down")
    assert score(shown, asked) == 2 / 3


def test_splits_share_words_but_no_combination() -> None:
    train, tuning, held_out = (set(motions(split)) for split in ("train", "tuning", "held_out"))
    assert not train & held_out
    assert not train & tuning
    assert not tuning & held_out
    assert len(train | tuning | held_out) == 4 * 3 * 4
    for word in ("colour", "kind", "direction"):
        told = {getattr(motion, word) for motion in train}
        assert {getattr(motion, word) for motion in tuning | held_out} <= told
