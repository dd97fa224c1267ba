"""Videos of moving shapes: what is drawn is what the checker sees, and nothing else passes."""

from __future__ import annotations

import random
from dataclasses import astuple

import numpy as np

from mmalign.playground.videos import (
    FRAMES,
    Motion,
    careless_caption,
    film,
    motions,
    score,
    seen,
)


def test_every_motion_is_seen_as_what_it_is() -> None:
    look = random.Random(0)
    for motion in motions("train") + motions("held_out"):
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
    train, held_out = set(motions("train")), set(motions("held_out"))
    assert not train & held_out
    assert len(held_out) >= 8
    for word in ("colour", "kind", "direction"):
        assert {getattr(m, word) for m in held_out} <= {getattr(m, word) for m in train}


def test_careless_captions_get_one_word_wrong_and_never_name_a_held_out_motion() -> None:
    annotator = random.Random(0)
    motion = motions("train")[0]
    written = [careless_caption(motion, annotator, carelessness=1.0) for _ in range(200)]
    for each in written:
        assert not each.held_out
        same = [a == b for a, b in zip(astuple(each), astuple(motion), strict=True)]
        assert same.count(False) == 1
    assert careless_caption(motion, annotator, carelessness=0.0) == motion
