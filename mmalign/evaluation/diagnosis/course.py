"""Faults of the course that training took: displacement, over-optimisation, saturation, a rise."""

from __future__ import annotations

import math

from mmalign.evaluation.diagnosis.case import (
    MOVED,
    ROUNDING,
    SATURATED,
    STIFF,
    Case,
    Finding,
    mean,
    surely_below_0,
)
from mmalign.evaluation.diagnosis.labels import flipped_labels
from mmalign.evaluation.diagnostics.overoptimisation import early_warning

PRICE = (0.5, 1.0)
"""Nats that the chosen response lost per nat of margin. At 0.5 the rejected one fell three times as
far as the chosen, at 1 twice: the margin was bought by making both unlikely."""

GROWN = (0.05, 0.1)
"""Relative growth of a denoiser's error on chosen media: a warning and an error. Good runs end a
few hundredths above their reference (arXiv:2311.12908), at a tenth samples show it."""

GIVEN_BACK = (0.25, 1.0)
"""Share of the best fall of the held-out loss that was lost again. Evaluations on the same records
differ by much less than a quarter; at 1 training did harm."""


def displacement(case: Case) -> list[Finding]:
    """The margin grows because both responses become less likely, the rejected one faster."""
    scale = case.scale
    chosen, rejected = (mean(case.last, f"{side}_ratio") for side in ("chosen", "rejected"))
    if scale is None or chosen is None or rejected is None:
        return []
    margin = chosen - rejected
    least, much = GROWN if case.denoiser else (STIFF, MOVED)
    if margin <= 0 or chosen >= -least * scale or -chosen < PRICE[0] * margin:
        return []
    if not surely_below_0([row["chosen_ratio"] for row in case.last]):
        return []
    price = -chosen / margin
    return [
        Finding(
            "likelihood displacement",
            "error" if price > PRICE[1] and -chosen > much * scale else "warning",
            f"the chosen responses lost {-chosen:.3g} nats of {scale:.3g} while the margin grew to "
            f"{margin:.3g}: {price:.2g} nats per nat of margin",
            "add an anchor on the chosen, as in dpo(beta=2000) + 100*nll(), or a smaller learning "
            "rate"
            if case.denoiser
            else "add an anchor on the chosen (+ 0.2*nll(), dpop, chosen_anchor), a smaller "
            "learning rate, or pairs that differ in more than a few words",
        )
    ]


def over_optimisation(case: Case) -> list[Finding]:
    """Held-out loss turns while the training loss goes on falling, or the distributions warn."""
    found = []
    losses = case.evaluations("loss")
    best = min(range(len(losses)), key=lambda i: losses[i][1], default=0)
    # Two evaluations since then agree; sets that contradict each other are another fault.
    if len(losses) >= 3 and best <= len(losses) - 3 and not flipped_labels(case):
        start = losses[0][1] if case.first is None else max(losses[0][1], case.first["loss"])
        gained, lost = start - losses[best][1], losses[-1][1] - losses[best][1]
        at_best = [row for row in case.rows if row["step"] <= losses[best][0]][-len(case.last) :]
        before, after = mean(at_best, "loss"), mean(case.last, "loss")
        fits = before is not None and after is not None and after < before
        if fits and lost > GIVEN_BACK[0] * max(gained, 0.0) and lost > ROUNDING:
            found.append(
                Finding(
                    "over-optimisation",
                    "error" if lost > GIVEN_BACK[1] * gained else "warning",
                    f"the held-out loss was lowest at step {losses[best][0]} "
                    f"({losses[best][1]:.3g}) and ended at {losses[-1][1]:.3g}, while the training "
                    f"loss fell from {before:.3g} to {after:.3g}",
                    f"stop near step {losses[best][0]} (the run keeps its best checkpoint), train "
                    "fewer epochs, raise beta, or get more preferences",
                )
            )
    if sign := _distribution_sign(case):
        found.append(
            Finding(
                "over-optimisation",
                "warning",
                f"the model's own outputs: {sign}",
                "stop at the turn, raise beta, and judge samples by eye or by a reward",
            )
        )
    return found


def _distribution_sign(case: Case) -> str | None:
    """Of the curves of top-10 entropy and mass, under whatever prefix they were logged."""
    for key in {key for row in case.rows for key in row if key.endswith("top10_entropy")}:
        mass = f"{key.removesuffix('entropy')}mass"
        rows = [r for r in case.rows if r.get(key) is not None and r.get(mass) is not None]
        match early_warning([row[key] for row in rows], [row[mass] for row in rows]):
            case "entropy fell":
                return "the entropy of the ten likeliest tokens rose and fell again"
            case "mass leaks":
                return "entropy rises while probability leaks from the ten likeliest tokens"
    return None


def saturation(case: Case) -> list[Finding]:
    """Half of the run had nothing left to learn."""
    half = case.rows[len(case.rows) // 2 :]
    limit = math.log1p(math.exp(-SATURATED))
    plain = case.loss is not None and case.loss.plain
    if not plain or len(case.rows) < 4 or any(row["loss"] > limit for row in half):
        return []
    return [
        Finding(
            "saturation",
            "warning",
            f"in the whole second half of the run the loss was below {limit:.2g}: the pairs had "
            "less than a hundredth of their weight",
            "stop earlier, or give harder pairs; what still moves is drift",
        )
    ]


def rising_loss(case: Case) -> list[Finding]:
    """The training loss ends surely above where it began."""
    if case.first is None or len(case.rows) < 8:
        return []
    start = case.first["loss"]
    if not surely_below_0([start - row["loss"] for row in case.last]):
        return []
    return [
        Finding(
            "rising loss",
            "error",
            f"the training loss began at {start:.3g} and averages {mean(case.last, 'loss'):.3g} "
            "in the last quarter",
            "a smaller learning rate; if that changes nothing, look for pairs that contradict one "
            "another and for a negative weight in the objective",
        )
    ]
