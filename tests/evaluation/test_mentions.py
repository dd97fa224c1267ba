"""Objects in texts: what CHAIR's published rules find, and the list of COCO's categories."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from mmalign.errors import UserError
from mmalign.evaluation.hallucination.mentions import mentions, singular
from mmalign.evaluation.hallucination.objects import COCO, read_synonyms


def names(text: str) -> list[str]:
    return [mention.name for mention in mentions(text)]


def test_the_list_has_the_80_categories() -> None:
    assert len(COCO.objects) == 80
    assert {"hair drier", "tv", "potted plant", "sports ball", "cell phone"} <= COCO.objects


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A baby bird on a toilet seat with two hot dogs", ["bird", "toilet", "hot dog"]),
        ("A passenger train on a train track.", ["train"]),
        ("Two wine glasses, three buses, knives.", ["wine glass", "bus", "knife"]),
        ("People on skis; a man's bow tie", ["person", "skis", "person", "tie"]),
        ("The seat of the toilet", ["toilet"]),
        ("A seat by the window", ["chair"]),
        ("an orange cat eats oranges", ["cat", "orange"]),
        ("Dogs, a DOG and a doghouse", ["dog", "dog"]),
        ("nothing to see", []),
        ("", []),
    ],
)
def test_objects_are_found_as_published(text: str, expected: list[str]) -> None:
    assert names(text) == expected


def test_a_mention_says_where_it_is() -> None:
    text = "A man feeds two polar bears."
    assert [text[m.start : m.end] for m in mentions(text)] == ["man", "polar bears"]


@pytest.mark.parametrize("word", ["glass", "bus", "tennis", "skis", "scissors", "is"])
def test_words_that_only_look_plural_stay(word: str) -> None:
    assert singular(word, COCO.names) == word


def test_another_list_takes_the_place_of_ours(tmp_path: Path) -> None:
    file = tmp_path / "synonyms.txt"
    file.write_text("dog, hound\nfish, golden carp\n")
    vocabulary = read_synonyms(file)
    assert [m.name for m in mentions("Hounds, a cat, golden carps", vocabulary)] == ["dog", "fish"]
    file.write_text("dog, pet\ncat, pet\n")
    with pytest.raises(UserError, match="'pet' is both 'dog' and 'cat'"):
        read_synonyms(file)


DOUBLES = ("hot dog", "fire hydrant", "train track", "home plate", "teddy bear", "wine glass")
POOL = [word for double in DOUBLES for word in double.split()]
POOL += [
    "baby",
    "adult",
    "bird",
    "cat",
    "toilet",
    "seat",
    "passenger",
    "jet",
    "car",
    "people",
    "the",
]


def plainly(text: str, canonical: dict[str, str]) -> list[str]:
    """The published rules, step by step: two words that name one thing, then the toilet's seat,
    then the list."""
    merged = {double: double for double in DOUBLES} | {"toilet seat": "toilet"}
    merged |= {f"{age} {a}": a for age in ("baby", "adult") for a in ("bird", "cat", "dog", "bear")}
    merged |= {f"passenger {vehicle}": vehicle for vehicle in ("jet", "train")}
    words, left = [], text.split()
    while left:
        double = " ".join(left[:2])
        taken = 2 if double in merged else 1
        words.append(merged.get(double, left[0]))
        left = left[taken:]
    if "toilet" in words:
        words = [word for word in words if word != "seat"]
    return [canonical[word] for word in words if word in canonical]


def test_random_texts_are_read_by_the_published_rules(tmp_path: Path) -> None:
    lines = ["person, people, baby, adult, passenger", "fire hydrant, hydrant", "airplane, jet"]
    lines += ["chair, seat", "bird", "cat", "dog", "train", "bear", "toilet", "car"]
    file = tmp_path / "synonyms.txt"
    file.write_text("\n".join([*lines, "hot dog", "teddy bear", "wine glass"]))
    vocabulary = read_synonyms(file)
    draw = random.Random(0)
    for _ in range(300):
        text = " ".join(draw.choices(POOL, k=12))
        found = [mention.name for mention in mentions(text, vocabulary)]
        assert found == plainly(text, dict(vocabulary.names)), text
