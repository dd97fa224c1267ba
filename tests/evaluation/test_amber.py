"""AMBER's counts against cases worked by hand, and its figures."""

from __future__ import annotations

import random

import pytest

from mmalign.evaluation.hallucination.amber import (
    Annotation,
    Words,
    amber_score,
    describe,
    discriminative,
    generative,
)
from mmalign.evaluation.intervals import mean

WORDS = Words(
    {"dog": ["puppy"], "grass": ["lawn"], "car": ["wheel"], "tree": ["branch"], "sign": []},
    safe=frozenset({"sign"}),
)
SHOWN = Annotation(truth=["dog", "grass"], hallu=["car"])


def values(texts: list[str], **options: object) -> dict[str, float]:
    found = generative([describe(text, SHOWN, WORDS, **options) for text in texts])
    return {name: figure.value for name, figure in found.items()}


def test_figures_of_one_description() -> None:
    found = values(["A dog beside a car and a tree."])
    assert found == pytest.approx({"chair": 2 / 3, "cover": 0.5, "hal": 1, "cog": 1})


def test_related_words_stand_for_their_object() -> None:
    found = describe("Puppies on the lawn", SHOWN, WORDS)
    assert (found.nouns, found.unsafe, found.covered) == (2, (), 2)
    assert describe("a wheel", SHOWN, WORDS).expected == 1


def test_words_that_are_never_wrong_still_count_as_nouns() -> None:
    found = describe("a dog, a sign", SHOWN, WORDS)
    assert (found.nouns, found.unsafe) == (2, ())


def test_words_outside_the_vocabulary_do_not_count() -> None:
    assert describe("a spaceship in the sky", SHOWN, WORDS).nouns == 0
    assert values(["a spaceship"])["chair"] == 0


def test_similar_words_are_accepted_and_may_count_as_expected_too() -> None:
    """With vectors, the tree is like both grass (shown) and car (expected)."""

    def alike(noun: str, word: str) -> bool:
        return (noun, word) in {("tree", "grass"), ("tree", "car")}

    found = describe("a tree", SHOWN, WORDS, alike)
    assert (found.unsafe, found.covered, found.expected) == ((), 1, 1)


def test_counts_equal_a_plain_reading_of_the_definition() -> None:
    """Random descriptions over random vocabularies, words compared by equality."""
    draw = random.Random(0)
    letters = "bcdfghjklm"  # no plurals
    for _ in range(50):
        related = {w: draw.sample(letters, 2) for w in draw.sample(letters, 6)}
        objects = draw.sample(sorted(related), 4)
        truth, hallu = objects[:2], objects[2:]
        safe = frozenset(draw.sample(letters, 1))
        text = draw.choices([*letters, "x", "y"], k=12)
        vocabulary = {*related, *(w for words in related.values() for w in words)}
        nouns = [word for word in text if word in vocabulary]
        tested = [word for word in nouns if word not in safe]
        family = {name: {name, *related[name]} for name in objects}
        shown = set.union(*(family[name] for name in truth))
        found = describe(" ".join(text), Annotation(truth, hallu), Words(related, safe))
        assert found.nouns == len(nouns)
        assert len(found.unsafe) == sum(word not in shown for word in tested)
        # A word of two families counts for one object only, as in the published scorer.
        most = sum(any(word in family[name] for word in tested) for name in truth)
        assert found.covered <= most
        if not family[truth[0]] & family[truth[1]]:
            assert found.covered == most
        errors = [word for word in tested if word not in shown]
        if not family[hallu[0]] & family[hallu[1]]:
            assert found.expected == sum(
                any(word in family[name] for word in errors) for name in hallu
            )


def test_an_error_says_where_it_is() -> None:
    text = "The dog sees two Trees."
    (place,) = describe(text, SHOWN, WORDS).unsafe
    assert text[slice(*place)] == "Trees"


def test_the_score_of_the_published_figures() -> None:
    assert amber_score(mean([0.077, 0.077]), mean([0.74, 0.74])).value == pytest.approx(0.8315)


def test_questions_by_dimension() -> None:
    kinds = ["discriminative-hallucination", "discriminative-attribute-state", "relation"]
    found = discriminative(kinds, ["no", "yes", None], ["no", "no", "yes"], ["a", "a", "b"])
    assert found["accuracy"].value == pytest.approx(1 / 3)
    assert found["existence/accuracy"].value == 1
    assert found["attribute/f1"].value == 0
    assert found["relation/accuracy"].value == 0
