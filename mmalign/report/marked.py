"""Answers about pictures, with the words that are wrong marked: the cases that a report shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mmalign.report.figures import STAGES


@dataclass(frozen=True)
class Marked:
    """An answer, and which of its characters, from start to end (exclusive), are wrong.

    good: whether the whole is what was wanted (None: nobody judged).
    """

    text: str
    wrong: Sequence[tuple[int, int]] = ()
    good: bool | None = None


@dataclass(frozen=True)
class Case:
    """A question about pictures with the answers of every stage.

    pictures: addresses, as `data:` URIs. note: what would have been right.
    """

    question: str
    answers: Mapping[str, Marked]
    pictures: Sequence[str] = ()
    note: str = ""


def cases(shown: Sequence[Case], *, good: str = "right", bad: str = "wrong") -> Markup:
    """A card for each case. good, bad: the words for the verdict."""
    return Markup().join(_card(case, good, bad) for case in shown)


def marked(answer: Marked) -> Markup:
    """The text with the wrong parts in <mark>; parts that overlap become one."""
    pieces, at = [], 0
    for start, end in sorted(answer.wrong):
        if end <= at:
            continue
        start = max(start, at)
        pieces += [
            Markup("{}").format(answer.text[at:start]),
            Markup("<mark>{}</mark>").format(answer.text[start:end]),
        ]
        at = end
    return Markup().join([*pieces, Markup("{}").format(answer.text[at:])])


def _card(case: Case, good: str, bad: str) -> Markup:
    pictures = Markup().join(
        Markup('<img class="picture" src="{}" alt="{}">').format(address, case.question)
        for address in case.pictures
    )
    answers = Markup().join(
        _answer(stage, answer, good, bad) for stage, answer in case.answers.items()
    )
    note = Markup('<p class="note">{}</p>').format(case.note) if case.note else Markup()
    return Markup(
        '<article class="comparison card case"><div class="pictures">{}</div><div>'
        '<p class="prompt">{}</p>{}<div class="answers">{}</div></div></article>'
    ).format(pictures, case.question, note, answers)


def _answer(stage: str, answer: Marked, good: str, bad: str) -> Markup:
    verdict = Markup()
    if answer.good is not None:
        verdict = Markup('<span class="verdict {}">{}</span>').format(
            "good" if answer.good else "bad", f"✓ {good}" if answer.good else f"✗ {bad}"
        )
    return Markup(
        '<div class="answer {}"><div class="stage">{} {}</div><p class="text">{}</p></div>'
    ).format(stage if stage in STAGES else "other", stage, verdict, marked(answer))
