"""Which characters a correction changed, as token weights for dense DPO. arXiv:2312.00849."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher

from mmalign.records import Span, Text

CORRECTED = 5.0
"""Weight of what was corrected against what was left alone: gamma of the paper's equation 3."""

_WORDS = re.compile(r"\w+|[^\w\s]")


def weigh_corrections(
    chosen: str, rejected: str, *, weight: float = CORRECTED
) -> tuple[Text, Text]:
    """Both texts, with `weight` on the words and signs that the other does not have there.

    Whole words are compared, so that a span never ends within one, and blanks between two changed
    words count with them.
    """
    ours, theirs = list(_WORDS.finditer(chosen)), list(_WORDS.finditer(rejected))
    matcher = SequenceMatcher(
        None, [word.group() for word in ours], [word.group() for word in theirs], autojunk=False
    )
    spans: tuple[list[Span], list[Span]] = ([], [])
    for tag, start, end, other_start, other_end in matcher.get_opcodes():
        if tag == "equal":
            continue
        for words, first, last, found in (
            (ours, start, end, spans[0]),
            (theirs, other_start, other_end, spans[1]),
        ):
            if last > first:
                found.append(Span(words[first].start(), words[last - 1].end(), weight))
    return Text(chosen, tuple(spans[0])), Text(rejected, tuple(spans[1]))


def edited_only(text: str, spans: Iterable[Sequence[int]]) -> Text:
    """The text with a weight of 0 on what lies in none of the [start, end] of characters; without
    any, all of it counts. Raises ValueError for spans that are none, or end behind the text."""
    try:
        inside = sorted((int(start), int(end)) for start, end in spans)
    except (TypeError, ValueError) as error:
        raise ValueError("is not a list of [start, end]") from error
    if not all(0 <= start <= end <= len(text) for start, end in inside):
        raise ValueError(f"has a span beyond the answer's {len(text)} characters")
    outside, reached = [], 0
    for start, end in [*inside, (len(text), len(text))] if inside else []:
        if start > reached:
            outside.append(Span(reached, start, 0.0))
        reached = max(reached, end)
    return Text(text, tuple(outside))
