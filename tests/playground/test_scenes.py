"""Scenes are what they say they are: same seed, same picture; the checker reads what is written."""

from __future__ import annotations

import io
import random

import pytest
from PIL import Image

from mmalign.playground.scenes import (
    BACKGROUND,
    COLOURS,
    COMPANIONS,
    GRID,
    MOST,
    SHAPES,
    SIZE,
    Scene,
    Thing,
    ask,
    ask_among,
    caption,
    careless_caption,
    draw_scene,
    mentioned,
    scenes,
    yes_no,
)
from mmalign.records import media_of, text_of

RED_CIRCLE, BLUE_HEART = Thing("red", "circle", 0), Thing("blue", "heart", 4)


def test_equal_seeds_give_equal_scenes_and_pictures() -> None:
    first, again, other = (scenes("apart", 20, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert first[0].image().digest == again[0].image().digest


def test_a_scene_has_one_to_four_different_things_in_different_cells() -> None:
    for kind in ("together", "apart"):
        for scene in scenes(kind, 300, seed=0):
            cells = [thing.cell for thing in scene.things]
            assert 1 <= len(scene.things) <= MOST
            assert cells == sorted(set(cells))
            assert len(set(scene.present)) == len(scene.things)


def test_companions_come_along_in_one_kind_of_scene_only() -> None:
    def accompanied(kind: str) -> float:
        found = [
            companion.name in scene.present
            for scene in scenes(kind, 500, seed=0)  # type: ignore[arg-type]  # a parameter
            if len(scene.things) < MOST
            for thing in scene.things
            if (companion := thing.companion())
        ]
        return sum(found) / len(found)

    assert accompanied("together") > 0.7
    assert accompanied("apart") < 0.2


@pytest.mark.parametrize("shape", SHAPES)
def test_a_thing_is_drawn_in_its_cell_and_colour_and_nowhere_else(shape: str) -> None:
    picture = draw_scene(Scene((Thing("green", shape, 5),), look=3))
    assert picture.size == (SIZE, SIZE)
    side, row, column = SIZE // GRID, 5 // GRID, 5 % GRID
    box = (column * side, row * side, (column + 1) * side, (row + 1) * side)
    cell = picture.crop(box)
    red, green, blue = cell.getpixel((side // 2, side // 2))
    near = [abs(a - b) < 20 for a, b in zip((red, green, blue), COLOURS["green"], strict=True)]
    assert all(near)
    picture.paste(BACKGROUND, box)
    assert picture.getcolors() == [(SIZE * SIZE, BACKGROUND)]


def test_shapes_look_different() -> None:
    drawn = {draw_scene(Scene((Thing("red", s, 4),), look=1)).tobytes() for s in SHAPES}
    assert len(drawn) == len(SHAPES)


def test_the_checker_reads_every_caption() -> None:
    for scene in scenes("apart", 200, seed=0):
        assert mentioned(caption(scene.present)) == list(scene.present)
    assert caption(["red star"]) == "There is a red star."
    assert caption(["red star", "blue cross", "black heart"]) == (
        "There is a red star, a blue cross and a black heart."
    )
    assert mentioned("A Red circle! Two reds, circles; a red circle.") == ["red circle"] * 2
    assert mentioned("There is nothing.") == []


def test_careless_captions_add_companions_and_nothing_else() -> None:
    draw = random.Random(0)
    scene = Scene((RED_CIRCLE, BLUE_HEART), look=0)
    always = careless_caption(scene, draw, carelessness=1.0)
    assert mentioned(always) == ["red circle", "red star", "blue heart"]
    assert careless_caption(scene, draw, carelessness=0.0) == caption(scene.present)
    full = Scene((RED_CIRCLE, *(Thing(c, "heart", i) for i, c in enumerate(COLOURS, 1))), look=0)
    four = Scene(full.things[:MOST], look=0)
    assert careless_caption(four, draw, carelessness=1.0) == caption(four.present)


def test_questions_are_answered_truly_and_hard_ones_ask_for_companions() -> None:
    draw = random.Random(0)
    scene = Scene((RED_CIRCLE, BLUE_HEART), look=0)
    asked = [yes_no(scene, draw) for _ in range(300)]
    for question, yes in asked:
        (name,) = mentioned(question)
        assert (name in scene.present) == yes
    assert 0.4 < sum(yes for _, yes in asked) / len(asked) < 0.6
    companion = f"red {COMPANIONS['circle']}"
    refused = [mentioned(question)[0] for question, yes in asked if not yes]
    assert refused.count(companion) > len(refused) / 3


def test_prompts_hold_the_pictures_and_name_the_target() -> None:
    shown = scenes("apart", 3, seed=0)
    (alone,) = media_of(ask(shown[0]))
    with Image.open(io.BytesIO(alone.content)) as picture:
        assert picture.size == (SIZE, SIZE)
    prompt = ask_among(shown, 1)
    assert [media.digest for media in media_of(prompt)] == [s.image().digest for s in shown]
    assert text_of(prompt[0].parts).endswith("In Image2, describe the image.")
