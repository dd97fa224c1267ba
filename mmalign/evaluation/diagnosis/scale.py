"""Faults that show in a run's first steps, or in how far its policy went: reference and beta."""

from __future__ import annotations

import math

from mmalign.evaluation.diagnosis.case import (
    MOVED,
    ROUNDING,
    SATURATED,
    STIFF,
    Case,
    Finding,
    Row,
    mean,
)

LOG_2_ERROR = 1e-4
"""Of the first loss. What float32 leaves of a margin of 0 is some 1e-6, times beta."""

FELT = 0.05
"""Of z: below it the loss is within 4% of log 2 and its slope within 3% of that at the start, so
that the loss cannot tell how far the policy went, and no longer holds it back."""

UNFELT = 1e-3
"""Of z: below it no pair's weight changed by more than a quarter of a thousandth. Denoisers move by
millionths of a nat, which a beta of some thousand makes larger than that."""

USUAL = (
    "summed log-probabilities of texts want 0.01 to 0.5, means per token 1 to 10, denoisers 500 to "
    "5,000"
)
TOO_LARGE = f"a smaller beta, by a factor of about 100 or 1,000; {USUAL}"
TOO_SMALL = f"a larger beta, by a factor of about 100 or 1,000; {USUAL}"

EARLY = 0.1
"""Share of a run that counts as its beginning, the usual length of the warm-up."""


def reference_mismatch(case: Case) -> list[Finding]:
    """Before any update, policy and reference are the same model and every log-ratio is 0."""
    row, scale = case.first, case.scale
    if not case.from_reference or row is None or not scale:
        return []
    names = ("chosen_ratio", "rejected_ratio", "reward_margin")
    sizes = [abs(row[name]) for name in names if row.get(name) is not None]
    off = max(sizes, default=0.0) > ROUNDING * scale
    costs = case.loss is not None and case.loss.plain
    off |= costs and abs(row["loss"] - math.log(2)) > LOG_2_ERROR
    if not off:
        return []
    cost = f"; the loss was {row['loss']:.6f} in the place of log 2 = 0.693147" if costs else ""
    return [
        Finding(
            "reference mismatch",
            "error",
            f"before the first update the log-ratios to the reference averaged up to "
            f"{max(sizes, default=0.0):.3g} nats instead of 0{cost}",
            "let both models compute the same: no dropout in training mode, one precision, the "
            "same truncation and template, noise from the same seeds; delete a cached reference "
            "of other weights; or, if training started elsewhere, say from_reference=False",
        )
    ]


def wrong_scale(case: Case) -> list[Finding]:
    """The loss saturates at once, or does not feel how far the policy goes, or nothing moves."""
    if case.scale is None or len(case.rows) < 2:
        return []
    return _too_large(case) or _too_small(case) or _nothing_moves(case)


def _too_large(case: Case) -> list[Finding]:
    assert case.scale is not None  # wrong_scale saw to it
    if case.loss is None:
        return []
    beginning = case.rows[1 : 1 + max(3, int(EARLY * len(case.rows)))]
    found = [(row, z) for row in beginning if (z := _z(case, row)) is not None]
    # Saturated on the wrong side: there the logistic loss is -z. Other terms would hide it.
    far = [
        (row, z)
        for row, z in found
        if abs(z) > SATURATED or (case.loss.plain and row["loss"] > SATURATED)
    ]
    if not far:
        return []
    row, z = far[0]
    room = SATURATED / case.loss.beta * (_length(case.rows[0]) if case.loss.per_token else 1)
    evidence = (
        f"at step {row['step']} beta times the margin averages {z:.3g}, the loss "
        f"{row['loss']:.3g}: the slope of most pairs is gone; {room:.3g} nats are enough for "
        f"that, on responses of {case.scale:.3g} nats"
    )
    if room < STIFF * case.scale:
        return [Finding("beta too large", "error", evidence, TOO_LARGE)]
    remedy = "a smaller learning rate, or a longer warm-up"
    return [Finding("learning rate too large", "warning", evidence, remedy)]


def _too_small(case: Case) -> list[Finding]:
    assert case.scale is not None
    margin = mean(case.last, "reward_margin")
    zs = [z for row in case.last if (z := _z(case, row)) is not None]
    if case.loss is None or margin is None or not zs:
        return []
    large = STIFF * case.scale
    if case.denoiser and case.loss.beta * large < FELT:
        return [
            Finding(
                "beta too small",
                "error",
                f"even a margin of a hundredth of the denoising errors, {large:.2g} nats, which is "
                f"large, times beta is {case.loss.beta * large:.2g}: the loss cannot feel it",
                TOO_SMALL,
            )
        ]
    z = sum(zs) / len(zs)
    if abs(z) >= FELT or abs(margin) < MOVED * case.scale:
        return []
    return [
        Finding(
            "beta too small",
            "error",
            f"the margin grew to {margin:.3g} nats on responses of {case.scale:.3g}, yet beta "
            f"times the margin is {z:.2g}: the loss cannot feel it, and nothing holds the policy "
            "near its reference",
            TOO_SMALL,
        )
    ]


def _nothing_moves(case: Case) -> list[Finding]:
    assert case.scale is not None
    sizes = [mean(case.last, name) for name in ("chosen_ratio", "rejected_ratio", "reward_margin")]
    known = [abs(size) for size in sizes if size is not None]
    if not case.from_reference or not known or max(known) > ROUNDING * case.scale:
        return []
    zs = [abs(z) for row in case.last if (z := _z(case, row)) is not None]
    if max(zs, default=0.0) > UNFELT or (not zs and case.denoiser):
        return []
    norm = mean(case.last, "grad_norm")
    return [
        Finding(
            "nothing moves",
            "error",
            f"after {case.rows[-1]['step']} steps the log-ratios to the reference are still "
            f"{max(known):.2g} nats (mean gradient norm {norm or 0:.2g})",
            "a larger learning rate; with a gradient norm near 0 check that weights are "
            "trainable, that chosen and rejected differ, and that beta is not far too small",
        )
    ]


def _z(case: Case, row: Row) -> float | None:
    """beta times the mean margin of a step."""
    margin = row.get("reward_margin")
    if case.loss is None or margin is None:
        return None
    return float(case.loss.beta * margin / (_length(row) if case.loss.per_token else 1))


def _length(row: Row) -> float:
    return max(1.0, (row["chosen_length"] + row["rejected_length"]) / 2)
