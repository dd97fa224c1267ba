"""Token weights out of OPA-DPO's expert reports: how wrong each sentence was. arXiv:2501.09695.

A report lists the sentences of the model's own answer with a score, from 4 (right) to 1, the kind
of error, and the sentence as corrected. The weights are those of the paper's code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmalign.records import Span, Text

SCORES = {4: 1.0, 3: 1.5, 2: 2.0, 1: 2.5}
SEEING = "image_recognition_error"
SEEN_WRONG = 3.0
DESCRIPTION, ADDED = "image description", "Added"


@dataclass(frozen=True)
class Sentence:
    """A sentence as the model wrote it and as it was corrected; either may be empty.

    score: 4 to 1. seeing: whether the error was one of seeing.
    """

    copied: str
    rewritten: str
    score: int
    seeing: bool

    @property
    def weight(self) -> float:
        """Of its tokens where errors count: W_hal."""
        return SCORES.get(self.score, 1.0)

    @property
    def seeing_weight(self) -> float:
        """Of its tokens where errors of seeing count: W_img."""
        return SEEN_WRONG if self.seeing else 1.0


def sentences(report: Mapping[str, Any]) -> list[Sentence]:
    """The sentences of a report, whose fields are spelled with blanks or with underscores; one
    that was added counts as right. Raises ValueError for an entry that is no object."""
    found = []
    for name, entry in report.items():
        if _spelled(name) == DESCRIPTION:
            continue
        if not isinstance(entry, Mapping):
            raise ValueError(f"{name!r} is not an object with copied and rewritten content")
        fields = {_spelled(key): value for key, value in entry.items()}
        added = name == ADDED
        score = fields.get("score", 4)
        found.append(
            Sentence(
                "" if added else str(fields.get("copied content") or "").strip(),
                str(fields.get("rewritten content") or "").strip(),
                4 if added or not isinstance(score, int) else score,
                not added and _underscored(fields.get("error type")) == SEEING,
            )
        )
    return found


def weighted(
    text: str,
    pieces: Sequence[tuple[str, float]],
) -> Text | None:
    """The text with the weights of its pieces, which follow one another in it; what lies between
    two goes with the second, what comes after the last with the last. None if one is not found.
    """
    spans, at = [], 0
    wanted = [(piece, weight) for piece, weight in pieces if piece]
    for piece, weight in wanted:
        place = text.find(piece, at)
        if place < 0:
            return None
        spans.append(Span(at, place + len(piece), weight))
        at = place + len(piece)
    if spans and at < len(text):
        spans[-1] = Span(spans[-1].start, len(text), spans[-1].weight)
    return Text(text, tuple(span for span in spans if span.weight != 1))


def corrected(
    report: Sequence[Sentence], text: str, weight: Callable[[Sentence], float]
) -> Text | None:
    """The corrected answer, weighted sentence by sentence; None if it is not the report's."""
    return weighted(text, [(each.rewritten, weight(each)) for each in report])


def generated(
    report: Sequence[Sentence], text: str, weight: Callable[[Sentence], float]
) -> Text | None:
    """The model's own answer, weighted likewise; None if it is not the report's."""
    return weighted(text, [(each.copied, weight(each)) for each in report])


def _spelled(name: str) -> str:
    return name.replace("_", " ")


def _underscored(value: Any) -> str:
    return str(value or "").strip().replace(" ", "_")
