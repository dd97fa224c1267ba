"""Yes or no: parsing and figures against POPE's and AMBER's definitions, worked by hand."""

from __future__ import annotations

import math

import pytest

from mmalign.errors import UserError
from mmalign.evaluation.hallucination.coco import Annotated
from mmalign.evaluation.hallucination.pope import SETTINGS, YesNo, questions
from mmalign.evaluation.hallucination.yes_no import detection, first_word, pope_answer
from mmalign.evaluation.intervals import Interval


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes", "yes"),
        ("No, there isn't.", "no"),
        ("There is no dog. Yes.", "no"),
        ("It is not there", "no"),
        ("Not sure", "yes"),  # as the published parser has it
        ("There is no doubt, yes", "no"),
        ("", "yes"),
    ],
)
def test_pope_reads_answers_as_published(text: str, answer: str) -> None:
    assert pope_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [("Yes, there is.", "yes"), (" no", "no"), ("Nobody", None), ("", None), ("The dog", None)],
)
def test_the_first_word_answers(text: str, answer: str | None) -> None:
    assert first_word(text) == answer


def test_figures_from_counts() -> None:
    """TP 1300, FP 150, TN 1350, FN 200."""
    said = ["yes"] * 1450 + ["no"] * 1550
    truth = ["yes"] * 1300 + ["no"] * 150 + ["no"] * 1350 + ["yes"] * 200
    found = {name: figure.value for name, figure in detection(said, truth, "yes").items()}
    assert found["accuracy"] == pytest.approx(0.8833, abs=1e-4)
    assert found["precision"] == pytest.approx(0.8966, abs=1e-4)
    assert found["recall"] == pytest.approx(0.8667, abs=1e-4)
    assert found["f1"] == pytest.approx(0.8814, abs=1e-4)
    assert found["yes_ratio"] == pytest.approx(0.4833, abs=1e-4)


def test_no_may_be_the_positive_answer_and_nothing_an_answer() -> None:
    """Four true no; three answered no, of which two are right; one says neither."""
    said = ["no", "no", "no", None, "yes", "yes"]
    truth = ["no", "no", "yes", "no", "no", "yes"]
    found = {name: figure.value for name, figure in detection(said, truth, "no").items()}
    assert found["precision"] == pytest.approx(2 / 3)
    assert found["recall"] == 0.5
    assert found["f1"] == pytest.approx(4 / 7)
    assert found["accuracy"] == 0.5


def test_an_answer_never_given_has_no_precision() -> None:
    found = detection(["no", "no"], ["yes", "no"], "yes")
    assert math.isnan(found["precision"].interval().value)
    assert found["f1"].value == 0


def test_intervals_draw_images_where_questions_hang_together() -> None:
    """Ten images, all six questions about each right or all wrong: as good as ten questions."""
    said = ["yes"] * 30 + ["no"] * 30
    truth, images = ["yes"] * 60, [str(i // 6) for i in range(60)]
    together = detection(said, truth, "yes", images=images)["accuracy"]
    apart = detection(said, truth, "yes")["accuracy"]
    assert together.value == apart.value == 0.5
    assert (together.items, apart.items) == (10, 60)

    def width(interval: Interval) -> float:
        return interval.high - interval.low

    ratio = width(together.interval()) / width(apart.interval())
    assert ratio == pytest.approx(6**0.5, rel=0.2)


SCENES = [
    ("dog", "frisbee", "person"),
    ("dog", "frisbee", "person"),
    ("dog", "cat", "couch"),
    ("person", "car", "bus"),
    ("person", "car", "truck"),
    ("person", "pizza", "fork"),
    ("cat",),
]
ANNOTATED = {i: Annotated(f"{i}.jpg", set(names)) for i, names in enumerate(SCENES)}


def absent(made: list[YesNo], image: str) -> list[str]:
    return [line.text.split()[3] for line in made if line.label == "no" and line.image == image]


@pytest.mark.parametrize("setting", SETTINGS)
def test_half_the_questions_are_about_what_is_there(setting: str) -> None:
    made = questions(ANNOTATED, setting)
    assert len(made) == 6 * 6  # the image with one object is left out
    assert len({(line.image, line.text) for line in made}) == len(made)
    for line in made:
        shown = SCENES[int(line.image.removesuffix(".jpg"))]
        assert (line.text.split()[3] in shown) == (line.label == "yes")
    assert made == questions(ANNOTATED, setting)


def test_settings_differ_in_what_is_absent_only() -> None:
    made = [questions(ANNOTATED, setting) for setting in SETTINGS]
    there = [[line for line in lines if line.label == "yes"] for lines in made]
    assert there[0] == there[1] == there[2]


def test_popular_asks_for_the_commonest_and_adversarial_for_companions() -> None:
    popular = absent(questions(ANNOTATED, "popular"), "2.jpg")
    assert popular[0] == "person"  # in five of six images
    adversarial = questions(ANNOTATED, "adversarial")
    lines = [line for line in adversarial if line.image == "2.jpg"]
    after = {
        a.text.split()[3]: b.text.split()[3] for a, b in zip(lines[::2], lines[1::2], strict=True)
    }
    assert after["dog"] in {"frisbee", "person"}  # what dogs come with elsewhere


def test_an_article_fits_its_noun() -> None:
    shown = {0: Annotated("0.jpg", {"umbrella", "dog", "cat"}), 1: Annotated("1.jpg", set("xyz"))}
    texts = {line.text for line in questions(shown, "random")}
    assert "Is there an umbrella in the image?" in texts
    assert "Is there a dog in the image?" in texts


def test_images_with_too_few_objects_make_no_questions() -> None:
    with pytest.raises(UserError, match="no image shows 3 objects"):
        questions({0: Annotated("0.jpg", {"dog"})}, "random")
    with pytest.raises(UserError, match="too few objects"):
        questions({0: Annotated("0.jpg", {"dog", "cat", "bus"})}, "random")
