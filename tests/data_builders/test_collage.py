"""Every image lies where its box says and bears its label, and questions name the right one."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from photographs import PHOTOGRAPHS
from PIL import Image

from mmalign import cli
from mmalign.data import open_dataset
from mmalign.data_builders.canvases import GRIDS, fitted, grid, picture_in_picture
from mmalign.data_builders.collage import build
from mmalign.data_builders.engine import Refused
from mmalign.data_builders.records import Record
from mmalign.errors import UserError
from mmalign.media import open_image, png
from mmalign.records import Media, Preference, media_of, text_of

COLOURS = [(255 - 20 * i, 60 + 20 * i, 30 * i) for i in range(9)]


def plain(number: int, width: int = 60, height: int = 40) -> Image.Image:
    return Image.new("RGB", (width, height), COLOURS[number])


def records(count: int, **fields: Any) -> list[Record]:
    fields = {"question": "What is it?", "answers": ("A colour.",)} | fields
    return [Record(image=png(plain(i)), **fields) for i in range(count)]


def made(inputs: Sequence[Record], **options: Any) -> list[Preference]:
    options = {"cell": 32, "margin": 8, "image_format": "png"} | options
    found = list(build(inputs, **options))
    assert all(isinstance(each, Preference) for each in found)
    return found  # type: ignore[return-value]  # asserted above


@pytest.mark.parametrize("count", GRIDS)
def test_grids_have_the_published_sizes(count: int) -> None:
    canvas = grid([plain(i) for i in range(count)])
    published = {2: (936, 488), 3: (1424, 488), 4: (936, 976), 6: (1424, 976), 9: (1424, 1464)}
    width, height = canvas.image.size
    assert (width, height) == published[count]
    assert (height // 448) * (width // 448) == count
    for number, (x0, y0, x1, y1) in enumerate(canvas.boxes):
        row, column = divmod(number, GRIDS[count][1])
        assert (x0, y0) == (488 * column, 40 + 488 * row)
        assert (x1 - x0, y1 - y0) == (448, 299)
        inside = np.asarray(canvas.image.crop((x0, y0, x1, y1)))
        assert (inside == COLOURS[number]).all()
        label = np.asarray(canvas.image.crop((x0, y0 - 40, x0 + 200, y0)))
        assert (label[:, :10] == 255).all()  # set in from the left
        assert (label < 128).any()
    assert grid([plain(0)] * count, square=True).image.size == (max(width, height),) * 2
    assert grid([plain(0)] * 2, labels=False).image.size == (936, 448)


def test_the_inner_picture_lies_in_the_middle_and_fills_seven_tenths() -> None:
    canvas = picture_in_picture(plain(0, 30, 30), plain(1, 200, 100))
    assert canvas.boxes == ((65, 15, 135, 85), (0, 0, 200, 100))
    wide = picture_in_picture(plain(0, 30, 30), plain(1, 200, 100), square=True)
    assert wide.image.size == (200, 200)
    assert wide.boxes == ((65, 65, 135, 135), (0, 50, 200, 150))
    assert wide.image.getpixel((100, 100)) == COLOURS[0]
    assert wide.image.getpixel((5, 60)) == COLOURS[1]
    assert wide.image.getpixel((5, 40)) == (255, 255, 255)


def test_the_image_that_is_asked_about_is_the_records_own() -> None:
    inputs = records(9)
    by_id = {record.id: number for number, record in enumerate(inputs)}
    layouts = Counter[str]()
    for preference in made(inputs, per_image=8):
        details = preference.source.details
        own = by_id[preference.source.parents[0]]
        target, layout = details["target"], details["layout"]
        shown = media_of(preference.chosen.prompt)
        question = text_of(preference.chosen.prompt[0].parts)
        layouts[layout] += 1
        # silenced: a picture
        assert details["images"][target - 1] == inputs[own].image.digest  # type: ignore[union-attr]
        assert len(set(details["images"])) == details["count"]
        assert len(preference.source.parents) == details["count"]
        assert text_of(preference.chosen.response) == "A colour."
        if layout == "sequence":
            assert shown[target - 1] == inputs[own].image
            assert question.endswith(f"\nIn Image{target}, what is it?")
            assert question.startswith("Image1:\nImage2:\n")
        else:
            image, box = open_image(shown[0]), details["boxes"][target - 1]["box"]
            assert [each["target"] for each in details["boxes"]].index(True) == target - 1
            x, y = (box[0] + box[2]) // 2, (box[1] + box[3]) // 2
            assert image.getpixel((x, y)) == COLOURS[own]
            assert image.size == tuple(details["canvas"])
            assert image.width == image.height
        if layout == "grid":
            assert question == f"\nIn Image{target}, what is it?"
        if layout == "picture-in-picture":
            assert question == f"\n{details['named']}, what is it?"
    assert set(layouts) == {"sequence", "grid", "picture-in-picture"}


def test_every_question_of_a_conversation_names_the_image() -> None:
    said = [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A cup."},
        {"from": "human", "value": "I see. USB or tea?"},
        {"from": "gpt", "value": "Tea."},
        {"from": "human", "value": "DVDs in it?"},
        {"from": "gpt", "value": "No."},
    ]
    inputs = records(2, question=None, answers=(), extra={"conversations": said})
    first, _ = made(inputs, layouts=("sequence",))
    name = f"In Image{first.source.details['target']}, "
    assert [(message.role, text_of(message.parts)) for message in first.chosen.prompt] == [
        ("user", f"Image1:\nImage2:\n{name}what is it?"),
        ("assistant", "A cup."),
        ("user", f"{name}I see. USB or tea?"),
        ("assistant", "Tea."),
        ("user", f"{name}dVDs in it?"),
    ]
    assert len(media_of(first.chosen.prompt)) == 2
    assert text_of(first.chosen.response) == "No."


def test_coordinates_are_asked_about_in_sequences_only() -> None:
    inputs = records(3, answers=("It is at [0.1, 0.22, 0.5, 0.61].",))
    assert {p.source.details["layout"] for p in made(inputs, per_image=5)} == {"sequence"}
    refused = list(build(inputs, layouts=("grid",)))
    assert all(isinstance(each, Refused) and "coordinates" in each.reason for each in refused)


def test_an_image_that_is_broken_is_refused_and_shown_to_no_one() -> None:
    broken = Record(image=Media("image", data=b"no image"), question="What?", answers=("A.",))
    found = list(build([*records(3), broken], cell=32, per_image=4))
    assert [each for each in found if isinstance(each, Refused)] == [found[-1]]
    assert len(found) == 13
    (alone,) = build(records(1))
    assert isinstance(alone, Refused)
    assert "no other image" in alone.reason


def test_the_same_image_asked_about_twice_is_no_companion_of_itself() -> None:
    image = png(plain(0))
    twice = [Record(image=image, question=f"Question {i}?", answers=("A.",)) for i in range(2)]
    assert all(isinstance(each, Refused) for each in build(twice))
    (first, *_) = made([*twice, *records(3)[1:]], layouts=("grid",), grids=("9",))
    assert first.source.details["count"] == 3  # the largest grid that can be filled


def test_numbers_of_images_are_drawn_with_their_weights() -> None:
    found = made(records(9), layouts=("sequence",), sequence=("2=1", "5=3"), per_image=60)
    counts = Counter(p.source.details["count"] for p in found)
    assert set(counts) == {2, 5}
    assert abs(counts[5] / len(found) - 0.75) < 0.08
    for wrong in ("sepia", "grid=-1", "grid=x"):
        with pytest.raises(UserError, match="layouts"):
            made(records(2), layouts=(wrong,))
    with pytest.raises(UserError, match="nothing to draw"):
        made(records(2), layouts=("grid=0",))
    with pytest.raises(UserError, match="measures"):
        made(records(2), cell=0)


def test_photographs_from_the_command_line(tmp_path: Path) -> None:
    for path in PHOTOGRAPHS[-3:]:
        shutil.copy(path, tmp_path / path.name)
    (tmp_path / "china.txt").write_text("A pagoda by a lake.")
    (tmp_path / "text.jpg").write_text("no image")
    words = ["build", "collage", "--images", str(tmp_path), "--layouts", "grid", "--grids", "2"]
    out = tmp_path / "out"
    assert cli.main([*words, "--no-square", "--image-format", "png", "--out", str(out)]) == 0
    found = list(open_dataset(out))
    assert [text_of(p.chosen.response) for p in found].count("A pagoda by a lake.") == 1
    (refused,) = (out / "quarantine.jsonl").read_text().splitlines()
    assert "text.jpg" in json.loads(refused)["reason"]
    by_digest = {Media("image", path=str(path)).digest: path for path in PHOTOGRAPHS[-3:]}
    assert len(found) == 3
    for preference in found:
        canvas = open_image(media_of(preference.chosen.prompt)[0])
        assert canvas.size == (936, 488)
        details = preference.source.details
        for box, digest in zip(details["boxes"], details["images"], strict=True):
            original = fitted(open_image(Media("image", path=str(by_digest[digest]))), 448, 448)
            assert (np.asarray(canvas.crop(tuple(box["box"]))) == np.asarray(original)).all()
