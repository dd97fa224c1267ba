"""Which characters a correction changed, as token weights for dense DPO. arXiv:2312.00849."""

from __future__ import annotations

import re
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
