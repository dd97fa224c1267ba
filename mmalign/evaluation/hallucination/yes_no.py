"""Yes or no: what an answer says, and how well it is right."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from mmalign.evaluation.intervals import Estimate, mean, ratio


def pope_answer(text: str) -> str:
    """ "yes" or "no", as POPE reads an answer (arXiv:2305.10355): "no" where the first sentence has
    the word No, no or not, else "yes". So "There is no doubt" is a no, and "Not sure" a yes."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def first_word(text: str) -> str | None:
    """ "yes" or "no" where an answer begins with it, in any case; None for other answers."""
    word = re.match(r"\W*(\w+)", text)
    said = word.group(1).lower() if word else ""
    return said if said in ("yes", "no") else None


def detection(
    said: Sequence[str | None], truth: Sequence[str], positive: str
) -> dict[str, Estimate]:
    """How well the answer `positive` is given where it is true.

    said: what was answered; what is neither yes nor no is wrong and counts as neither.
    truth: "yes" or "no". Precision, recall and F1 are about `positive`; an answer that is never
    given has no precision (nan).
    """
    answered = np.array([answer == positive for answer in said])
    true = np.array([answer == positive for answer in truth])
    right = np.array([a == b for a, b in zip(said, truth, strict=True)])
    both = answered & true
    return {
        "accuracy": mean(right),
        "precision": ratio(both, answered),
        "recall": ratio(both, true),
        "f1": ratio(2 * both, answered.astype(int) + true),
        f"{positive}_ratio": mean(answered),
    }
