"""Faults of the data: wrong labels, pairs that teach nothing, lengths and images."""

from __future__ import annotations

import math

from mmalign.evaluation.diagnosis.case import LEVEL, Case, Finding, Severity, share
from mmalign.evaluation.intervals import Interval, wilson

UNKNOWN_COUNT = 30
"""Taken as the number of held-out pairs where nobody says it: more would make findings bolder."""

LENGTH_ALONE = (0.6, 0.8)
"""Accuracy of a judge that reads only lengths: a warning and an error. At 0.6 length alone gives a
fifth of all there is to know beyond chance, at 0.8 more than half."""

IMAGE_DROP = 0.05
"""Loss of accuracy without the image below which the image hardly matters."""


def flipped_labels(case: Case) -> list[Finding]:
    """The policy ends on the wrong side of one half, in training or on held-out pairs."""
    found = []
    trained = _accuracy(case)
    if trained is not None and trained.high < 0.5:
        found.append(
            Finding(
                "flipped labels",
                "error",
                f"in the last quarter of training only {trained.value:.0%} of the pairs have the "
                "higher reward on their chosen response: the loss pushed against the labels",
                "check that no term of the objective has a negative weight, and that chosen and "
                "rejected were not exchanged between collating and scoring",
            )
        )
    held_out = case.evaluations("reward_accuracy")
    if held_out and (judged := share(held_out[-1][1], case.held_out or UNKNOWN_COUNT)).high < 0.5:
        agrees = "" if trained is None else f", {trained.value:.0%} of the training pairs do"
        found.append(
            Finding(
                "flipped labels",
                "error",
                f"only {judged.value:.0%} of the held-out pairs have the higher reward on their "
                f"chosen response (at most {judged.high:.0%}){agrees}: the two sets contradict "
                "each other",
                "look at twenty pairs of both sets: in one of them chosen and rejected are "
                "probably exchanged, or its scores count the other way",
            )
        )
    return found


def _accuracy(case: Case) -> Interval | None:
    """Reward accuracy in the last quarter; a pair that was seen twice counts once."""
    rows = [r for r in case.last if r.get("reward_accuracy") is not None and r.get("step") != 1]
    if not rows:
        return None
    count = sum(row["preferences"] for row in rows)
    mean = sum(row["reward_accuracy"] * row["preferences"] for row in rows) / count
    return share(mean, min(count, case.data.pairs) if case.data and case.data.pairs else count)


def faulty_pairs(case: Case) -> list[Finding]:
    """Pairs that teach nothing, or the opposite of one another."""
    data = case.data
    if data is None:
        return []
    kinds = [
        (
            "identical pairs", data.identical,
            "chosen and rejected are the same, their margin is 0 for every model",
            "drop them; ask why the builder made them",
        ),
        (
            "ties", data.ties,
            "both responses have one grade, there is nothing to prefer",
            "drop them, or use an objective that knows ties",
        ),
        (
            "contradictory pairs", data.contradictions,
            "also occur with chosen and rejected exchanged",
            "keep the majority, or use smooth(...), robust(...) or em(...), which expect errors",
        ),
        (
            "repeated pairs", data.repeats,
            "occurred before, so that they count several times and may be in both splits",
            "drop the repetitions before splitting",
        ),
    ]  # fmt: skip
    found = []
    for name, count, meaning, remedy in kinds:
        if count:
            part = data.share(count)
            evidence = f"{count} of {data.pairs} pairs ({part:.1%}): {meaning}"
            found.append(Finding(name, _severity(part), evidence, remedy))
    return found


def _severity(part: float) -> Severity:
    """A share that trains nothing makes every step smaller by as much: 1% cannot be seen."""
    return "note" if part < 0.01 else "warning" if part < 0.1 else "error"


def blank_images(case: Case) -> list[Finding]:
    """Images of one colour, on all sides of a preference."""
    seen = case.pictures
    if seen is None or not seen.blank:
        return []
    part = seen.blank / seen.looked_at
    return [
        Finding(
            "blank images",
            _severity(part),
            f"in {seen.blank} of the {seen.looked_at} preferences looked at ({part:.1%}) every "
            "image has one colour only: there is nothing to see",
            "look at the files: a failed download, a wrong path or a filter leaves such images; "
            "fetch them again, or take the records out",
        )
    ]


def length_bias(case: Case) -> list[Finding]:
    """Reading nothing but lengths would predict the labels."""
    bias = case.data.length_bias(level=LEVEL) if case.data else None
    if bias is None:
        return []
    longer = bias.value > 0.5
    sure = bias.low if longer else 1 - bias.high
    if sure < LENGTH_ALONE[0]:
        return []
    word = "longer" if longer else "shorter"
    return [
        Finding(
            "length-biased data",
            "error" if sure > LENGTH_ALONE[1] else "warning",
            f"the chosen response is the {word} one in "
            f"{bias.value if longer else 1 - bias.value:.0%} of the pairs (surely above "
            f"{sure:.0%}): length alone predicts the label",
            "pair responses of similar length, or use ln_dpo, simpo or r_dpo; and compare models "
            "at equal length",
        )
    ]


def images_do_not_matter(case: Case) -> list[Finding]:
    """Accuracy hardly falls when the image is taken away."""
    seen = case.images
    if seen is None or seen.pairs == 0:
        return []
    right = round(seen.with_image * seen.pairs)
    if wilson(right, seen.pairs, level=LEVEL).low <= 0.5:
        return []  # nothing was learned that an image could matter for
    # The drop is a mean of +1, 0, -1; its upper bound must be small. One pair more keeps the
    # variance honest where no pair differs.
    differing = seen.only_with + seen.only_without + 1
    bound = seen.drop + 2.33 * math.sqrt(differing) / seen.pairs
    if bound >= IMAGE_DROP:
        return []
    return [
        Finding(
            "images do not matter",
            "error",
            f"{seen.with_image:.1%} of {seen.pairs} pairs are right with the image and "
            f"{seen.without_image:.1%} without it (a drop of at most {bound:.1%}): the answers "
            "alone give the labels away",
            "add pairs that differ in the image only, or a term that contrasts images: mdpo(), "
            "contrast(dpo(), worse='chosen@no_image'); rewrite rejected answers in the style of "
            "the chosen ones",
        )
    ]
