"""What the rules of a diagnosis read: a run's figures, its loss, and what is sure about them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mmalign.evaluation.diagnostics.data import Blanks, Rates
from mmalign.evaluation.diagnostics.images import ImageAblation
from mmalign.evaluation.intervals import Interval, wilson
from mmalign.objectives import objective
from mmalign.objectives.parse import Call, parse

Severity = Literal["error", "warning", "note"]
Row = Mapping[str, Any]

LEVEL = 0.999
"""Of all intervals: a dozen rules on a run that has no fault shall not find one by chance."""

ROUNDING = 1e-4
"""Relative. Equal models agree within 1e-5 of a summed log-probability in float32, whatever the
order of the sum; one rounding to bfloat16 changes a number by up to 4e-3. A mean between the two
separates them, and a log-ratio that stays below it has not moved."""

SATURATED = 5.0
"""Of z = beta times the margin: the logistic loss's slope is sigmoid(-5), 0.7% of the pair's weight
left. A hundredth of the gradient that the run began with no longer trains a pair."""

MOVED = 0.05
"""Relative change of a log-probability that is large: 15 nats on a response of 300."""

STIFF = 0.01
"""Relative change of a log-probability by which no loss should be saturated: with 3 nats on a
response of 300, chosen and rejected are still about as likely as before."""


@dataclass(frozen=True)
class Finding:
    """A fault by name, with what shows it and what to do."""

    name: str
    severity: Severity
    evidence: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.name}. {self.evidence}. What helps: {self.remedy}."


@dataclass(frozen=True)
class Loss:
    """The part of an objective that is a logistic loss of beta times the margin over a reference.

    per_token: the margin is of means. plain: nothing else is in the objective, which costs log 2
    where policy and reference agree.
    """

    beta: float
    per_token: bool
    plain: bool


OF_MARGIN = {"dpo", "cdpo", "dpop", "r_dpo", "odpo", "aot", "ln_dpo", "rpo", "mpo", "mdpo"}
COST_LOG_2 = {"dpo", "cdpo", "dpop", "aot", "ln_dpo"}


def loss_of(spec: str) -> Loss | None:
    """The first term of an objective that is of this kind, wrapped or not; None without one."""
    terms = parse(objective(spec).spec).terms  # canonical, all options written out
    for weight, call in terms:
        inside: Call | None = call
        wrapped, per_token = False, False
        while inside is not None and inside.inner is not None:
            per_token |= inside.name == "averaged"
            wrapped = True
            inside = inside.inner.terms[0][1]
        if inside is not None and inside.name in OF_MARGIN:
            plain = len(terms) == 1 and weight == 1 and not wrapped and inside.name in COST_LOG_2
            per_token |= inside.name == "ln_dpo"
            return Loss(float(inside.options["beta"] or 0), per_token, plain)
    return None


@dataclass(frozen=True)
class Case:
    """All that is known about a run; rules read from it."""

    rows: Sequence[Row]
    loss: Loss | None
    data: Rates | None
    images: ImageAblation | None
    held_out: int | None
    from_reference: bool
    pictures: Blanks | None = None
    denoiser: bool = False

    @property
    def first(self) -> Row | None:
        """The first step: its figures are from before any update."""
        return self.rows[0] if self.rows and self.rows[0].get("step") == 1 else None

    @property
    def last(self) -> Sequence[Row]:
        """The last quarter of the steps."""
        return self.rows[-max(1, len(self.rows) // 4) :]

    @property
    def scale(self) -> float | None:
        """Size of a response's log-probability in nats, at the beginning."""
        if self.first is None:
            return None
        sizes = [self.first.get(f"{side}_logp") for side in ("chosen", "rejected")]
        known = [abs(size) for size in sizes if size is not None]
        return max(known) if known else None

    def evaluations(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of a held-out figure."""
        key = f"held_out/{name}"
        return [(row["step"], row[key]) for row in self.rows if row.get(key) is not None]


def mean(rows: Sequence[Row], name: str) -> float | None:
    known = [row[name] for row in rows if row.get(name) is not None]
    return sum(known) / len(known) if known else None


def share(value: float, count: int) -> Interval:
    return wilson(round(value * count), count, level=LEVEL)


def surely_below_0(values: Sequence[float]) -> bool:
    """Whether the mean is more than four standard errors below 0; false for fewer than two."""
    n = len(values)
    if n < 2:
        return False
    centre = sum(values) / n
    variance = sum((value - centre) ** 2 for value in values) / (n - 1)
    return centre < -4 * math.sqrt(variance / n)
