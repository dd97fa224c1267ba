"""An answer in sentences, each begun and left to be completed: how BDHS keeps close to the truth.

arXiv:2407.02477, section 4.2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random
from typing import Literal

Unit = Literal["word", "character"]

END = re.compile(r"""[.!?]["'”’)\]]*(?=\s|$)|[。！？\n]""")
"""Where a sentence ends: at a full stop before white space, so not within 3.5, and at line breaks,
so that the items of a list are sentences."""

ABBREVIATED = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|vs|etc|approx|e\.g|i\.e)\.$")

YES_NO = re.compile(r"\s*(Yes|yes|No|no)\b")
OPPOSITE = {"Yes": "No", "yes": "no", "No": "Yes", "no": "yes"}


@dataclass(frozen=True)
class Begun:
    """A sentence that was begun: `before` is the answer up to it, `begin` what is kept of it, and
    `after` the white space behind it."""

    before: str
    begin: str
    after: str


def sentences(text: str) -> list[str]:
    """The pieces of a text, each with the white space behind it: joined, they are the text."""
    found: list[str] = []
    start = 0
    for end in END.finditer(text):
        if ABBREVIATED.search(text[start : end.end()]):
            continue
        space = re.match(r"\s*", text[end.end() :])
        stop = end.end() + (space.end() if space else 0)
        if text[start:stop].strip():
            found.append(text[start:stop])
            start = stop
    if start < len(text):
        found.append(text[start:])
    return found


def end_of_sentence(text: str) -> int | None:
    """Where the first sentence of a growing text ends; None while that is not certain.

    A full stop at the end may be followed by a digit yet, so it needs white space behind it.
    """
    for end in END.finditer(text):
        if ABBREVIATED.search(text[: end.end()]) or not text[: end.end()].strip():
            continue
        certain = end.end() < len(text) or end[0] in "\n。！？"
        return end.end() if certain else None
    return None


def begin(text: str, random: Random, *, swap: float = 0.5, unit: Unit = "word") -> list[Begun]:
    """Every sentence of an answer, cut at a random place; what is before it is the answer's own.

    swap: probability that a Yes or No at the beginning becomes its opposite, which is then kept. A
    sentence of one word that is neither has nothing to keep: it is begun anew.
    unit: between words, or anywhere.
    """
    found: list[Begun] = []
    before = ""
    for sentence in sentences(text):
        body = sentence.rstrip()
        after = sentence[len(body) :]
        answer = YES_NO.match(body)
        if answer and random.random() < swap:
            body = body[: answer.start(1)] + OPPOSITE[answer[1]] + body[answer.end(1) :]
            answer = YES_NO.match(body)
        found.append(Begun(before, _kept(body, answer, random, unit), after))
        before += sentence
    return found


def _kept(body: str, answer: re.Match[str] | None, random: Random, unit: Unit) -> str:
    if unit == "word":
        cuts = [word.end() for word in re.finditer(r"\S+", body)][:-1]
    else:
        cuts = list(range(1, len(body)))
    if answer:  # the word that was swapped stays, at least
        cuts = [cut for cut in cuts if cut >= answer.end(1)] or [answer.end(1)]
    return body[: random.choice(cuts)] if cuts else ""
