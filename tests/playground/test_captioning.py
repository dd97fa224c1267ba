"""Captions of scenes are judged by what was drawn."""

from __future__ import annotations

from mmalign.playground.captioning import MOST_TOKENS, judge, merit
from mmalign.playground.scenes import Scene, Thing, caption
from mmalign.playground.vision_language import processor

SCENE = Scene((Thing("red", "circle", 0), Thing("blue", "heart", 4)), look=0)


def test_merit_counts_what_is_right_less_what_is_wrong() -> None:
    assert merit("There is a red circle and a blue heart.", SCENE) == 1
    assert merit("There is a red circle.", SCENE) == 0.5
    assert merit("There is a red circle, a red star and a blue heart.", SCENE) == 0.5
    assert merit("There is a red circle and a red circle.", SCENE) == 0
    assert merit("There is something.", SCENE) == 0


def test_judging_counts_what_is_not_there_and_what_is_missed() -> None:
    counted = judge(["There is a red circle and a red star."], [SCENE])
    assert (counted.mentions, counted.hallucinated) == ([2], [1])
    assert (counted.recalled, counted.present) == ([1], [2])


def test_a_caption_of_seven_things_fits() -> None:
    seven = caption(["red circle"] * 7)
    assert len(processor().tokenizer(seven).input_ids) < MOST_TOKENS
