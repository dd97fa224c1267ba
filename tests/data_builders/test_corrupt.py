"""A true answer is preferred to a faulty one, and to itself under an image it is not about."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mmalign.data_builders.corrupt import build
from mmalign.data_builders.engine import Refused
from mmalign.data_builders.records import Record
from mmalign.errors import UserError
from mmalign.media import open_image, png
from mmalign.records import Media, Preference, media_of, text_of

PIXELS = np.random.default_rng(0).integers(0, 255, (32, 40, 3), dtype=np.uint8)
PHOTO = png(Image.fromarray(PIXELS))
RECORD = Record(image=PHOTO, caption="A red car to the left of a dog.")


def test_one_pair_for_the_answer_and_one_for_the_image() -> None:
    words, image = build([RECORD])
    assert isinstance(words, Preference)
    assert isinstance(image, Preference)
    assert text_of(words.chosen.response) == RECORD.caption
    assert text_of(words.rejected.response) != RECORD.caption
    assert words.chosen.prompt == words.rejected.prompt
    assert image.chosen.response == image.rejected.response
    (own,), (other,) = media_of(image.chosen.prompt), media_of(image.rejected.prompt)
    assert (own, open_image(other).size) == (PHOTO, (40, 32))
    assert own != other
    assert [p.source.parents for p in (words, image)] == [(RECORD.id,)] * 2


def test_what_was_changed_is_marked_and_written_down() -> None:
    (made,) = build([RECORD], side="answer", faults=("relation",), span_weight=3.0)
    assert isinstance(made, Preference)
    # silenced: texts
    (before,), (after,) = (s.response[0].weights for s in made.candidates)  # type: ignore[union-attr]
    assert RECORD.caption is not None
    assert RECORD.caption[before.start : before.end] == "to the left of"
    assert text_of(made.rejected.response)[after.start : after.end] == "to the right of"
    assert made.source.details["fault"] == "relation"


def test_equal_seeds_draw_equal_faults() -> None:
    assert list(build([RECORD])) == list(build([RECORD]))
    drawn = {
        text_of(next(build([RECORD], side="answer", seed=s)).rejected.response) for s in range(9)
    }  # type: ignore[union-attr]  # texts
    assert len(drawn) > 3


def test_nothing_to_corrupt_is_refused_and_a_broken_image_is_the_inputs_fault() -> None:
    (empty,) = build([Record(image=PHOTO)])
    (plain,) = build([Record(caption="Hm.")], side="answer", faults=("count",))
    (unseen,) = build([Record(caption="A dog.")], side="image")
    for refused, reason in ((empty, "neither"), (plain, "no fault"), (unseen, "no image")):
        assert isinstance(refused, Refused)
        assert reason in refused.reason
    with pytest.raises(ValueError, match="image"):
        list(build([Record(image=Media("image", data=b"x"), caption="A dog.")]))


def test_unknown_names_are_the_users_fault() -> None:
    with pytest.raises(UserError, match="typo"):
        next(build([RECORD], faults=("typo",)))
    with pytest.raises(UserError, match="sepia"):
        next(build([RECORD], alterations=("sepia",)))
