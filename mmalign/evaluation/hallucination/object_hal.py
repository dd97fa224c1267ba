"""Object-HalBench: different objects that answers name, and which of them are not there.

The protocol of RLHF-V (arXiv:2312.00849) and its published scorer: a model lists the objects of an
answer, each counts once, and an answer of at most three words has none.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence

from mmalign.evaluation.hallucination.chair import chair
from mmalign.evaluation.hallucination.mentions import mentions
from mmalign.evaluation.hallucination.objects import Vocabulary
from mmalign.evaluation.intervals import Estimate, ratio
from mmalign.rewards.judge import json_in

SHORT = 3  # words of an answer that counts as having no objects

EXTRACT = """\
Somebody was asked about a picture and answered. List the visible things that the answer says are in
the picture.

Question: {question}
Answer: {answer}

Take the answer as it stands, right or wrong. Name each thing by its noun alone, without colour,
number, material or other properties. Leave out what the answer only supposes, and what it says is
not there. Reply with nothing but a JSON list of names, such as ["dog", "traffic light"], or [] if
there are none."""


def extraction(question: str, answer: str) -> str:
    """What a judge is asked, to have the objects of an answer."""
    return EXTRACT.replace("{question}", question).replace("{answer}", answer)


def read_names(text: str) -> list[str]:
    """The judge's list. Raises ValueError for anything else."""
    names = json_in(text)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"a JSON list of names is wanted, not {json.dumps(names)[:80]}")
    return names


def objects_of(answer: str, names: Sequence[str] | None, vocabulary: Vocabulary) -> set[str]:
    """The canonical objects of an answer: those of the names that a judge listed, or, without a
    list (None), of the answer's own words."""
    if len(answer.split()) <= SHORT:
        return set()
    said = [answer] if names is None else names
    return {mention.name for text in said for mention in mentions(text, vocabulary)}


def figures(
    mentioned: Sequence[Collection[str]], present: Sequence[Collection[str]]
) -> dict[str, Estimate]:
    """chair_s_refine: answers with an object that is not there, of those that name any (published
    as CHAIRs). chair_s: of all answers. chair_i: objects that are not there, of all that are named.
    recall: objects that are named. objects: named per answer."""
    counts = chair([sorted(said) for said in mentioned], present)
    found = counts.estimates()
    return {
        "chair_s_refine": ratio(counts.hallucinated > 0, counts.mentions > 0),
        "chair_s": found["chair_s"],
        "chair_i": found["chair_i"],
        "recall": found["recall"],
        "objects": found["mentions"],
    }
