"""HallusionBench: questions that come back over changed figures. arXiv:2310.14566.

Being right by chance shows: a group counts only if every question of it is answered right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from mmalign.evaluation.hallucination.yes_no import first_word
from mmalign.evaluation.intervals import Estimate, mean, ratio

Verdict = Literal["correct", "incorrect", "unclear"]

COMPARE = """\
A student answered a question. Compare the answer with the reference, which is right.

Question: {question}
Reference: {reference}
Answer: {answer}

Reply with one word: "correct" if the answer does not contradict the reference, "incorrect" if it
does, "unclear" if it cannot be told what the answer is."""


def verdict(reply: str) -> Verdict:
    """What a judge says; "incorrect" is looked for first, since it holds "correct"."""
    said = reply.lower()
    if "incorrect" in said:
        return "incorrect"
    return "correct" if "correct" in said else "unclear"


def matched(answer: str, right: str) -> Verdict:
    """Without a judge: whether the first word is the right yes or no. right: "1" or "0"."""
    said = first_word(answer)
    if said is None:
        return "unclear"
    return "correct" if (said == "yes") == (right == "1") else "incorrect"


def is_right(row: Mapping[str, Any], found: Verdict) -> bool:
    """Without a figure (category VS, figure 0), not knowing is right too."""
    blind = row["category"] == "VS" and str(row["figure_id"]) == "0"
    return found == "correct" or (blind and found == "unclear")


def figures(rows: Sequence[Mapping[str, Any]], right: Sequence[bool]) -> dict[str, Estimate]:
    """aAcc: questions. qAcc: groups of one question over its figures, all right. fAcc: figures, all
    their questions right. easy, hard: qAcc over figure 0, which is as it was or not given at all,
    and over the others, most of which were edited.
    yes_difference: share of yes among the answers less that among the truths. fp_ratio: wrong
    answers that say yes, of all wrong ones."""
    found = {"aAcc": mean(right), "qAcc": _all_right(rows, right, QUESTION)}
    seen = [not (row["category"] == "VS" and str(row["figure_id"]) == "0") for row in rows]
    first = [str(row["figure_id"]) == "0" for row in rows]
    for name, key, chosen in (
        ("fAcc", FIGURE, seen),
        ("easy", QUESTION, first),
        ("hard", QUESTION, [not each for each in first]),
    ):
        part = [i for i, wanted in enumerate(chosen) if wanted]
        if part:
            found[name] = _all_right([rows[i] for i in part], [right[i] for i in part], key)
    truth = np.array([str(row["gt_answer"]) == "1" for row in rows])
    good = np.array(right)
    found["yes_difference"] = mean((good == truth).astype(int) - truth)
    found["fp_ratio"] = ratio(~good & ~truth, ~good)
    for category in dict.fromkeys(row["category"] for row in rows):
        part = [i for i, row in enumerate(rows) if row["category"] == category]
        found[f"{category}/aAcc"] = mean(good[part])
    return found


QUESTION = ("category", "subcategory", "set_id", "question_id")
FIGURE = ("category", "subcategory", "set_id", "figure_id")


def _all_right(
    rows: Sequence[Mapping[str, Any]], right: Sequence[bool], key: Sequence[str]
) -> Estimate:
    """Share of the groups that are right throughout."""
    groups: dict[tuple[str, ...], bool] = {}
    for row, good in zip(rows, right, strict=True):
        name = tuple(str(row[field]) for field in key)
        groups[name] = groups.get(name, True) and good
    return mean(list(groups.values()))
