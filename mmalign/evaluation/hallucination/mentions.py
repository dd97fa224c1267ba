"""Which objects a text mentions, and where: words, made singular, looked up with their neighbours.

The rules are CHAIR's (arXiv:1809.02156, section 3.1, and its published code): two words that name
one thing count once, "baby" before an animal is no person, and a toilet's seat is no chair.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from mmalign.evaluation.hallucination.objects import COCO, Vocabulary

LONGEST = 3  # words of a name

IRREGULAR = {
    "people": "person",
    "men": "man",
    "women": "woman",
    "children": "child",
    "policemen": "policeman",
    "gentlemen": "gentleman",
    "mice": "mouse",
    "geese": "goose",
    "oxen": "ox",
    "calves": "calf",
    "knives": "knife",
    "pocketknives": "pocketknife",
    "loaves": "loaf",
    "leaves": "leaf",
    "shelves": "shelf",
    "wolves": "wolf",
    "feet": "foot",
    "teeth": "tooth",
    "buses": "bus",
    "busses": "bus",
    "minibuses": "minibus",
    "movies": "movie",
    "cookies": "cookie",
    "ties": "tie",
    "bowties": "bowtie",
    "neckties": "necktie",
    "doggies": "doggie",
    "headphones": "headphone",
    "axes": "axe",
    "canoes": "canoe",
    "shoes": "shoe",
}


@dataclass(frozen=True)
class Mention:
    """An object's canonical name, and the characters of the text that mention it."""

    name: str
    start: int
    end: int


def mentions(text: str, vocabulary: Vocabulary = COCO) -> list[Mention]:
    """The objects that a text mentions, repetitions included, in its order."""
    words = [
        (singular(found.group(), vocabulary.names), *found.span())
        for found in re.finditer(r"[a-z]+", text.lower())
    ]
    toilet = any(word == "toilet" for word, _, _ in words)
    mentioned = []
    at = 0
    while at < len(words):
        taken, name = _at(words, at, vocabulary)
        start, end = words[at][1], words[at + taken - 1][2]
        if name is not None and not (toilet and taken == 1 and words[at][0] == "seat"):
            mentioned.append(Mention(name, start, end))
        at += taken
    return mentioned


def _at(
    words: list[tuple[str, int, int]], at: int, vocabulary: Vocabulary
) -> tuple[int, str | None]:
    """How many words the longest name has that begins here, and the object that it names."""
    for length in range(min(LONGEST, len(words) - at), 1, -1):
        phrase = " ".join(word for word, _, _ in words[at : at + length])
        if phrase in vocabulary.phrases:
            return length, vocabulary.phrases[phrase]
    return 1, vocabulary.names.get(words[at][0])


def singular(word: str, known: Collection[str] = ()) -> str:
    """The singular of an English noun in lower case; words that are `known` stay as they are."""
    if word in known:
        return word
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    if word.endswith(("sses", "shes", "ches", "xes", "zes")):
        return word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 2:
        return word[:-1]
    return word
