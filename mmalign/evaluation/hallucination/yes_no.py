"""Yes or no: what an answer says, and how well it is right."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mmalign.evaluation.intervals import Estimate, ratio


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
    said: Sequence[str | None],
    truth: Sequence[str],
    positive: str,
    *,
    images: Sequence[str] | None = None,
) -> dict[str, Estimate]:
    """How well the answer `positive` is given where it is true.

    said: what was answered; None, which is neither yes nor no, is wrong; its share is `neither`.
    truth: "yes" or "no". Precision, recall and F1 are about `positive`; an answer that is never
    given has no precision (nan).
    images: which image each question is about. Questions about one image hang together, so that
    intervals draw images anew, not questions; without, every question stands for itself.
    """
    answered = np.array([answer == positive for answer in said], dtype=float)
    true = np.array([answer == positive for answer in truth], dtype=float)
    right = np.array([a == b for a, b in zip(said, truth, strict=True)], dtype=float)
    everything = np.ones(len(right))
    names = range(len(right)) if images is None else images
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    groups = [numbers[name] for name in names]

    def share(above: NDArray[np.float64], below: NDArray[np.float64]) -> Estimate:
        return ratio(np.bincount(groups, weights=above), np.bincount(groups, weights=below))

    found = {
        "accuracy": share(right, everything),
        "precision": share(answered * true, answered),
        "recall": share(answered * true, true),
        "f1": share(2 * answered * true, answered + true),
        f"{positive}_ratio": share(answered, everything),
    }
    if None in said:
        neither = np.array([answer is None for answer in said], dtype=float)
        found["neither"] = share(neither, everything)
    return found
