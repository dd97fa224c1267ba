"""Two coloured shapes beside one another: what is drawn is what is asked for, and what is read."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np

from mmalign.playground.relations import (
    CELL,
    PALETTE,
    SIDE,
    Asked,
    Thing,
    careless_caption,
    draw,
    promise,
    prompts,
    score,
    seen,
)

RED_CIRCLE, BLUE_SQUARE = Thing("red", "circle"), Thing("blue", "square")
ASKED = Asked(RED_CIRCLE, BLUE_SQUARE, "left of")


def test_every_drawing_is_read_as_it_was_asked_for() -> None:
    hand = random.Random(0)
    assert all(score(draw(asked, hand), asked) == 1 for asked in prompts("train"))


def test_reading_bears_what_an_image_tokenizer_does_to_a_picture() -> None:
    hand, noise = random.Random(0), np.random.default_rng(0)
    for asked in prompts("held_out")[:50]:
        blurred = draw(asked, hand) + noise.normal(0, 15, (SIDE, SIDE, 3))
        assert score(blurred.clip(0, 255).astype(np.uint8), asked) == 1


def test_a_score_counts_facts() -> None:
    pixels = draw(ASKED, random.Random(0))
    assert score(pixels, replace(ASKED, relation="above")) == 0.75
    assert score(pixels, replace(ASKED, second=Thing("green", "square"))) == 0.5
    assert score(pixels, replace(ASKED, first=BLUE_SQUARE, second=RED_CIRCLE)) == 0.75
    mixed_up = Asked(Thing("blue", "circle"), Thing("red", "square"), "left of")
    assert score(pixels, mixed_up) == 0.25  # two things, and nothing else is right
    assert score(np.full_like(pixels, 245), ASKED) == 0.0


def test_the_relation_leaves_the_row_open() -> None:
    hand = random.Random(0)
    rows = {tuple(cell == RED_CIRCLE for cell in seen(draw(ASKED, hand))) for _ in range(20)}
    assert rows == {(True, False, False, False), (False, False, True, False)}


def test_an_upper_half_promises_what_it_may_become() -> None:
    hand = random.Random(0)
    for asked in prompts("train")[:40]:
        pixels = draw(asked, hand)
        shown = sum(cell != "empty" for cell in seen(pixels[:CELL]))
        assert promise(pixels[:CELL], asked) == (1 + shown) / 3
    beside = draw(ASKED, random.Random(0))
    upper = seen(beside)[0] == RED_CIRCLE
    mixed_up = Asked(Thing("blue", "circle"), Thing("red", "square"), "left of")
    above = replace(ASKED, relation="above")
    assert promise(beside, mixed_up) == (0 if upper else 1 / 3)
    assert promise(np.full_like(beside, 245), ASKED) == 1 / 3, "both may come below"
    assert promise(np.full_like(beside, 245), above) == 0, "one of them is missing"


def test_half_of_one_colour_and_half_of_another_is_neither() -> None:
    pixels = draw(ASKED, random.Random(1)).copy()
    other = draw(replace(ASKED, first=Thing("green", "circle")), random.Random(1))
    column = slice(0, CELL // 2)
    pixels[:, column] = other[:, column]
    assert score(pixels, ASKED) < 1
    assert "unclear" in seen(pixels)


def test_no_training_prompt_or_careless_caption_has_a_held_out_combination() -> None:
    annotator = random.Random(0)
    train = prompts("train")
    everything = [*train, *prompts("tuning"), *prompts("held_out")]
    assert len(everything) == len({asked.text for asked in everything}) == 480
    written = [careless_caption(asked, annotator, carelessness=1.0) for asked in train]
    assert {asked.split for asked in written} == {"train"}
    assert all(one != other for one, other in zip(written, train, strict=True))
    assert {thing.colour for asked in train for thing in (asked.first, asked.second)} == set(
        PALETTE
    )


def test_a_prompt_is_a_sentence() -> None:
    assert ASKED.text == "a red circle left of a blue square"
