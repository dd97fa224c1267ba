"""Planted faults change what they say they change, and nothing else."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmalign.data_builders.text_faults import ENGLISH, KINDS, Lexicon, faulty

SCENE = "Two dogs stand to the left of an apple. A red car is parked in front of the house."


@pytest.mark.parametrize(
    ("kind", "text", "changed"),
    [
        ("relation", "The cup is above.", "The cup is below."),
        ("relation", "A cup to the left of a fork.", "A cup to the right of a fork."),
        ("count", "Two dogs.", "Three dogs."),
        ("count", "One dog.", "Two dogs."),
        ("count", "one person waits", "two people waits"),
        ("attribute", "A large box.", "A small box."),
    ],
)
def test_faults_with_one_outcome(kind: str, text: str, changed: str) -> None:
    found = faulty(text, Random(0), kinds=[kind])
    assert found is not None
    assert (found.text, found.kind) == (changed, kind)


def test_articles_follow_the_object() -> None:
    only = Lexicon((), (), {"apple": "apples", "pear": "pears"})
    found = faulty("There is an apple.", Random(0), kinds=["swap"], lexicon=only)
    assert found is not None
    assert found.text == "There is a pear."
    back = faulty("A pear lies there.", Random(0), kinds=["swap"], lexicon=only)
    assert back is not None
    assert back.text == "An apple lies there."


def test_a_planted_object_was_not_there() -> None:
    for seed in range(20):
        found = faulty(SCENE, Random(seed), kinds=["plant"])
        assert found is not None
        assert found.text.startswith(SCENE)
        added = found.text[len(SCENE) :]
        assert not any(word in added for word in ("dog", "apple", " car"))
        assert any(f" {name}" in added for name in ENGLISH.objects)


def test_an_orange_is_no_colour() -> None:
    assert faulty("She eats an orange.", Random(0), kinds=["attribute"]) is None
    assert faulty("She has an orange car.", Random(0), kinds=["attribute"]) is not None


def test_words_within_words_are_left_alone() -> None:
    assert faulty("The carpet in Redmond.", Random(0), kinds=["swap", "attribute"]) is None


@given(st.sampled_from(list(KINDS)), st.integers(0, 200))
def test_the_spans_are_the_whole_difference(kind: str, seed: int) -> None:
    found = faulty(SCENE, Random(seed), kinds=[kind])
    assert found is not None
    assert found.text != SCENE
    (start, end), (first, last) = found.before, found.after
    assert SCENE[:start] == found.text[:first]
    assert SCENE[end:] == found.text[last:]
    assert faulty(SCENE, Random(seed), kinds=[kind]) == found


@given(st.text(max_size=60), st.integers(0, 5))
def test_any_text_is_taken(text: str, seed: int) -> None:
    found = faulty(text, Random(seed))
    assert found is None or found.text != text
