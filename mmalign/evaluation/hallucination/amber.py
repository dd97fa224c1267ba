"""AMBER: which nouns of a description are in its image, and questions with a known yes or no.

arXiv:2311.07397, and the published scorer for what the paper leaves open. Nouns are the words of
the benchmark's own vocabulary; the scorer tags parts of speech first, so that a verb which looks
like one of them counts here and not there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import eq

import numpy as np

from mmalign.evaluation.hallucination.mentions import singular
from mmalign.evaluation.hallucination.yes_no import detection
from mmalign.evaluation.intervals import Estimate, combined, ratio

Alike = Callable[[str, str], bool]
"""Whether two words mean the same, as vectors see it; the scorer asks for a cosine above 0.8."""

SIMILAR = 0.8


@dataclass(frozen=True)
class Annotation:
    """What is known of an image that is described.

    truth: objects that it shows. hallu: objects that people expect there and that it does not show.
    """

    truth: Sequence[str]
    hallu: Sequence[str]


@dataclass(frozen=True)
class Words:
    """The benchmark's vocabulary, in lower case: words that go with a word, and words that are
    never wrong."""

    related: Mapping[str, Sequence[str]]
    safe: frozenset[str] = frozenset()

    @cached_property
    def known(self) -> frozenset[str]:
        """All words that count as nouns."""
        return frozenset(self.related) | {w for words in self.related.values() for w in words}

    def families(self, objects: Sequence[str]) -> list[tuple[str, int]]:
        """Words that stand for an object, each with the object's place, in the scorer's order:
        what goes with the objects first, then the objects."""
        found = [(word, i) for i, name in enumerate(objects) for word in self.related.get(name, ())]
        return found + [(name, i) for i, name in enumerate(objects)]


@dataclass(frozen=True)
class Described:
    """Counts of one description.

    nouns: of the vocabulary. unsafe: places (start, end) of those that the image does not show.
    covered, expected: objects of truth, and of hallu, that are spoken of.
    """

    nouns: int
    unsafe: tuple[tuple[int, int], ...]
    covered: int
    truth: int
    expected: int
    hallu: int


def describe(
    text: str, annotation: Annotation, words: Words, alike: Alike | None = None
) -> Described:
    """Count a description's nouns. alike: without it, only equal words are the same."""
    right, wrong = words.families(annotation.truth), words.families(annotation.hallu)
    covered: set[int] = set()
    expected: set[int] = set()
    unsafe, nouns = [], 0
    for found in re.finditer(r"[^\W\d_]+(?:-[^\W\d_]+)*", text):
        noun = singular(found.group().lower(), words.known)
        if noun not in words.known:
            continue
        nouns += 1
        if noun in words.safe:
            continue
        place = _first(right, noun, eq)
        if place is None:
            expected |= _set(_first(wrong, noun, eq))
            if alike is not None:
                expected |= _set(_first(wrong, noun, alike))
                place = _first(right, noun, alike)
        if place is None:
            unsafe.append(found.span())
        covered |= _set(place)
    return Described(
        nouns, tuple(unsafe), len(covered), len(annotation.truth), len(expected),
        len(annotation.hallu),
    )  # fmt: skip


def generative(found: Sequence[Described]) -> dict[str, Estimate]:
    """chair: nouns that are not there. cover: objects that are spoken of. hal: descriptions with a
    noun that is not there. cog: expected objects, of all that people expect, that are spoken of in
    error. As shares; the paper gives them in percent."""
    columns = {
        name: np.array([getattr(each, name) for each in found])
        for name in ("nouns", "covered", "truth", "expected", "hallu")
    }
    unsafe = np.array([len(each.unsafe) for each in found])
    silent = not columns["nouns"].sum()
    return {
        "chair": ratio(unsafe, np.ones(len(found)) if silent else columns["nouns"]),
        "cover": ratio(columns["covered"], columns["truth"]),
        "hal": ratio(unsafe > 0, np.ones(len(found))),
        "cog": ratio(columns["expected"], columns["hallu"]),
    }


def discriminative(
    kinds: Sequence[str], said: Sequence[str | None], truth: Sequence[str], images: Sequence[str]
) -> dict[str, Estimate]:
    """Figures over all questions, then by dimension; the positive answer is no.

    kinds: as the annotations have them, such as "discriminative-attribute-state". images: which
    one each question is about.
    """
    found = detection(said, truth, "no", images=images)
    dimensions = [_dimension(kind) for kind in kinds]
    for name in dict.fromkeys(dimensions):
        rows = [i for i, dimension in enumerate(dimensions) if dimension == name]
        part = detection(
            [said[i] for i in rows],
            [truth[i] for i in rows],
            "no",
            images=[images[i] for i in rows],
        )
        found |= {f"{name}/{metric}": figure for metric, figure in part.items()}
    return found


def amber_score(chair: Estimate, f1: Estimate) -> Estimate:
    """(1 - CHAIR + F1) / 2, as a share."""
    return combined(lambda wrong, right: (1 - wrong + right) / 2, chair, f1)


def _dimension(kind: str) -> str:
    """The scorer's names: "hallucination" asks for existence, what is left for a relation."""
    if kind == "discriminative-hallucination":
        return "existence"
    return "attribute" if kind.startswith("discriminative-attribute") else "relation"


def _first(family: Sequence[tuple[str, int]], noun: str, same: Alike) -> int | None:
    return next((place for word, place in family if same(noun, word)), None)


def _set(place: int | None) -> set[int]:
    return set() if place is None else {place}
