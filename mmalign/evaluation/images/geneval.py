"""GenEval: whether an image has the objects, counts, colours and places that its prompt names.

The rules alone; what is found in an image comes from a detector (`detectors`). arXiv:2310.11513.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmalign.evaluation.intervals import Estimate, combined, mean

Box = tuple[float, float, float, float]
"""x0 y0 x1 y1 in pixels."""

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
MOST = 16
"""Objects of a class that are looked at, the surest first."""

SPELLINGS = {
    "computer mouse": "mouse",
    "tv remote": "remote",
    "computer keyboard": "keyboard",
    "tvmonitor": "tv",
    "hair dryer": "hair drier",
}
"""Names of COCO's classes that prompts and detectors spell in different ways."""


def plain(name: str) -> str:
    """A class's name in the spelling that is compared."""
    name = name.lower().strip()
    return SPELLINGS.get(name, name)


@dataclass(frozen=True)
class Found:
    """An object in an image, by its `plain` name, with its colour where one was asked for."""

    name: str
    score: float
    box: Box
    colour: str | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether an image is right, and otherwise what is not."""

    right: bool
    fault: str = ""


def threshold(task: str) -> float:
    """How sure the detector must be; counting takes no doubtful objects."""
    return 0.9 if task == "counting" else 0.3


def judge(found: Sequence[Found], wanted: Mapping[str, Any]) -> Verdict:
    """Whether what was found is what a line of the benchmark's metadata wants.

    wanted: "include" and perhaps "exclude", lists of clauses {class, count, color?, position?}; a
        position is a pair of relation and number of the clause that it refers to.
    Objects below the task's threshold do not count.
    """
    sure = threshold(str(wanted["tag"]))
    there = [each for each in found if each.score > sure]
    kept: list[list[Found]] = []
    for clause in wanted["include"]:
        objects, fault = _matching(_of_class(there, clause["class"]), clause)
        if not fault and "position" in clause:
            relation, other = clause["position"]
            fault = _misplaced(objects, kept[other], relation, clause["class"])
        if fault:
            return Verdict(False, fault)
        kept.append(objects)
    for clause in wanted.get("exclude", ()):
        if len(_of_class(there, clause["class"])) >= clause["count"]:
            return Verdict(False, f"{clause['count']} or more {clause['class']}")
    return Verdict(True)


def _of_class(found: Sequence[Found], name: str) -> list[Found]:
    own = [each for each in found if each.name == plain(name)]
    return sorted(own, key=lambda each: -each.score)[:MOST]


def _matching(objects: list[Found], clause: Mapping[str, Any]) -> tuple[list[Found], str]:
    """The objects that a clause keeps, and what is wrong with them."""
    count, name, colour = clause["count"], clause["class"], clause.get("color")
    if len(objects) < count:
        return [], f"{len(objects)} of {count} {name}"
    if colour is not None:
        right = sum(each.colour == colour for each in objects[:count])
        if right < count:
            seen = ", ".join(str(each.colour) for each in objects[:count])
            return [], f"{right} of {count} {colour} {name} (seen: {seen})"
    return objects[:count], ""


def _misplaced(objects: list[Found], others: list[Found], relation: str, name: str) -> str:
    for one in objects:
        for other in others:
            if relation not in relations(one.box, other.box):
                return f"{name} is not {relation} {other.name}"
    return ""


def relations(a: Box, b: Box, *, slack: float = 0.1) -> set[str]:
    """Where box a lies as seen from box b: "left of", "right of", "above", "below", or nowhere.

    slack: share of the boxes' sizes by which their centres may be apart and yet not count.
    """
    offset = [(a[i] + a[i + 2]) / 2 - (b[i] + b[i + 2]) / 2 for i in (0, 1)]
    sizes = [a[i + 2] - a[i] + b[i + 2] - b[i] for i in (0, 1)]
    beyond = [
        math.copysign(max(abs(off) - slack * size, 0.0), off)
        for off, size in zip(offset, sizes, strict=True)
    ]
    if all(abs(each) < 1e-3 for each in beyond):
        return set()
    x, y = (each / math.hypot(*offset) for each in beyond)
    places = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {name for name, holds in places.items() if holds}


def scores(right: Sequence[float], tasks: Sequence[str]) -> dict[str, Estimate]:
    """The score, which is the mean over tasks of their accuracies, and each task's.

    right: (n,) share of a prompt's images that are right. tasks: (n,).
    """
    names = [task for task in TASKS if task in tasks] + sorted(set(tasks) - set(TASKS))
    parts = {
        task: mean([share for share, own in zip(right, tasks, strict=True) if own == task])
        for task in names
    }
    total = combined(lambda *shares: sum(shares) / len(shares), *parts.values())
    return {"GenEval": total, **parts}
